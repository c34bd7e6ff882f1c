"""sequence_loss against torch's own cross-entropy, a closed form, and numerical differentiation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from transformer.core.special import PAD
from transformer.training import loss as loss_module
from transformer.training.loss import sequence_loss

B, T, D, V = 3, 5, 4, 11


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(1, V, (B, T))
    targets[0, 3:] = PAD
    targets[2, 1:] = PAD
    return hidden, weight, targets


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(hidden, weight).flatten(0, 1)
    return F.cross_entropy(
        logits, targets.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum"
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("chunk", [1, 4 * V, 1 << 20])
@pytest.mark.parametrize("group", [1, 150, 1 << 24])
@pytest.mark.parametrize("kernels", [True, False])
def test_loss_and_gradients_equal_torchs_cross_entropy(
    smoothing: float, chunk: int, group: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole chunks where a size needs a kernel of its own, and in memory that is there where none does."""
    monkeypatch.setattr(loss_module, "makes_kernels", lambda *_: kernels)
    monkeypatch.setitem(loss_module._CHUNK, "cpu", chunk)
    monkeypatch.setattr(loss_module, "_GROUP", group)
    hidden, weight, targets = problem()
    loss, nll = sequence_loss(hidden, weight, targets, smoothing)
    expected = reference(hidden, weight, targets, smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, reference(hidden, weight, targets, 0.0).detach())
    assert not nll.requires_grad
    got = torch.autograd.grad(loss / 7, (hidden, weight))
    wanted = torch.autograd.grad(expected / 7, (hidden, weight))
    torch.testing.assert_close(got, wanted)


def test_smoothed_loss_of_uniform_logits_is_the_log_of_the_vocabulary() -> None:
    targets = torch.randint(1, V, (B, T))
    loss, nll = sequence_loss(torch.zeros(B, T, D), torch.randn(V, D), targets, 0.3)
    assert loss.item() == pytest.approx(B * T * math.log(V), rel=1e-6)
    assert nll.item() == pytest.approx(B * T * math.log(V), rel=1e-6)


def test_label_smoothing_spreads_epsilon_over_the_whole_vocabulary() -> None:
    hidden, weight, targets = problem()
    epsilon = 0.2
    expected = 0.0
    for row, column in (targets != PAD).nonzero().tolist():
        log_p = torch.log_softmax(weight @ hidden[row, column], dim=0)
        mixture = torch.full((V,), epsilon / V, dtype=torch.float64)
        mixture[targets[row, column]] += 1 - epsilon
        expected -= (mixture * log_p).sum().item()
    assert sequence_loss(hidden, weight, targets, epsilon)[0].item() == pytest.approx(expected, rel=1e-12)


def test_gradient_equals_numerical_differentiation() -> None:
    hidden, weight, targets = problem()
    assert torch.autograd.gradcheck(lambda h, w: sequence_loss(h, w, targets, 0.1)[0], (hidden, weight))


def test_a_tied_weight_receives_both_gradients() -> None:
    _, weight, targets = problem()
    got = torch.autograd.grad(sequence_loss(weight[targets], weight, targets, 0.1)[0], weight)
    wanted = torch.autograd.grad(reference(weight[targets], weight, targets, 0.1), weight)
    torch.testing.assert_close(got, wanted)


def test_two_backward_passes_add_up() -> None:
    hidden, weight, targets = problem()
    for scale in (2, 3):
        (sequence_loss(hidden, weight, targets, 0.1)[0] / scale).backward()
    expected = torch.autograd.grad(
        reference(hidden, weight, targets, 0.1) * (1 / 2 + 1 / 3), (hidden, weight)
    )
    torch.testing.assert_close((hidden.grad, weight.grad), expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("kernels", [True, False])
def test_what_stands_at_padding_counts_in_nothing(
    broken: float, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "makes_kernels", lambda *_: kernels)
    hidden, weight, targets = problem(torch.float32)
    sums, gradients = [], []
    for held in (0.0, broken):
        filled = torch.where((targets == PAD)[..., None], held, hidden.detach()).requires_grad_()
        loss, nll = sequence_loss(filled, weight, targets, 0.1)
        sums.append((loss.detach(), nll))
        gradients.append(torch.autograd.grad(loss, (filled, weight)))
    torch.testing.assert_close(sums[1], sums[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_nothing_but_padding_gives_zero_and_zero_gradients() -> None:
    hidden, weight, targets = problem()
    loss, nll = sequence_loss(hidden, weight, torch.full_like(targets, PAD), 0.1)
    loss.backward()
    assert loss == nll == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_gradients_are_only_formed_for_what_asks_for_them() -> None:
    hidden, weight, targets = problem()
    loss, _ = sequence_loss(hidden, weight.detach(), targets)
    assert torch.autograd.grad(loss, hidden)[0].shape == hidden.shape
    with torch.no_grad():
        assert not sequence_loss(hidden, weight, targets)[0].requires_grad


def test_bf16_products_stay_close_and_the_softmax_is_float32() -> None:
    hidden, weight, targets = problem(torch.float32)
    expected = reference(hidden, weight, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = sequence_loss(hidden, weight, targets, 0.1)
    assert loss.dtype == torch.float32
    # bf16 keeps 8 bits: logits of size ~4 are off by ~0.02 each.
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0.1)
    got, wanted = (torch.autograd.grad(value, weight)[0] for value in (loss, expected))
    assert F.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_formed_where_none_is_recorded(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = problem()
    expected, products = sequence_loss(hidden, weight, targets, 0.1), []
    multiply = loss_module.multiply
    monkeypatch.setattr(loss_module, "makes_kernels", lambda *_: True)
    monkeypatch.setattr(loss_module, "multiply", lambda *given: products.append(given) or multiply(*given))
    with context():
        found = sequence_loss(hidden, weight, targets, 0.1)
    assert len(products) == 1  # the logits
    torch.testing.assert_close(found, tuple(each.detach() for each in expected))


class Made(TorchDispatchMode):
    """Elements of each buffer that is made without being written."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.new_empty.default, torch.ops.aten.empty.memory_format):
            self.sizes.append(made.numel())
        return made


@pytest.mark.parametrize(("dtype", "rooms"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_logits_get_room_of_their_own_only_where_they_are_converted(dtype: torch.dtype, rooms: int) -> None:
    hidden, weight, targets = problem(torch.float32)
    with Made() as made, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        sequence_loss(hidden, weight, targets)
    assert max(made.sizes) == targets.numel() * V
    assert made.sizes.count(targets.numel() * V) == rooms
