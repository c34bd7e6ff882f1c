"""The kinds of input that fuzz.py tries: how cases are drawn, and what each is given to."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuzz_options import options, trained
from fuzz_strategies import ODD, VALUES, mutated, overrides, structured, texts
from fuzzing import CONFIG, CORPUS, Bench, call, lines_in, require
from hypothesis import strategies as st

from transformer.cli.data import main as data
from transformer.cli.demo import main as demo
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate

SHORT = b"one two.\n\nred\n"
JSON = (
    b"{}",
    b"[]",
    b"null",
    b"1e999",
    b'{"test": 3}',
    b'{"test": {"a": {}}}',
    b"[" * 100_000,
    b'{"a":' * 9_000,
)
MANIFESTS = (
    b'{"format": 2, "engine": "ctranslate2", "quantization": null, "positions": 9,'
    b' "tokenizers": {"source": "", "target": ""},'
    b' "files": {"../../run/config.yaml": "0", "/etc/passwd": "0"}}',
    *JSON,
)


@dataclass(frozen=True)
class Kind:
    """`draw(bench)` gives the cases; `check(bench, case)` raises for one that does not end as it has to.

    `share`: how many of a hundred cases are of this kind.
    """

    name: str
    share: int
    draw: Callable[[Bench], st.SearchStrategy[Any]]
    check: Callable[[Bench, Any], object]


def _checked(bench: Bench, content: bytes) -> None:
    file = bench.file("case.yaml", content)
    require(call(train, [file, "--check", "--run-dir", str(bench.folder / "none")]), [0, 1, 2])


def _overridden(bench: Bench, items: list[str]) -> None:
    flags = [each for item in items for each in ("--set", item)]
    require(call(train, [str(bench.config), "--check", *flags]), [0, 2])


def _corpus(bench: Bench, case: tuple[bytes, bytes, str, str]) -> None:
    """The two sides as training text; packed or not; with a tokenizer that is there or is made of it."""
    bench.number += 1
    source, target, packing, tokenizer = case
    for side, content in (("en", source), ("de", target)):
        for ending in ("", ".gz"):
            (bench.folder / f"odd.{side}{ending}").unlink(missing_ok=True)
        packed = gzip.compress(content, 1) if packing else content
        bench.file(f"odd.{side}", packed[:-9] if packing == "cut" else packed)
    options = f"path: {bench.run}/tokenizer" if tokenizer == "kept" else f"vocab_size: 30, type: {tokenizer}"
    values = {"folder": bench.folder, "tokenizer": options, "valid": "valid", "number": "odd"}
    require(call(data, [bench.file("corpus.yaml", CORPUS.format(**values).encode())]), [0, 1])


def _damage(name: str) -> Callable[[Bench, bytes], None]:
    """Translate with a run of which one file is damaged."""

    def check(bench: Bench, content: bytes) -> None:
        with bench.damaged(bench.run / name, content):
            require(call(translate, [str(bench.run)], SHORT), [0, 1, 2], lines_in(SHORT))

    return check


def _shown(bench: Bench, content: bytes) -> None:
    with bench.damaged(bench.run / "result.json", content):
        require(call(demo, [str(bench.run), "--sentences", "1"]), [0, 1])


def _resumed(bench: Bench, case: tuple[str, bytes]) -> None:
    name, content = case
    (bench.run / name).write_bytes(content)
    try:
        require(call(train, ["--resume", str(bench.run)]), [0, 1, 2, 3])
    finally:
        bench.restore()


def _served(bench: Bench, case: tuple[str, bytes]) -> None:
    name, content = case
    with bench.damaged(bench.exported() / name, content):
        answer = call(translate, [str(bench.export), "--engine", "ctranslate2", "--threads", "1"], SHORT)
        require(answer, [0, 1, 2], lines_in(SHORT))


def _stdin(bench: Bench, case: tuple[bytes, list[str]]) -> None:
    content, flags = case
    require(call(translate, [str(bench.run), *flags], content), [0], lines_in(content))


def _partner(bench: Bench, case: tuple[str, bytes, bytes]) -> None:
    """A file beside the input: prefixes, references, targets. Most often it has as many lines."""
    flag, content, other = case
    if flag.endswith("="):
        count = lines_in(content)
        other = b"".join(line + b"\n" for line in (other.split(b"\n") + [b""] * count)[:count])
        flag = flag[:-1]
    codes = [0, 1] if lines_in(other) == lines_in(content) else [1]
    answer = call(translate, [str(bench.run), flag, bench.file("partner", other)], content)
    require(answer, codes, lines_in(content))


def _files(bench: Bench, *names: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """One of a run's files, damaged."""
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), mutated(bench.kept[bench.run / name], JSON))
    )


def _export_files(bench: Bench) -> st.SearchStrategy[tuple[str, bytes]]:
    folder = bench.exported()
    # Most often the manifest: the files that it lists are known again by their digests.
    names = ["export.json"] * 6 + ["config.json", "model.bin", "config.yaml", "tokenizer/joint.model"]
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), mutated(bench.kept[folder / name], MANIFESTS))
    )


def _yaml(bench: Bench) -> st.SearchStrategy[bytes]:
    odd = [value.encode() for value in VALUES] + list(ODD)
    written = bench.kept[bench.run / "config.yaml"]
    return st.one_of(mutated(CONFIG.format(folder=bench.folder).encode(), odd), mutated(written, odd), texts)


FLAGS = (
    *([], [], ["--json"], ["--beam", "1"], ["--search", "sampling"], ["--set", "decode.chunk_lines=1"]),
    *(["--json", "--n-best", "2"], ["--set", "decode.max_source_length=3"], ["--min-length", "3"]),
)
SIDES = st.tuples(
    texts,
    texts,
    st.sampled_from(("", "", "", "gz", "cut")),
    st.sampled_from(("kept",) * 4 + ("bpe", "unigram")),
)
PARTNERS = ("--prefix=", "--prefix", "--reference=", "--reference", "--score=", "--score", "--score=")

KINDS = (
    Kind("configuration file, bytes", 12, _yaml, _checked),
    Kind("configuration file, structured", 10, lambda bench: structured(), _checked),
    Kind("--set", 11, lambda bench: overrides, _overridden),
    Kind("options that are accepted, trained", 3, options, trained),
    Kind("corpus", 12, lambda bench: SIDES, _corpus),
    Kind("standard input of translate.py", 12, lambda b: st.tuples(texts, st.sampled_from(FLAGS)), _stdin),
    Kind(
        "prefixes, references, targets",
        12,
        lambda bench: st.tuples(st.sampled_from(PARTNERS), texts, texts),
        _partner,
    ),
    Kind(
        "tokenizer file",
        6,
        lambda bench: mutated(bench.kept[bench.run / "tokenizer/joint.model"]),
        _damage("tokenizer/joint.model"),
    ),
    Kind(
        "weights file",
        6,
        lambda bench: mutated(bench.kept[bench.run / "model.safetensors"]),
        _damage("model.safetensors"),
    ),
    Kind("config.yaml of a run", 6, _yaml, _damage("config.yaml")),
    Kind("result.json", 3, lambda b: mutated(b.kept[b.run / "result.json"], JSON), _shown),
    Kind(
        "state of the trainer, resumed",
        3,
        lambda bench: _files(
            bench,
            *("checkpoints/last/trainer.pt",) * 3,
            "checkpoints/last/model.safetensors",
            "metrics.jsonl",
            "tokenizer/trained_from.json",
        ),
        _resumed,
    ),
    Kind("export", 4, _export_files, _served),
)
