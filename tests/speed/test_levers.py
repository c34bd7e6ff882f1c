"""benchmarks/levers.py: with a lever off, training and translation are the same, only slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks import attention, lever_checks, lever_training, levers
from transformer.model.transformer import Transformer
from transformer.modules import attention as attention_module
from transformer.modules.products import multiply
from transformer.training import loss as loss_module
from transformer.training.trainer import Trainer

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


class AsItIs:
    """In place of a compiled model, which takes long to make; what compiling does is tested elsewhere."""

    calls = 0

    def __init__(self, model: Transformer, backend: str) -> None:
        self.model = model

    def __call__(self, source: Tensor, target_in: Tensor) -> Tensor:
        AsItIs.calls += 1
        return self.model.hidden(source, target_in)


@pytest.fixture(scope="module", params=["auto", "float32"])
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    yield levers.trainer_of("tiny", tmp_path_factory.mktemp("run"), DEMO, 1, request.param)
    lever_training.compiled_once.cache_clear()


def batches_of(trainer: Trainer, number: int = 2) -> list[Any]:
    return list(islice(trainer.stream.epoch(1), number))


def test_the_training_has_the_precision_that_was_asked_for(trainer: Trainer) -> None:
    assert trainer.config.precision == "float32" or trainer.passes.dtype in lever_checks.NEAR


@pytest.mark.parametrize("name", lever_training.LEVERS)
def test_every_lever_of_training_is_checked_and_timed(
    name: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lever = lever_training.LEVERS[name]
    if trainer.passes.dtype in lever.idle:
        pytest.skip("nothing to switch")
    monkeypatch.setattr(lever_training, "Compiled", AsItIs)
    monkeypatch.setattr(AsItIs, "calls", 0)
    weights = trainer.model.output_weight.detach().clone()
    lever_checks.check(trainer, lever, batches_of(trainer))
    assert torch.equal(weights, trainer.model.output_weight), "a check leaves nothing behind"
    made = levers.training_row(trainer, lever, batches_of(trainer, 1), rounds=1)
    assert made.startswith(f"| {lever.text} | ")
    assert made.count("|") == 6
    assert "not measured" not in made or lever.missing()
    assert AsItIs.calls == (4 if name == "compile" else 0), "two checks, and two rounds"


def test_every_row_of_training_is_there(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "training_row", lambda _, lever, *__: lever.text)
    monkeypatch.setattr(levers, "speed", lambda *_: 1.0)
    rows = list(levers.training_rows(trainer, updates=1, rounds=1))
    idle = [lever.text for lever in lever_training.LEVERS.values() if trainer.passes.dtype in lever.idle]
    texts = [lever.text for lever in lever_training.LEVERS.values() if lever.text not in idle]
    assert rows[:-1] == texts
    assert rows[-1] == f"| {lever_checks.BUCKETS} | 1.00 | 1.00 to 1.00 | 1 | 1 |"
    assert list(levers.training_rows(trainer, 1, 1, only="Adam")) == [t for t in texts if "Adam" in t] != []
    assert list(levers.training_rows(trainer, 1, 1, only="like length")) == rows[-1:]


def halved(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    loss, nll = lever_training.naive_loss(hidden, weight, targets, smoothing)
    return loss / 2, nll


def no_update(trainer: Trainer) -> AbstractContextManager[object]:
    return patch.object(type(trainer.optimizer), "step", lambda self: None)


@pytest.mark.parametrize(
    ("off", "complaint"),
    [(lever_training.instead_of_loss(halved), "gradients differ"), (no_update, "an update differs")],
)
def test_a_way_that_computes_something_else_is_not_timed(
    off: Any, complaint: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "config", trainer.config.model_copy(update={"clip": 0.0}))
    with pytest.raises(AssertionError, match=f"wrong: {complaint}"):
        levers.training_row(trainer, lever_training.Lever("wrong", off), batches_of(trainer), 1)


def test_pairs_in_random_order_are_the_same_pairs(trainer: Trainer) -> None:
    batches = batches_of(trainer, 3)
    other = lever_checks.in_random_order(batches, 256)
    assert sum(batch.target_tokens for batch in other) == sum(batch.target_tokens for batch in batches)
    assert max(batch.target_out.numel() for batch in other) <= 256


def test_batches_made_when_asked_are_those_made_ahead(trainer: Trainer) -> None:
    ahead = list(islice(lever_training.endless(trainer.stream), 3))
    with lever_training.made_when_asked(trainer):
        asked = list(islice(lever_training.endless(trainer.stream), 3))
    lever_training.endless.cache_clear()
    for one, other in zip(ahead, asked, strict=True):
        assert torch.equal(one.source, other.source)
        assert torch.equal(one.target_out, other.target_out)


def test_probe_and_log_are_read_at_each_update_with_the_lever_off(trainer: Trainer) -> None:
    lever, lines = lever_training.LEVERS["due"], []
    trainer.progress.update = 1
    with (
        lever.both(trainer),
        patch.object(trainer.logbook, "training", lambda *_: lines.append("log")),
        patch.object(trainer.logbook, "probe", lambda *_: lines.append("probe")),
    ):
        lever.run(trainer, batches_of(trainer))
        assert lines == []
        with lever.off(trainer):
            lever.run(trainer, batches_of(trainer))
    assert lines == ["probe", "log"] * 2


def test_chunks_of_the_loss_are_multiplied_one_by_one_with_the_lever_off(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products for all chunks, one for each factor's gradient, and two for each of three or more."""
    batch = batches_of(trainer, 1)
    tokens = batch[0].target_tokens
    monkeypatch.setattr(loss_module, "_CHUNK", {"cpu": len(trainer.model.output_weight) * (tokens // 3)})
    calls = {}
    for name, switch in (("on", lever_training.unchanged), ("off", lever_training.LEVERS["groups"].off)):
        with (
            patch.object(loss_module, "multiply", wraps=multiply) as told,
            lever_checks.put_back(trainer),
            switch(trainer),
        ):
            trainer.step(batch)
        calls[name] = told.call_count
    assert calls["off"] - calls["on"] >= 2 * 3 - 2


def test_rows_of_softmax_are_as_they_are_with_the_lever_off(trainer: Trainer) -> None:
    for switch in (lever_training.LEVERS["rows"].off, lever_training.unchanged):
        with (
            patch.object(attention_module, "softmax", wraps=attention_module.softmax) as told,
            lever_checks.put_back(trainer),
            switch(trainer),
        ):
            trainer.step(batches_of(trainer, 1))
        assert told.called == (switch is lever_training.unchanged)


# --- the command


def test_the_command_prints_a_table_and_keeps_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*_: object) -> Iterator[str]:
        yield "| one | 1.00 | 1.00 to 1.00 | 1 | 1 |"
        raise KeyboardInterrupt

    monkeypatch.setattr(levers, "rows_of", rows)
    monkeypatch.setattr(levers, "keep_freed_memory", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        levers.main(["--task", "translate", "--shape", "tiny", "--write", str(tmp_path / "table.md")])
    assert (tmp_path / "table.md").read_text().splitlines()[0].endswith("| sentences/s with | without |")
    assert "| one | 1.00" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        levers.main(["--precision", "int8"])
    assert "nothing is trained in int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(["--rounds", "0"], ["--updates", "0"], ["--sentences", "0"], ["--threads", "0"]),
        *(["--beam", "0", "--task", "translate"], ["--beam", "1001"]),
        *(["--config", "no/such.yaml"], ["--write", "no/such/table.md"]),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(levers, "rows_of", None)
    with pytest.raises(SystemExit) as refused:
        levers.main(words)
    assert refused.value.code == 2
    assert f"error: argument {words[0]}: " in capsys.readouterr().err


def test_a_configuration_that_is_wrong_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(levers, "keep_freed_memory", lambda: True)
    (tmp_path / "odd.yaml").write_text("modell: {}\n")
    assert levers.main(["--shape", "tiny", "--config", str(tmp_path / "odd.yaml")]) == 2
    assert "modell" in capsys.readouterr().err


def test_attention_explains_itself_without_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "SHAPES", None)
    for words, code in ((["--help"], 0), (["--rounds", "3"], 2)):
        with pytest.raises(SystemExit) as ended:
            attention.main(words)
        assert ended.value.code == code
    assert "torch's kernel beside the plain products" in capsys.readouterr().out
