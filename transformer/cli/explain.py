"""python -m transformer explain CONFIG|RUN [flags]: what a configuration means, before any training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.loading import load
from ..data.tokenizer import load_tokenizers
from ..model.config import ModelConfig, Stack
from ..model.transformer import Transformer
from ..modules.norms import NORMS, Norm
from ..modules.placements import PLACEMENTS
from ..training.config import TrainConfig
from ..training.schedules import SCHEDULES, make_schedule
from .command import MODEL_FLAGS, Parser, command
from .config import Config
from .resolve import config_file_of
from .runs import TOKENIZERS

FAR = 2**53  # stands for a last update that is not known: the warm-up does not depend on it
SLOTS: dict[Stack, tuple[str, ...]] = {
    "encoder": ("self_attention", "feed_forward"),
    "decoder": ("self_attention", "cross_attention", "feed_forward"),
}


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
    facts = explain(config, _vocabularies(config, path / TOKENIZERS))
    print(json.dumps(facts, indent=2, ensure_ascii=False) if arguments.json else as_text(facts))
    return 0


def _vocabularies(config: Config, tokenizers: Path) -> tuple[int, int]:
    """Sizes of source and target vocabulary: a run's own, else what the configuration asks for."""
    asked = config.data.tokenizer
    if tokenizers.is_dir() or asked.path is not None:
        source, target = load_tokenizers(tokenizers if tokenizers.is_dir() else str(asked.path))
        return source.size, target.size
    if asked.joint:
        return asked.vocab_size, asked.vocab_size
    return asked.source_vocab_size or asked.vocab_size, asked.target_vocab_size or asked.vocab_size


def explain(config: Config, sizes: tuple[int, int]) -> dict[str, Any]:
    """Facts about a configuration, for programs."""
    with torch.device("meta"):  # shapes without numbers
        model = Transformer(*sizes, config.model)
    stacks = {stack: _stack(model, config.model, stack) for stack in SLOTS}
    return {
        "encoder": stacks["encoder"],
        "decoder": stacks["decoder"],
        "norms": sum(stack["norms"] for stack in stacks.values()),
        "vocabulary": {"source": sizes[0], "target": sizes[1]},
        "parameters": _parameters(model),
        "schedule": _schedule(config.train),
        "notes": config.train.unused_options(),
    }


def _stack(model: Transformer, config: ModelConfig, stack: Stack) -> dict[str, Any]:
    placement = PLACEMENTS.entry(config.placement_of(stack))
    norm = NORMS.entry(config.norm_of(stack))
    module = model.encoder if stack == "encoder" else model.decoder
    first = [residual for residual, _ in module.sites()][: len(SLOTS[stack])]
    return {
        "layers": config.encoder_layers if stack == "encoder" else config.decoder_layers,
        "placement": placement.name,
        "title": placement.title,
        "source": placement.paper,
        "norm": norm.name,
        "norm_title": norm.title,
        "norm_equation": norm.equation,
        "sublayers": {
            slot: {
                "equation": _equation(placement.equation, slot),
                "alpha": site.gains.alpha,
                "beta": site.gains.beta,
            }
            for slot, site in zip(SLOTS[stack], first, strict=False)
        },
        "final_norm": placement.value.final_norm and norm.value.normalises,
        "output": placement.value.closing,
        "norms": sum(isinstance(part, Norm) and part.normalises for part in module.modules()),
    }


def _equation(general: str, slot: str) -> str:
    """The placement's equation with this sublayer for its f."""
    arguments = "memory, " if slot == "cross_attention" else ""
    return re.sub(r"\bf\(", f"{slot}({arguments}", general)


def _parameters(model: Transformer) -> dict[str, int]:
    """Numbers by part, tied matrices once, under the first that holds them."""
    parts = {"total": model.parameter_count()}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    norms = [part for part in model.modules() if isinstance(part, Norm)]
    parts["of these in norms"] = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
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
    lines = []
    for name in SLOTS:
        stack = facts[name]
        lines.append(f"{name}: {stack['layers']} layers, placement {stack['placement']} ({stack['title']})")
        lines.append(f"    LN = {stack['norm_title']}: {stack['norm_equation']}")
        for slot, sublayer in stack["sublayers"].items():
            gains = [f"{gain} = {sublayer[gain]:.4g}" for gain in ("alpha", "beta") if sublayer[gain] != 1]
            lines.append(
                f"    {slot:<16} {sublayer['equation']}" + (f"   with {', '.join(gains)}" if gains else "")
            )
        decision = "yes" if stack["final_norm"] else "no"
        lines.append(
            f"    final norm: {decision}, the stack's output is {stack['output']}; norms: {stack['norms']}"
        )
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
