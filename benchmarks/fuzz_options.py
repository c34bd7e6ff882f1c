"""Options of every kind at the edges of what is allowed, as Hypothesis draws them, and what trains with them.

What `--check` accepts has to train: to its end, to a divergence, or to one error that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from fuzzing import Bench, Wrong, call, require
from hypothesis import strategies as st

from transformer import NORMS, PLACEMENTS
from transformer.cli.config import Config
from transformer.cli.train import main as train
from transformer.core.configuration import Section
from transformer.decoding.config import SEARCHES
from transformer.training.optimizers import OPTIMIZERS
from transformer.training.schedules import SCHEDULES

# Places of files, and what decides how long it takes or how much it holds.
LEFT_OUT = {
    *("run_dir", "data.source", "data.target", "data.train", "data.valid", "data.cache"),
    *("data.tokenizer.path", "data.tokenizer.training_lines"),
    *("model.d_model", "model.d_ff", "model.encoder_layers", "model.decoder_layers", "model.max_length"),
    *("train.compile", "train.threads", "train.accumulate", "train.updates", "train.epochs"),
}
NAMES = {
    "model.placement": tuple(PLACEMENTS),
    "model.norm": tuple(NORMS),
    "model.qk_norm": ("none", *NORMS),
    "train.optimizer": tuple(OPTIMIZERS),
    "train.schedule": tuple(SCHEDULES),
    "decode.search": tuple(SEARCHES),
}
WHOLE = ("0", "1", "2", "3", "7", "260", "1000000", "2147483648", str(2**63 - 1), str(2**64), "-1")
REAL = ("0", "1e-320", "1e-30", "1e-8", "0.1", "0.98", "0.999999999", "1", "2", "1e8", "1e39", "1e300", "-1")
SETS = ("a b", "x/y", "é", "a.b", "a'b", "-x", "a:b", "%s", "{0}", "~", '"a\\0b"', '""', ".", "n" * 300)


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each option's path and type."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from leaves(kind, f"{prefix}{name}.")
        elif prefix + name not in LEFT_OUT:
            yield prefix + name, kind


def values(name: str, kind: Any, folder: str) -> st.SearchStrategy[str]:
    """Values as they are written after `--set NAME=`."""
    if name in NAMES:
        return st.sampled_from(NAMES[name])
    if name == "data.test":
        return st.sampled_from(SETS).map(lambda each: f"{{{each}: {folder}/valid}}")
    text = str(kind)
    if text.startswith("typing.Literal"):
        return st.sampled_from(get_args(kind))
    if "bool" in text:
        return st.sampled_from(("true", "false"))
    if "tuple" in text:
        return st.lists(st.sampled_from(REAL), max_size=3).map(lambda each: f"[{', '.join(each)}]")
    if "float" in text:
        return st.sampled_from(REAL)
    return st.sampled_from(WHOLE) if "int" in text else st.sampled_from(("{}", "none", "relu", "average"))


def options(bench: Bench) -> st.SearchStrategy[list[str]]:
    """One to three options, as `NAME=VALUE`."""
    known = list(leaves(Config))

    def set_to(option: tuple[str, Any]) -> st.SearchStrategy[str]:
        name, kind = option
        return values(name, kind, str(bench.folder)).map(lambda value: f"{name}={value}")

    return st.lists(st.sampled_from(known).flatmap(set_to), min_size=1, max_size=3)


def trained(bench: Bench, items: Sequence[str]) -> None:
    flags = [str(bench.config), *(each for item in items for each in ("--set", item))]
    if not require(call(train, [*flags, "--check"]), [0, 2]).code:
        answer = call(train, [*flags, "--run-dir", str(bench.folder / "trained"), "--overwrite"])
        require(answer, [0, 1, 3])
        if "INTERNAL" in answer.err:
            raise Wrong(f"the words of a library: {answer.err[-500:]}")
