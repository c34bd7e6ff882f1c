"""An update that does not fit is computed in parts: the same gradient, and nothing counted twice."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transformer.core.errors import OutOfMemory, is_out_of_memory
from transformer.data.batching import collate
from transformer.model.transformer import Transformer
from transformer.training import passes as passes_module
from transformer.training.layouts import Whole
from transformer.training.passes import Passes
from transformer.training.ranks import Ranks

CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"
ERRORS = [lambda: RuntimeError(CPU), lambda: torch.OutOfMemoryError("CUDA out of memory"), MemoryError]
SHAPE: dict[str, Any] = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}


def batch_of(rows: int, seed: int = 0, longest: int = 9) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def sentence() -> list[int]:
        length = int(torch.randint(1, longest, (), generator=generator))
        return torch.randint(4, 14, (length,), generator=generator).tolist()

    return collate([(sentence(), sentence()) for _ in range(rows)], range(100, 100 + rows))


class _Fails(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: BaseException) -> torch.Tensor:
        ctx.error = error
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise ctx.error


@contextmanager
def shortage(
    model: Transformer, where: str, most_rows: int, make: Callable[[], BaseException], only: int = 0
) -> Iterator[list[int]]:
    """A memory that holds `most_rows` rows: with more, the pass fails `where`. Gives all attempts' rows.

    `only`: the attempt, from 1, that fails whatever its rows; 0 is by rows.
    """
    attempts: list[int] = []

    def too_many(rows: int) -> bool:
        return len(attempts) == only if only else rows > most_rows

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        attempts.append(len(inputs[0]))
        if where == "forward" and too_many(len(inputs[0])):
            raise make()

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Behind the encoder: decoder and projection have their gradients by then, the encoder has none.
        return _Fails.apply(output, make()) if where == "backward" and too_many(len(output)) else None

    handles = [
        model.source_embedding.register_forward_pre_hook(before),
        model.encoder.register_forward_hook(after),
    ]
    try:
        yield attempts
    finally:
        for handle in handles:
            handle.remove()


def made(**flags: Any) -> Passes:
    model = Transformer(14, 14, **{**SHAPE, "dropout": 0.0, **flags})
    return Passes(model, torch.float32, 0.1, seed=3)


def gradients(passes: Passes) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in passes.model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    # With all of a test session in memory a collection takes a hundred times as long as these updates.
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.parametrize(
    ("where", "most_rows", "make"),
    [
        *(("forward", rows, ERRORS[0]) for rows in (1, 2, 6)),
        *(("backward", rows, ERRORS[1]) for rows in (1, 3, 6)),
        ("forward", 3, ERRORS[2]),
    ],
)
def test_parts_have_the_gradient_and_the_sums_of_the_whole(
    where: str, most_rows: int, make: Callable[[], BaseException]
) -> None:
    batches = [batch_of(7, 1), batch_of(5, 2), batch_of(2, 3)]
    whole, parted = made(), made()
    tokens, loss, nll = whole.run(batches, 1)
    with shortage(parted.model, where, most_rows, make) as attempts:
        found = parted.run(batches, 1)
    assert max(attempts) > most_rows >= max(attempts[-len(batches) :]), "it failed, and then it did not"
    assert found[0] == tokens
    torch.testing.assert_close(torch.stack(found[1:]), torch.stack((loss, nll)), rtol=1e-5, atol=1e-5)
    assert_same(gradients(parted), gradients(whole))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_one_failure_at_any_micro_batch_counts_nothing_twice(where: str, failing: int) -> None:
    batches = [batch_of(4, seed) for seed in range(3)]
    whole, parted = made(), made()
    whole.run(batches, 1)
    with shortage(parted.model, where, 0, ERRORS[0], only=failing):
        parted.run(batches, 1)
    assert_same(gradients(parted), gradients(whole))


def test_a_failed_backward_pass_leaves_gradients_that_are_cleared() -> None:
    # The oracle of the tests above: what the failed attempt added is there, and would have counted twice.
    passes, kept = made(), []
    clear = passes.fitting._clear
    passes.fitting._clear = lambda: (kept.append(gradients(passes)), clear())[1]  # type: ignore[method-assign]
    with shortage(passes.model, "backward", 3, ERRORS[0]):
        passes.run([batch_of(4)], 1)
    (left,) = kept
    assert any(name.startswith("decoder") and g.abs().max() > 0 for name, g in left.items())
    assert not any(name.startswith("encoder") for name in left)


def test_a_single_pair_that_does_not_fit_is_named_with_what_to_set() -> None:
    passes = made()
    with shortage(passes.model, "forward", 0, ERRORS[0]), pytest.raises(OutOfMemory) as caught:
        passes.run([batch_of(4)], 17)
    assert caught.value.pair == 101
    message = str(caught.value)
    assert re.search(r"^update 17: memory does not hold a pair of \d+ source and \d+ target tokens", message)
    for word in ("pair 101", "checkpoint_activations", "data.max_length", "train.precision"):
        assert word in message


def test_statistics_over_the_batch_are_not_cut() -> None:
    passes = made(norm={"encoder": "batch", "decoder": "layer"})
    with (
        shortage(passes.model, "forward", 2, ERRORS[0]) as attempts,
        pytest.raises(
            OutOfMemory, match=r"BatchNorm takes its statistics over all of it.*train.batch_tokens"
        ),
    ):
        passes.run([batch_of(4)], 1)
    assert len(attempts) == 1


class Third(Ranks):
    """The third of four ranks; the others have nothing."""

    rank, size = 2, 4


@pytest.mark.parametrize(("cuts", "sent", "why"), [(False, False, "with fsdp"), (True, True, "on their way")])
def test_a_rank_that_cannot_cut_names_itself_its_pairs_and_what_to_set(
    cuts: bool, sent: bool, why: str
) -> None:
    model = made().model
    layout = Whole(model, 0.1, Third())
    layout.cuts, layout.sent = cuts, sent
    passes = Passes(model, torch.float32, 0.1, seed=3, layout=layout)
    with shortage(model, "backward", 2, ERRORS[0]) as attempts, pytest.raises(OutOfMemory) as caught:
        passes.run([batch_of(2), batch_of(10)], 17)
    assert attempts == [2, 10]
    message = str(caught.value)
    assert re.search(r"^rank 2 of 4: update 17: memory does not hold 10 pairs of \d+ source", message)
    for words in (
        "pairs 101, 102, 103,",
        "108, ... of those",
        why,
        "smaller train.batch_tokens",
        "accumulate",
    ):
        assert words in message
    with (
        shortage(model, "forward", 0, ERRORS[0]),
        pytest.raises(OutOfMemory, match=r"^rank 2 of 4: .*pair 101"),
    ):
        passes.run([batch_of(1)], 17)


def test_what_is_no_shortage_stays_as_it_is() -> None:
    passes = made()
    with (
        shortage(passes.model, "forward", 0, lambda: RuntimeError("expected scalar type")),
        pytest.raises(RuntimeError, match="expected scalar type"),
    ):
        passes.run([batch_of(4)], 1)
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
    hook = "Got the following error when running the callback: MemoryError: <EMPTY MESSAGE>"
    assert is_out_of_memory(RuntimeError(hook))
    assert is_out_of_memory(SystemError("error return without exception set"))
    assert not is_out_of_memory(SystemError("bad argument to internal function"))
    assert is_out_of_memory(RuntimeError("can't start new thread"))  # there is no room for its stack


def test_the_split_is_said_once_with_what_to_set() -> None:
    passes = made()
    with shortage(passes.model, "forward", 2, ERRORS[0]):
        for update in (5, 6):
            passes.run([batch_of(4)], update)
            passes.model.zero_grad()
    (line,) = passes.news()
    assert line.startswith("update 5: memory did not hold 4 pairs")
    assert "train.batch_tokens" in line
    assert "computed in 2 parts instead of 1" in line
    assert not list(passes.news())
    assert passes.fitting.count == 2


def test_a_run_with_too_little_memory_ends_like_one_with_enough(workshop: Any) -> None:
    # Not Adam, which makes a step of what is rounding alone: the gradient of a bias of the keys is 0.
    options = {"optimizer": "sgd", "average": 0, "probe_every": 3, "accumulate": 2}
    straight, short = (
        workshop.trainer(name, model=workshop.model(dropout=0.0), **options) for name in ("straight", "short")
    )
    straight.fit()
    with shortage(short.model, "backward", 3, ERRORS[1]):
        # validation has 8 rows and no backward pass
        outcome = short.fit()
    assert outcome.status == "completed"
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(short.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    log = (short.run_dir / "log.txt").read_text()
    assert log.count("memory did not hold") == 1
    metrics = (short.run_dir / "metrics.jsonl").read_text()
    assert metrics.count('"probe"') == (straight.run_dir / "metrics.jsonl").read_text().count('"probe"')


def test_nothing_is_done_as_long_as_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, calls = made(), []
    monkeypatch.setattr(passes.fitting, "_clear", lambda: calls.append("clear"))
    monkeypatch.setattr(passes_module, "seed_generators", lambda *a: calls.append("seed"))
    passes.run([batch_of(4), batch_of(3)], 1)
    assert calls == ["seed"]


REAL = """
import resource, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from transformer.data.batching import collate
from transformer.model.transformer import Transformer
from transformer.training.passes import Passes
flags = dict(d_model=64, heads=4, d_ff=128, encoder_layers=2, decoder_layers=2, dropout=0.0)
batch = collate([(list(range(4, 104)), list(range(4, 104)))] * 64, range(64))
def made():
    return Passes(Transformer(200, 200, **flags), torch.float32, 0.1, seed=3)
one = made(); one.run([batch.rows(slice(0, 8))], 1)           # kernels and libraries are loaded by now
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
whole, parted = made(), made()
limit = held + {room} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
parted.run([batch], 1)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(next(parted.news(), "it fitted"))
whole.run([batch], 1)
for a, b in zip(whole.model.parameters(), parted.model.parameters()):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
print("same")
"""


@pytest.mark.usefixtures("starts_warm")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is that of Linux")
def test_a_real_shortage_is_survived() -> None:
    root = str(Path(__file__).parents[2])
    code = REAL.format(root=root, room=60)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "memory did not hold" in done.stdout
    assert done.stdout.endswith("same\n")


def test_the_rows_of_a_batch_are_the_batch_of_those_pairs() -> None:
    pairs = [([5, 6, 7], [8]), ([5], [9, 9]), ([4, 4], [4]), ([9], [])]
    whole = collate(pairs, range(10, 14))
    for rows in (slice(0, 1), slice(1, 4), slice(None, 2), slice(3, None)):
        part, alone = whole.rows(rows), collate(pairs[rows], range(10, 14)[rows])
        for name, value in vars(alone).items():
            found = getattr(part, name)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
