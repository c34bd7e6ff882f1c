"""benchmarks/training_parts.py: which part an operator belongs to, what it moves, and a tiny update."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from benchmarks.parts import HEADER, Counted, Rates, alone, bounds_of, rows_of, speeds_of, told
from benchmarks.training_parts import DROPOUT, LOSS, OF_ATTENTION, OF_LOSS, PRODUCTS, part_of
from transformer.modules.dropout import Dropout
from transformer.modules.products import Linear, has_onednn
from transformer.training.loss import sequence_loss

ROWS, D, V = 48, 8, 40


def counted() -> Counted:
    has_onednn()  # which tries a product, once
    return Counted(partial(part_of, V))


def test_products_are_told_apart_and_their_operations_counted() -> None:
    linear, x = Linear(D, D, bias=False), torch.randn(ROWS, D, requires_grad=True)
    with counted() as seen:
        linear(x).backward(torch.randn(ROWS, D))
    for kind in PRODUCTS:
        assert seen.parts[kind].operations == 2 * ROWS * D * D
        assert seen.parts[kind].bytes == 4 * (2 * ROWS * D + D * D)


def test_products_of_attention_and_of_the_loss_have_parts_of_their_own() -> None:
    hidden, weight = torch.randn(1, ROWS, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    with counted() as seen:
        torch.randn(3, 5, D) @ torch.randn(3, D, 7)
        sequence_loss(hidden, weight, torch.randint(4, V, (1, ROWS)), 0.1)
    assert seen.parts[OF_ATTENTION].operations == 2 * 3 * 5 * 7 * D
    assert seen.parts[OF_LOSS].operations == 3 * 2 * ROWS * V * D
    assert seen.parts[LOSS].bytes >= 2 * 4 * ROWS * V  # of the softmax alone
    assert not any(seen.parts[kind].operations for kind in PRODUCTS)


def test_masks_of_dropout_are_found() -> None:
    x = torch.ones(ROWS, D)
    with counted() as seen:
        Dropout(0.5)(x)
    assert seen.parts[DROPOUT].bytes >= ROWS * D * (1 + 1 + 4)  # drawn, read again, and made a number


@pytest.mark.parametrize(
    ("work", "moved"),
    [
        (lambda a, b: a + b, 3),
        (lambda a, b: a.add_(b), 3),
        (lambda a, b: a.copy_(b), 2),
        (lambda a, b: a.zero_(), 1),
        (lambda a, b: a.add_(b[:1].expand_as(b)), 2 + 1 / ROWS),
        (lambda a, b: a.view(-1), 0),
        (lambda a, b: torch.ops.aten._unsafe_view(a, [-1]), 0),
        (lambda a, b: a.to(torch.float32), 0),
        (lambda a, b: a.to(torch.float64), 3),
        (lambda a, b: torch.add(a, b, out=a), 2),
    ],
)
def test_bytes_are_those_read_and_written(work: object, moved: float) -> None:
    one, other = torch.ones(2, ROWS, D).unbind()
    with counted() as seen:
        work(one, other)  # type: ignore[operator]
    assert sum(part.bytes for part in seen.parts.values()) == pytest.approx(moved * 4 * ROWS * D)


def test_the_least_time_is_of_the_slower_of_products_and_memory() -> None:
    linear, x = Linear(D, D, bias=False), torch.randn(ROWS, D)
    with counted() as seen, torch.no_grad():
        linear(x)
    (part,) = seen.parts.values()
    whole = 2 * part.seconds
    assert bounds_of(seen.parts, Rates(1.0, 1e30))[2] == part.operations
    assert bounds_of(seen.parts, Rates(1e30, 1.0)) == (part.alone, part.swept, part.bytes)
    rows = rows_of(whole, seen.parts, Rates(1e30, 1.0), "an update")
    assert [row[0] for row in rows][1:] == ["interpreter", "an update"]
    assert rows[1][2] == "50%"
    assert {len(row) for row in rows} == {len(HEADER)}
    line = told("tokens/s", speeds_of(part.swept * 6, part.swept * 3, seen.parts, Rates(1e30, 1e30)))
    assert line.startswith("tokens/s: 2; the operators alone: ")
    assert "; with swept caches: 6; at these rates: " in line


def test_caches_are_swept_before_each_call_and_outside_its_time() -> None:
    one, swept = torch.ones(ROWS, D), []

    def sweep() -> None:
        time.sleep(0.02)
        swept.append(one.sum().item())

    assert alone(torch.ops.aten.neg.default, (one,), {}, sweep) < 0.02
    assert len(swept) > 1


def test_an_operator_is_repeated_alone_and_changes_nothing_by_it() -> None:
    """The same one as often as it was called, though it is repeated once only."""
    one, calls = torch.ones(ROWS, D), []
    with counted() as seen:
        for _ in range(3):
            one.add_(1.0)
        calls = list(seen._fastest)
    assert len(calls) == 1
    assert torch.equal(one, torch.full((ROWS, D), 4.0))
    (part,) = seen.parts.values()
    assert 0 < part.alone <= min(part.seconds, 3 * max(seen._fastest.values())[0])
