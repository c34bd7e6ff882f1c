"""python -m transformer probe NAME [CONFIG|RUN]: measure models at initialisation, or a trained one."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.finding import Finding, as_json, as_text, figure_format, new_figure, save_figure
from ..analysis.probes import PROBES, Arm, Batch, Probe, arms, random_batches, real_batches, to_device
from ..core.configuration import Section
from ..core.errors import CheckpointError, ConfigError
from ..core.loading import Override, load
from ..core.options import options
from ..core.registry import unknown
from ..core.rundir import CHECKPOINTS, RESULT, TOKENIZERS
from ..core.signature import options_of
from .command import EXIT_CODES, Parser, command, whole_number
from .config import Config
from .explain import vocabularies
from .probe_flags import OPTION, items_of, number_of, plans_of, seeds_of, split_overrides
from .resolve import config_file_of, run_config
from .result import commit, how_it_ended, versions
from .runs import pick_device, weights_file

FEW = Probe.batches
# What a probe measures without a configuration: seconds on a CPU, and layers enough to tell a law of growth.
SMALL = {
    "model": {"d_model": 128, "d_ff": 512, "heads": 4, "encoder_layers": 6, "decoder_layers": 6},
    "data": {"tokenizer": {"vocab_size": 2000}},
}
SMALL_WORDS = "a small model: 6+6 layers, d_model 128, d_ff 512, 4 heads, vocabulary 2000"


@command
def main(argv: Sequence[str]) -> int:
    """Measure and print: table, summary, words; JSON and a figure where asked for."""
    parser = Parser(
        "probe",
        "Measure models: gradients, streams, updates, ... Without NAME: what can be measured.",
        _epilog,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(PROBES)}")
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG|RUN",
        help=f"a configuration file, or a run directory (default: the demo corpus and {SMALL_WORDS})",
    )
    parser.add_argument("--placements", default="", metavar="A,B", help="arms: placements to compare")
    parser.add_argument("--norms", default="", metavar="A,B", help="arms: norms to compare")
    parser.add_argument("--depths", default="", metavar="N,M", help="arms: layers of encoder and of decoder")
    parser.add_argument("--seeds", metavar="N|A,B", help="how many, or which (default: 3); not of a run")
    parser.add_argument("--random", action="store_true", help="random tokens instead of training text")
    own = "".join(f", {e.value.batches} for {e.name}" for e in PROBES.entries() if e.value.batches != FEW)
    parser.add_argument("--batches", type=whole_number, help=f"how many (default: {FEW}{own})")
    parser.add_argument("--tokens", type=whole_number, default=1024, help="of a batch's side (default: 1024)")
    parser.add_argument("--length", type=whole_number, default=24, help="of random sentences (default: 24)")
    parser.add_argument("--checkpoint", help="other weights of a run: last, update-0000500, or a file")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:0, ... (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the finding for programs")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the figure (or .svg, .pdf)")
    parser.add_options({})
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        print(_listing())
        return 0
    _check_files(arguments)
    for name in ("batches", "tokens", "length"):
        number = getattr(arguments, name)
        if number is not None and number < (4 if name == "length" else 1):
            raise ConfigError(f"--{name} {number}: too few")
    finding = _measure(arguments, f"{parser.prog} {shlex.join(argv)}")
    print(as_text(finding))
    _write(finding, arguments)
    return 0


def _measure(arguments: Namespace, command_line: str) -> Finding:
    """Measure the arms; its facts are those it takes to repeat it, then the probe's own."""
    if arguments.name not in PROBES:
        raise ConfigError(unknown("probe", arguments.name, PROBES))
    built = PROBES[arguments.name]
    own, others = split_overrides(arguments.overrides)
    path = None if arguments.config is None else Path(arguments.config)
    run = path if path is not None and path.is_dir() else None
    if path is None:
        others = [*(Override((name,), own, "without CONFIG") for name, own in SMALL.items()), *others]
    config = load(Config, config_file_of(path) if run is not None and path is not None else path, others)
    device = pick_device(arguments.device)
    probe, own_options = _built(built, own)
    chosen = _arms(arguments, config, built, run, others)
    if chosen[0].weights is not None and arguments.seeds is not None:
        raise ConfigError(f"--seeds: {run} was trained with one seed; leave it out")
    seeds = seeds_of("3" if arguments.seeds is None else arguments.seeds)
    arguments.batches = built.batches if arguments.batches is None else arguments.batches
    if chosen[0].weights is not None:
        seeds = [config.seed]
    batches, sizes, text = _batches(arguments, config, run)
    _say(f"{len(batches)} batches of {text}, {sum(_count(batch) for batch in batches):,} target tokens")
    finding = probe.run(chosen, [to_device(batch, device) for batch in batches], sizes, seeds, _say)
    setting = {
        "of": text,
        "seed": config.seed,
        "batches": len(batches),
        "batch_tokens": arguments.tokens,
        "length": arguments.length if arguments.random else None,
        "tokens": [_count(batch) for batch in batches],
        "vocabulary": list(sizes),
        "device": str(device),
    }
    again = {
        "command": command_line,
        "commit": commit(),
        "versions": versions(),
        "options": own_options,
        "seeds": seeds,
        "setting": setting,
        "arms": [_facts_of(arm) for arm in chosen],
    }
    return replace(finding, facts=again | finding.facts)


