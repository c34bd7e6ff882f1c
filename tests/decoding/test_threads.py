"""Several batches at a time, by threads or forked processes, find what one after the other finds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch

from transformer import Transformer
from transformer.core.errors import CheckpointError
from transformer.decoding import DecodeConfig, Hypothesis, Limits
from transformer.decoding.answers import WorkerLost
from transformer.decoding.engine import Models, Request
from transformer.decoding.forked import ForkedModels
from transformer.modules.products import has_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="one batch at a time without them")
forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
FORKED = pytest.param(ForkedModels, marks=forks)
OVER_TIME = {"encoder": "layer", "decoder": "instance"}
SHAPE = {"d_model": 32, "heads": 2, "d_ff": 48, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def batches() -> list[list[Request]]:
    draws = torch.Generator().manual_seed(1)
    numbers = iter(range(100))
    return [
        [
            Request(next(numbers), torch.randint(4, 50, (size,), generator=draws).tolist(), Limits(6))
            for _ in "abc"
        ]
        for size in (9, 7, 7, 4, 2)
    ]


def found(
    models: list[Transformer], config: DecodeConfig, together: bool, kind: type[Models] = Models
) -> list[list[list[Hypothesis]]]:
    engine = kind(models, "float32")
    with engine.working():
        if together:
            return engine.search_all(batches(), config)
        return [engine.search(batch, config) for batch in batches()]


@pytest.mark.parametrize("search", ["beam", "greedy", "sampling"])
@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        (Models, "layer"),
        pytest.param(ForkedModels, OVER_TIME, marks=forks),
        pytest.param(Models, OVER_TIME, marks=pytest.mark.slow),
        pytest.param(ForkedModels, "layer", marks=[forks, pytest.mark.slow]),
    ],
)
def test_batches_at_a_time_change_nothing(
    kind: type[Models], search: str, norm: object, threads: int
) -> None:
    config = DecodeConfig(search=search)
    models = [Transformer(50, 50, norm=norm, seed=seed, **SHAPE) for seed in (1, 2)]
    together, alone = (found(models, config, at_once, kind) for at_once in (True, False))
    for ours, theirs in zip(chain(*together), chain(*alone), strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4)
    assert torch.get_num_threads() == threads


@forks
def test_processes_have_the_weights_of_their_time() -> None:
    model = Transformer(50, 50, seed=1, **SHAPE)
    engine = ForkedModels([model], "float32")
    for seed in (1, 2):
        model.load_state_dict(Transformer(50, 50, seed=seed, **SHAPE).state_dict())
        with engine.working():
            first = engine.search_all(batches(), DecodeConfig())
            assert [len(engine._workers), first] == [3, engine.search_all(batches(), DecodeConfig())]
            processes = [worker.process for worker in engine._workers]
        assert not any(process.is_alive() for process in processes)
        alone = found([model], DecodeConfig(), together=False)
        assert [h.tokens for h in chain(*chain(*first))] == [h.tokens for h in chain(*chain(*alone))]


@forks
def test_a_killed_process_is_said_and_none_is_left() -> None:
    engine = ForkedModels([Transformer(50, 50, **SHAPE)], "float32")
    with engine.working():
        engine.search_all(batches(), DecodeConfig())
        processes = [worker.process for worker in engine._workers]
        os.kill(processes[1].pid, signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(WorkerLost, match=r"by signal 9 .* fewer --threads"):
            engine.search_all(batches(), DecodeConfig())
    assert not any(process.is_alive() for process in processes)


@forks
@pytest.mark.parametrize("lack", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_a_process_lacks_is_said_as_if_it_were_this_one(
    lack: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: object) -> None:
        raise lack

    monkeypatch.setattr(ForkedModels, "search", search)
    with pytest.raises(MemoryError, match=str(lack).partition(":")[0] or "process of its own"):
        found([Transformer(50, 50, **SHAPE)], DecodeConfig(), True, ForkedModels)


@forks
@pytest.mark.parametrize("started", [0, 1])
def test_where_no_more_processes_can_be_had_the_others_do_it(
    started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, forks = os.fork, iter(range(10))

    def lacking() -> int:
        if next(forks) >= started:
            raise BlockingIOError("no more")
        return fork()

    models = [Transformer(50, 50, **SHAPE)]
    alone = found(models, DecodeConfig(), together=False)
    monkeypatch.setattr(os, "fork", lacking)
    together = found(models, DecodeConfig(), True, ForkedModels)
    assert [h.tokens for h in chain(*chain(*together))] == [h.tokens for h in chain(*chain(*alone))]


@forks
def test_processes_end_with_the_one_that_forked_them() -> None:
    """Although each inherits the ends of the pipes to those before it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        torch.set_num_threads(1)  # a fork has none of torch's threads
        engine = ForkedModels([Transformer(50, 50, **SHAPE)], "float32")
        with engine.working():
            torch.set_num_threads(2)
            engine.search_all(batches(), DecodeConfig())
            theirs.send([worker.process.pid for worker in engine._workers])
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    pids = ours.recv()
    process.join()
    deadline = time.monotonic() + 20
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [_runs(pid) for pid in pids] == [False, False]


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", [Models, FORKED])
def test_what_goes_wrong_is_said(kind: type[Models]) -> None:
    model = Transformer(50, 50, **SHAPE)
    with torch.no_grad():
        model.output_table.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not numbers"):
        found([model], DecodeConfig(), True, kind)
    assert torch.get_num_threads() == 3


def test_each_thread_has_its_share_of_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = [], Models._search

    def searched(self: Models, *arguments: object) -> object:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Models, "_search", searched)
    torch.set_num_threads(6)
    engine = Models([Transformer(50, 50, **SHAPE)], "float32")
    with engine.working():
        engine.search_all(batches()[:3], DecodeConfig())
        engine.search_all(batches()[:1], DecodeConfig())
    assert [threads for _, threads in seen] == [2, 2, 2, 6]
    assert seen[3][0] == threading.get_ident() not in {thread for thread, _ in seen[:3]}
    assert torch.get_num_threads() == 6


@forks
@pytest.mark.parametrize("threads", [2, 6])
def test_threads_are_gone_before_a_process_may_be_forked(threads: int) -> None:
    """Python's and torch's: with six, two batches have three each."""
    model, config = Transformer(50, 50, **SHAPE), DecodeConfig(beam=1, max_length=1)
    engine, both = Models([model], "float32"), [each * 40 for each in batches()[:2]]
    torch.set_num_threads(threads)
    with engine.working():
        engine.search(both[0], config)  # torch's threads are there
        before = set(os.listdir("/proc/self/task"))
        for _ in range(10):
            engine.search_all(both, config)
            assert set(os.listdir("/proc/self/task")) <= before


@forks
def test_few_batches_are_forked_too_for_no_fork_may_follow_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "search_all", None)
    engine = ForkedModels([Transformer(50, 50, **SHAPE)], "float32")
    with engine.working():
        for number in (2, 5):
            assert len(engine.search_all(batches()[:number], DecodeConfig())) == number
            assert len(engine._workers) == min(number, 3)
