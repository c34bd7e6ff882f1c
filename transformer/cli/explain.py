"""python -m transformer explain CONFIG|RUN [flags]: what a configuration means, before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.loading import load
from ..core.rundir import TOKENIZERS
from ..data.tokenizer import load_tokenizers
from ..model.config import ModelConfig
from ..model.pairing import SUBLAYERS
from ..model.transformer import Transformer
from ..modules.norms import Norm
from ..modules.qk_norm import QK_NORMS
from ..training.config import TrainConfig
from ..training.schedules import SCHEDULES, make_schedule
from .command import MODEL_FLAGS, Parser, command
from .config import Config
from .resolve import config_file_of
from .wiring import stack_facts, stack_text

FAR = 2**53  # stands for a last update that is not known: the warm-up does not depend on it
EVERYWHERE = (
    "qk_norm",
    "attention_window",
    "fix_norm",
    "allow_unsound",
)  # options that change norms or attention


@command
def main(argv: Sequence[str]) -> int:
    """Print equations, norms, parameters and learning rates of the resolved configuration."""
    parser = Parser(
        "explain", "What a configuration means: the equation of each sublayer, norms, parameters, rates."
    )
    parser.add_argument("config", metavar="CONFIG|RUN", help="a configuration file or a run directory")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_options(MODEL_FLAGS)
    arguments = parser.parse_args(argv)
    path = Path(arguments.config)
    config = load(Config, config_file_of(path) if path.is_dir() else path, arguments.overrides)
    facts = explain(config, vocabularies(config, path / TOKENIZERS))
    print(json.dumps(facts, indent=2, ensure_ascii=False) if arguments.json else as_text(facts))
    return 0


def vocabularies(config: Config, tokenizers: Path | None) -> tuple[int, int]:
    """Sizes of source and target vocabulary: a run's own, else what the configuration asks for."""
    asked = config.data.tokenizer
    own = tokenizers if tokenizers is not None and tokenizers.is_dir() else None
    if own is not None or asked.path is not None:
        source, target = load_tokenizers(own or str(asked.path))
        return source.size, target.size
    if asked.joint:
        return asked.vocab_size, asked.vocab_size
    return asked.source_vocab_size or asked.vocab_size, asked.target_vocab_size or asked.vocab_size


def explain(config: Config, sizes: tuple[int, int]) -> dict[str, Any]:
    """Facts about a configuration, for programs."""
    with torch.device("meta"):  # shapes without numbers
        model = Transformer(*sizes, config.model)
    stacks = {stack: stack_facts(model, config.model, stack) for stack in SUBLAYERS}
    chosen = config.model.model_dump(include={"placement", "norm", *EVERYWHERE})
    return {
        **chosen,
        "encoder": stacks["encoder"],
        "decoder": stacks["decoder"],
        "calibrated": any(placement.calibrated for placement, _ in model.sites()),
        "norms": sum(stack["norms"] for stack in stacks.values()),
        "vocabulary": {"source": sizes[0], "target": sizes[1]},
        "parameters": _parameters(model),
        "schedule": _schedule(config.train),
        "notes": config.train.unused_options(),
    }


def _parameters(model: Transformer) -> dict[str, int]:
    """Numbers by part, tied matrices once, under the first that holds them."""
    parts = {"total": model.parameter_count()}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    norms = {id(p): p for part in model.modules() if isinstance(part, Norm) for p in part.parameters()}
    parts["of these in norms"] = sum(parameter.numel() for parameter in norms.values())
    return parts


def _schedule(train: TrainConfig) -> dict[str, Any]:
    """Learning rates at telling updates; only the warm-up's where the rest hangs on the last update."""
    entry = SCHEDULES.entry(train.schedule)
    hangs_on_data = train.epochs is not None and train.depends_on_end
    schedule = make_schedule(train, FAR if hangs_on_data else train.updates)
    last = schedule.first if hangs_on_data else train.updates or FAR
    updates = {1, 10, 100, schedule.first} | ({last} if last != FAR else set())
    return {
        "schedule": entry.name,
        "equation": entry.equation,
        "peak": train.lr,
        "warmup": train.warmup,
        "last_update": train.updates,
        "depends_on_data": hangs_on_data,
        "learning_rate": {
            str(update): schedule.learning_rate(update) for update in sorted(updates) if update <= last
        },
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts for people."""
    lines = [line for name in SUBLAYERS for line in stack_text(name, facts[name])]
    if facts["qk_norm"] != ModelConfig.model_fields["qk_norm"].default:
        entry = QK_NORMS.entry(facts["qk_norm"])
        lines.append(f"queries and keys: {entry.title}, {entry.equation}")
    if facts["attention_window"] is not None:
        lines.append(f"the decoder's self-attention sees the last {facts['attention_window']} columns")
    if facts["fix_norm"]:
        lines.append("token embeddings are divided by their length, in the output projection too")
    if facts["calibrated"]:
        lines.append("some initial values are set by the first batch, before the first update")
    sizes, parameters, schedule = facts["vocabulary"], facts["parameters"], facts["schedule"]
    lines.append(f"norms: {facts['norms']}")
    lines.append(
        f"parameters: {parameters['total']:,} (vocabulary {sizes['source']:,} and {sizes['target']:,})"
    )
    lines += [f"    {part:<18} {count:>12,}" for part, count in parameters.items() if part != "total"]
    peak = f"peak {schedule['peak']:g}, warm-up {schedule['warmup']}"
    lines.append(f"schedule {schedule['schedule']}: {schedule['equation']}, {peak}")
    names: dict[str, list[str]] = {
        str(max(schedule["warmup"], 1)): ["end of warm-up" if schedule["warmup"] else "no warm-up"]
    }
    if schedule["last_update"] is not None:
        names.setdefault(str(schedule["last_update"]), []).append("last")
    for update, rate in schedule["learning_rate"].items():
        lines.append(f"    update {int(update):>7,}  {rate:.6g}  {', '.join(names.get(update, []))}".rstrip())
    if schedule["depends_on_data"]:
        lines.append("    update    last  and the rates of the decay follow from the data (train.epochs)")
    elif schedule["last_update"] is None:
        lines.append("    update    last  follows from train.epochs and the data, or from train.minutes")
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"])])
