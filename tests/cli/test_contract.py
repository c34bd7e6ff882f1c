"""Resume as a contract: the end is the straight run's, and what may change is exactly what is documented."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from transformer.cli.config import Config
from transformer.cli.resolve import CHANGEABLE, resumed_config, run_config
from transformer.cli.train import main as train
from transformer.cli.translate import main as translate
from transformer.core.configuration import Section
from transformer.core.errors import CheckpointError, ConfigError
from transformer.training.states import find_training
from transformer.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CLOCKS = {"seconds", "target_tokens_per_second", "tokens_per_second", "commit", "command"}
# Everything that a resumed run has to remember: pieces drawn anew each epoch, micro-batches, counters of
# patience and of the schedule, weights to average.
ALIVE = [
    *("data.tokenizer.sampling=0.2", "train.accumulate=2", "train.schedule=plateau", "train.factor=0.5"),
    *("train.plateau_patience=1", "train.patience=4", "train.average=3", "train.validate_every=3"),
    *("train.save_every=2", "train.updates=14", "train.threads=1", "train.log_every=4"),
]


def flags(settings: Sequence[str]) -> list[str]:
    return [f"--set={setting}" for setting in settings]


def result_of(run: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((run / "result.json").read_text()).items() if k not in CLOCKS}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def states_of(run: Path) -> dict[int, str]:
    """Update: hash, as the log says at each save; each load says one that was saved."""
    log, found = (run / "log.txt").read_text(), dict[int, str]()
    for digest, update in re.findall(r"state (\w{16}) after update (\d+)$", log, re.MULTILINE):
        assert found.setdefault(int(update), digest) == digest, f"two states after update {update}"
    for digest in re.findall(r"resumed after update \d+, state (\w+)", log):
        assert re.search(f"state {digest} after update", log)
    return found


@pytest.fixture(scope="module")
def straight(config: str, folder: Path) -> Path:
    run = folder / "straight"
    assert train([config, "--run-dir", str(run), *flags(ALIVE)]) == 0
    return run


@pytest.mark.parametrize(
    "cuts", [(1, 6), *(pytest.param(c, marks=pytest.mark.slow) for c in ((3,), (5, 9))), (8, 14)], ids=str
)
def test_interrupted_anywhere_the_end_and_every_hash_are_the_straight_runs(
    cuts: Sequence[int], straight: Path, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", Trainer.step
    start = [config, "--run-dir", str(run), *flags(ALIVE)]
    for cut in cuts:

        def step_and_signal(trainer: Trainer, batches: Sequence[Any], cut: int = cut) -> None:
            step(trainer, batches)
            if trainer.progress.update == cut:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", step_and_signal)
            assert train(start) == 130
        assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
        start = ["--resume", str(run)]
    assert train(start) == 0
    assert result_of(run) == result_of(straight)
    assert metrics_of(run) == metrics_of(straight)
    ours, theirs = states_of(run), states_of(straight)
    assert ours.keys() - theirs.keys() <= set(cuts)
    assert {update: ours[update] for update in theirs} == theirs
    last, other = (find_training(r / "checkpoints" / "last").hash for r in (run, straight))
    assert last == other is not None
    assert (run / "tests" / "held.hyp").read_bytes() == (straight / "tests" / "held.hyp").read_bytes()


def options(section: type[Section] | Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every option of a configuration."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# Another value that is legal by itself, where none can be made up.
OTHERS: dict[str, str] = {
    "train.optimizer": "sgd",
    "train.schedule": "constant",
    "train.momentum": "0.5",
    "train.betas": "[0.8, 0.9]",
    "train.drops": "[0.3]",
    "train.precision": "bf16",
    "train.metric": "loss",
    "train.warmup_init_lr": "1e-4",
    "train.timescale": "5000",
    "train.floor": "1e-5",
    "train.epochs": "3",
    "train.minutes": "9",
    "model.placement": "post",
    "model.norm": "rms",
    "model.norm_options": "{elementwise: false}",
    "model.placement_options": "{scale: 3}",
    "model.qk_norm": "l2",
    "model.activation": "gelu",
    "model.positions": "learned",
    "model.tie_embeddings": "all",
    "model.embedding_norm": "true",
    "model.attention_window": "3",
    "model.embedding_dropout": "0.2",
    "model.d_model": "32",
    "model.heads": "4",
    "data.source": "fr",
    "data.target": "fr",
    "data.train": "elsewhere",
    "train.parallel": "fsdp",
    "data.test": "{other: elsewhere}",
    "data.max_ratio": "3",
    "data.tokenizer.type": "unigram",
    "data.tokenizer.joint": "false",
    "data.tokenizer.normalization": "nfkc",
    "data.tokenizer.sampling_side": "source",
    "data.tokenizer.path": "elsewhere",
    "data.tokenizer.source_vocab_size": "50",
    "data.tokenizer.target_vocab_size": "50",
    "data.tokenizer.character_coverage": "0.99",
}


# What makes such a value legal; it is refused as well.
ALONG = {"train.validate_bleu": ["train.metric=loss"]}


def other_than(key: str, value: Any) -> str:
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str(value / 2 if value else 0.25)
    assert isinstance(value, str), f"{key}: give another value in OTHERS"
    return "elsewhere"


def test_every_option_is_refused_by_name_or_may_change_as_documented(run: Path) -> None:
    written = run_config(run)
    keys, unnamed = dict(options(written)), list[tuple[str, str]]()
    for key, value in keys.items():
        if not key.startswith(("train.", "model.", "data.", "seed")):
            continue
        settings = [f"{key}={other_than(key, value)}", *ALONG.get(key, [])]
        if key in CHANGEABLE:
            changed = dict(options(resumed_config(run, settings)))
            assert {k for k in keys if changed[k] != keys[k]} == {key}
        else:
            with pytest.raises(ConfigError) as caught:
                resumed_config(run, settings)
            if key not in str(caught.value):
                unnamed.append((key, str(caught.value)))
    assert not unnamed


def test_the_documented_options_are_those_that_may_change() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"^\| (`train.*?) \|", page, re.MULTILINE))
    named = set(re.findall(r"`(train\.\w+)`", first_cells))
    assert named == set(CHANGEABLE)
    assert set(CHANGEABLE) <= {key for key, _ in options(Config())}


@pytest.mark.parametrize(
    "change", ["data.max_length=100", "data.tokenizer.sampling=0.3", "decode.beam=3", "train.clip=2"]
)
def test_a_configuration_edited_by_hand_is_held_against_the_checkpoint(
    run: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Edited and unsealed as the message advises; what decides numbers is still refused, by name."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    key, _, value = change.partition("=")
    section, *_, name = key.split(".")
    file = copy / "config.yaml"
    text = file.read_text()
    head, mark, tail = text.partition(f"\n{section}:")
    edited = head + mark + re.sub(rf"(\n +{name}:) .*", rf"\1 {value}", tail, count=1)
    assert edited != text
    file.write_text(edited)
    assert train(["--resume", str(copy)]) == 1
    assert "config.yaml: damaged or edited" in capsys.readouterr().err
    file.write_text(edited.partition("\n")[2])
    assert train(["--resume", str(copy)]) == 1
    message = capsys.readouterr().err
    assert "a run can only go on with what it was started with" in message
    assert ".".join(key.split(".")[:2]) in message


def test_what_changed_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "metrics.jsonl").write_bytes(b"\xff{\n" + (copy / "metrics.jsonl").read_bytes()[3:])
    assert train(["--resume", str(copy), "--set", "train.updates=11", "--set", "train.log_every=3"]) == 0
    message = capsys.readouterr().err
    assert "note: train.updates was 10 until here, and is 11 from here on" in message
    assert "note: train.log_every was 5 until here, and is 3 from here on" in message
    assert "metrics.jsonl is not what was written until here" in message


def test_a_damaged_best_stops_nothing_that_does_not_need_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("checkpoints/best.safetensors", "model.safetensors"):
        (copy / name).write_bytes(b"no")
    assert train(["--resume", str(copy)]) == 0  # another file has the same weights
    assert result_of(copy) == result_of(run)
    for path in (*copy.glob("checkpoints/*.safetensors"), copy / "model.safetensors"):
        path.write_bytes(b"no")
    shutil.rmtree(copy / "checkpoints" / "previous")
    capsys.readouterr()
    code = train(["--resume", str(copy)])
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert code == 1
    assert "Put back a copy of" in message
    assert train(["--resume", str(copy), "--set", "train.updates=30"]) == 0  # better ones made it needless


def test_other_pieces_or_another_shape_are_no_model_of_this_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, source = tmp_path / "copy", tmp_path / "source"
    shutil.copytree(run, copy)
    source.write_text("one\n")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("heads: 2", "heads: 4"))  # the same tensors
    assert translate([str(copy), "--input", str(source)]) == 1
    assert "trained with model.heads = 2" in capsys.readouterr().err
    (copy / "config.yaml").write_text(text)
    pieces = copy / "tokenizer" / "joint.model"
    pieces.write_bytes(pieces.read_bytes() + b"\x00")
    assert translate([str(copy), "--input", str(source)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises((CheckpointError, ConfigError)):
        resumed_config(copy / "gone", [])
