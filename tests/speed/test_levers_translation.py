"""benchmarks/levers.py --task translate: with a lever off, translations are as good, only slower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, count, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks import lever_translation, lever_translation_checks, levers
from benchmarks.lever_setting import Setting, Task
from transformer.cli.train import main as train
from transformer.core.errors import CheckpointError
from transformer.decoding.cache import DecoderCache
from transformer.decoding.columns import BLOCK, SelfAttentionCache, SharedColumns
from transformer.model.packing import can_be_packed
from transformer.modules import attention, int8, packed
from transformer.modules.attention import KeysValues
from transformer.training.trainer import Trainer

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module", params=["auto", pytest.param("float32", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A model of its own that has learnt something: where many translations are nearly as good, as with
    initial weights, number formats choose differently.
    """
    trainer = levers.trainer_of("tiny", tmp_path_factory.mktemp("run"), DEMO, 1, request.param)
    for batch in islice(chain.from_iterable(map(trainer.stream.epoch, count(1))), 60):
        trainer.step([batch])
    return trainer


@pytest.fixture
def setting(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(lever_translation_checks, "CHECKED", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    corpus = trained.stream.corpus  # type: ignore[attr-defined]
    return levers.setting_of(trained.model, corpus, 3, str(trained.config.precision), 8)


@pytest.mark.parametrize("name", lever_translation.LEVERS)
def test_every_lever_of_translation_is_checked_and_timed(name: str, setting: Setting) -> None:
    lever = lever_translation.LEVERS[name]
    made = levers.translation_row(lever, setting, rounds=1)
    assert made.startswith(f"| {lever.text} | ")
    assert made.count("|") == 6
    assert "not measured" not in made or lever.missing(setting)


@pytest.mark.parametrize("name", ["shared", "leaving"])
def test_off_it_is_off(name: str, setting: Setting) -> None:
    """The rows that cross-attention's keys have, step by step, as the cache tells them."""
    lever, seen = lever_translation.LEVERS[name], []
    select = DecoderCache.select

    def told(self: DecoderCache, rows: Tensor) -> Tensor | None:
        kept = select(self, rows)
        seen.append((self.gathered is not None, self.sentences))
        return kept

    found = []
    for switch in (nullcontext, lever.off):
        seen.clear()
        with patch.object(DecoderCache, "select", told), lever_translation.one_batch_at_a_time(), switch():
            setting.task().run()
        gathered, sentences = zip(*seen, strict=True)
        found.append(any(gathered[:1]) if name == "shared" else len(set(sentences)) > 1)
    assert found == ([False, False] if name == "shared" else [True, False])


def test_off_rows_have_columns_of_their_own(setting: Setting) -> None:
    lever, shared = lever_translation.LEVERS["columns"], []
    append = SharedColumns.append

    def told(self: SharedColumns, new: KeysValues) -> tuple[Tensor, KeysValues]:
        shared.append(True)
        return append(self, new)

    for switch in (lever.off, nullcontext):
        assert not shared
        with patch.object(SharedColumns, "append", told), lever_translation.one_batch_at_a_time(), switch():
            setting.task().run()
    assert shared


@pytest.mark.parametrize(
    ("name", "module", "fast"),
    [
        ("rows", attention, "softmax"),
        ("written out", attention, "softmax"),
    ],
)
def test_off_the_fast_function_is_not_called(name: str, module: Any, fast: str, setting: Setting) -> None:
    for switch in (lever_translation.LEVERS[name].off, nullcontext):
        with (
            patch.object(module, fast, wraps=getattr(module, fast)) as told,
            lever_translation.one_batch_at_a_time(),
            lever_translation.LEVERS[name].both(),
            switch(),
        ):
            setting.task().run()
        assert told.called == (switch is nullcontext)


def test_off_lines_are_cut_as_they_come(setting: Setting) -> None:
    """And no batch is above the budget that those of like length keep."""
    task, found = setting.task(), []
    task.config = task.config.model_copy(update={"batch_tokens": 200})

    def told(self: Any, batches: Sequence[Any], config: Any) -> Any:
        found.append(batches)
        return [self.search(batch, config) for batch in batches]

    for switch in (lever_translation.LEVERS["sorted"].off, nullcontext):
        with patch.object(type(task.engine), "search_all", told), switch():
            task.run()
    numbers = [[request.number for batch in batches for request in batch] for batches in found]
    assert numbers[0] == sorted(numbers[1])
    assert numbers[1] != numbers[0]
    for batches in found:
        assert len(batches) > 1
        assert all(3 * len(batch) * max(len(r.source) + 1 for r in batch) <= 200 for batch in batches)


def test_off_buffers_have_no_room_to_spare(setting: Setting) -> None:
    """Of rows with columns of their own: as many as there are, or the next whole block."""
    room: dict[bool, set[int]] = {True: set(), False: set()}
    make_room = SelfAttentionCache._make_room

    for on in (False, True):

        def told(self: SelfAttentionCache, like: Tensor, columns: int, held: int, on: bool = on) -> None:
            make_room(self, like, columns, held)
            room[on].add(self._buffers[0].shape[2] - columns)

        off = nullcontext if on else lever_translation.LEVERS["growing"].off
        own = lever_translation.columns_of_their_own
        with (
            patch.object(SelfAttentionCache, "_make_room", told),
            lever_translation.one_batch_at_a_time(),
            own(),
            off(),
        ):
            setting.task().run()
    assert room[False] == {0}
    assert room[True] == set(range(BLOCK))


def test_off_the_vocabularys_weight_is_as_it_is(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "has_wide_vectors", lambda: False)
    table = torch.randn(5, 3)
    with patch.object(packed, "_product", wraps=packed._product) as told:
        packed._table_product(table, torch.float32)
        assert not told.called
        with lever_translation.LEVERS["transposed"].off():
            product = packed._table_product(table, torch.float32)
        assert told.called
    x = torch.randn(2, 3)
    assert torch.allclose(product(x), x @ table.T)


def test_off_int8_weights_are_as_they_were(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are made anew for each translation: one task does it both ways."""
    if not can_be_packed(setting.model):
        pytest.skip("torch has no such product here")
    ordered = []

    def told(whole: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
        ordered.append(True)
        return int8._by_float32(whole, scales)

    monkeypatch.setattr(int8, "ways", lambda: (int8.Way(127, told),))
    task = setting.task("int8")
    for switch in (lever_translation.LEVERS["int8 order"].off, nullcontext):
        assert not ordered
        with lever_translation.one_batch_at_a_time(), switch():
            task.run()
    assert ordered


def test_a_lever_without_use_says_why(setting: Setting) -> None:
    alone = Setting(setting.model, setting.pairs, 1, "float32")
    made = levers.translation_row(lever_translation.LEVERS["shared"], alone, 1)
    assert "not measured: beam 1 has one row for a sentence" in made


@contextmanager
def other_weights(setting: Setting) -> Iterator[None]:
    weight = setting.model.output_weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    yield
    with torch.no_grad():
        weight.copy_(before)


def by_smallest(values: Tensor, k: int) -> Any:
    return (-values.masked_fill(values.isinf(), 1e9)).topk(k, dim=1)


@pytest.mark.parametrize("wrong", ["weights", "worst"])
def test_a_way_that_finds_something_else_is_not_timed(wrong: str, setting: Setting) -> None:
    def off() -> AbstractContextManager[object]:
        if wrong == "weights":
            return patch.object(Task, "run", run_with_others)
        return patch.object(lever_translation.ranking_module, "_ranked", backwards)

    run = Task.run

    def run_with_others(self: Task, lines: int | None = None) -> Sequence[Any]:
        with other_weights(setting):
            return run(self, lines)

    def backwards(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
        _, indices = by_smallest(values, k)
        return values.gather(1, indices), indices

    with pytest.raises(AssertionError, match="wrong: log p"):
        lever_translation_checks.check(lever_translation.Lever("wrong", off), setting)


def test_a_runs_model_is_timed_on_what_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lever_translation_checks, "CHECKED", 2)
    monkeypatch.setattr(levers, "keep_freed_memory", lambda: True)
    text = tmp_path / "text"
    for side in ("en", "de"):
        text.with_suffix(f".{side}").write_text("a b c d e\nb a d\n" * 20, encoding="utf-8")
    options = [f"data.train={text}", f"data.valid={text}", "data.test={}"]
    options += [
        "data.tokenizer.vocab_size=12",
        "train.updates=2",
        "train.warmup=0",
        "train.batch_tokens=64",
        "model.d_model=16",
    ]
    run = tmp_path / "run"
    wanted = [word for option in options for word in ("--set", option)]
    assert train([str(DEMO), "--run-dir", str(run), *wanted]) == 0
    words = ["--task", "translate", "--run", str(run), "--sentences", "4", "--rounds", "1", "--threads", "1"]
    assert levers.main([*words, "--precision", "float32", "--only", "copied with each row"]) == 0
    assert "copied with each row) | " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        levers.main(["--run", str(run)])
    assert "--run is for --task translate" in capsys.readouterr().err
    assert levers.main(["--task", "translate", "--run", str(tmp_path / "none")]) == CheckpointError.exit_code
    assert str(tmp_path / "none") in capsys.readouterr().err