def _facts_of(arm: Arm) -> dict[str, Any]:
    """What was measured: the model whole, and the options of its placements and norms, defaults included."""
    return {
        "label": arm.label,
        "weights": arm.weights and str(arm.weights),
        "model": arm.config.model_dump(mode="json"),
        "options": arm.config.resolved_options(),
    }


def _check_files(arguments: Namespace) -> None:
    """What stands in the way of the files is better known before the measurement."""
    if arguments.png is not None:
        figure_format(arguments.png)
        new_figure()
    for flag in ("png", "json"):
        file = getattr(arguments, flag)
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"--{flag} {file}: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise ConfigError(f"--{flag} {file}: is a folder; name a file")


def _built(probe: type[Probe], own: Sequence[str | Override]) -> tuple[Probe, dict[str, Any]]:
    """The probe, and all of its options; problems name them as `--set` does."""
    try:
        values = dict(load(options_of(probe), None, own))
        return probe(**values), values
    except ConfigError as error:
        named = [replace(problem, path=f"{OPTION}.{problem.path}".rstrip(".")) for problem in error.problems]
        raise ConfigError(named) from None


def _arms(
    arguments: Namespace, config: Config, probe: type[Probe], run: Path | None, overrides: Sequence[Any]
) -> list[Arm]:
    """The arms that the flags ask for; of a run whose weights are measured, the run itself."""
    asked = {flag: getattr(arguments, flag) for flag in ("placements", "norms", "depths")}
    trained = run is not None and probe.checkpoint and not any(asked.values())
    if arguments.checkpoint and not trained:
        raise ConfigError(
            "--checkpoint needs a run directory, a probe that measures trained weights and no other arms"
        )
    chosen = arms(
        config.model,
        plans_of("--placements", asked["placements"]),
        plans_of("--norms", asked["norms"]),
        [number_of("--depths", depth) for depth in items_of(asked["depths"])],
    )
    if run is None or not trained:
        if run is not None:
            _say(f"initial values: {run} gives its configuration, tokenizer and text")
        return chosen
    if config.model != run_config(run).model:
        raise ConfigError(f"{run} was trained as another model; leave out --set model...")
    file = weights_file(run, arguments.checkpoint)
    if not file.exists():
        kept = run / CHECKPOINTS
        there = [path.stem for path in sorted(kept.glob("*.safetensors"))]
        there += ["last"] if weights_file(run, "last").is_file() else []
        why = how_it_ended(run) if arguments.checkpoint is None and (run / RESULT).exists() else ""
        has = f"--checkpoint may be {', '.join(there)}" if there else f"there are none in {kept}"
        raise CheckpointError("; ".join(filter(None, (f"{file}: no such weights", why, has))))
    return [
        Arm(
            f"{chosen[0].label}, {Path(arguments.checkpoint).stem if arguments.checkpoint else run.name}",
            config.model,
            file,
        )
    ]


def _batches(
    arguments: Namespace, config: Config, run: Path | None
) -> tuple[list[Batch], tuple[int, int], str]:
    """Batches, the sizes of the vocabularies, and what the batches are in words."""
    tokenizers = None if run is None else run / TOKENIZERS
    if arguments.random:
        sizes = vocabularies(config, tokenizers)
        sentences = max(arguments.tokens // arguments.length, 1)
        drawn = random_batches(arguments.batches, sentences, arguments.length, min(sizes), config.seed)
        return drawn, sizes, "random tokens"
    batches, sizes = real_batches(
        config.data, arguments.batches, arguments.tokens, config.seed, _say, tokenizers
    )
    return batches, sizes, " + ".join(config.data.train)


def _count(batch: Batch) -> int:
    return int((batch[2] != 0).sum())


def _write(finding: Finding, arguments: Namespace) -> None:
    if arguments.json is not None:
        text = json.dumps(as_json(finding), indent=1, ensure_ascii=False) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.png is not None:
        save_figure(finding, arguments.png)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listing() -> str:
    lines = []
    for entry in PROBES.entries():
        lines.append(f"{entry.name}: {entry.title}")
        details = [entry.equation, entry.paper, entry.note]
        details += [_option_text(options_of(entry.value))] if options(options_of(entry.value)) else []
        for detail in filter(None, details):
            lines += [textwrap.indent(part, "    ") for part in detail.splitlines()]
    return "\n".join(lines)


def _option_text(section: type[Section]) -> str:
    shown = (f"--set {OPTION}.{o.key}={json.dumps(o.default)}: {o.help}" for o in options(section))
    return "\n".join(line.replace('"', "") for line in shown)


def _epilog() -> str:
    return f"{_listing()}\n\n{EXIT_CODES}"
