"""Cross-entropy of the output projection, without keeping a (tokens, V) matrix for backward.

Rows of the decoder's output are projected a chunk at a time; while a chunk's probabilities are at hand its
part of both gradients is formed, so backward only multiplies them by the incoming gradient. Peak memory is
one chunk of logits and the gradients themselves, whatever the number of tokens.

Shapes: B batch, T target length, D model width, V vocabulary, N target tokens that are not padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.special import PAD

# Logits of one chunk. On a CPU they should stay in the cache while softmax passes over them; elsewhere
# launches cost more than memory.
_CHUNK = {"cpu": 1 << 21}
_CHUNK_ELSEWHERE = 1 << 26


def sequence_loss(
    hidden: Tensor, output_weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over target tokens of (1 - eps) nll + eps mean over V of -log p, and the sum of nll alone.

    `hidden` (B, T, D), `output_weight` (V, D), `targets` (B, T) int64; positions that are PAD count in
    neither sum. The first result carries the gradient to `hidden` and `output_weight`; the second, from which
    perplexity is computed, carries none. Both are scalars, float32 (float64 for float64 input).

    Label smoothing is torch's definition: eps / V for each of the V tokens, the target included (Szegedy et
    al. 2016, arXiv 1512.00567, section 7). fairseq's and JoeyNMT's spread eps over V - 1 and V - 2 tokens:
    losses are not comparable, gradients nearly are. Under autocast the products run in its dtype and the
    softmax in float32. Second derivatives are not available.
    """
    assert 0 <= label_smoothing < 1
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    if rows.device.type == "cpu":
        rows, wanted = _without_padding(rows, wanted)
    device = rows.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    sums: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows, output_weight, wanted, label_smoothing, product
    )
    return sums


def _without_padding(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Only the rows that are scored. Not on accelerators: finding them would wait for the device."""
    kept = (targets != PAD).nonzero().squeeze(1)
    if len(kept) == len(targets):
        return rows, targets
    return rows.index_select(0, kept), targets.index_select(0, kept)


class _LinearCrossEntropy(torch.autograd.Function):
    """(loss sum, nll sum) of softmax(rows @ weight.T), gradients formed in forward."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, smoothing: float, product: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
        scored = (targets != PAD)[:, None]
        projection, inputs = weight.to(product), rows.to(product) * scored
        wants_rows, wants_weight = ctx.needs_input_grad[:2]
        rows_gradient = torch.empty_like(rows, dtype=exact) if wants_rows else None
        weight_gradient = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        loss = torch.zeros((), dtype=exact, device=rows.device)
        nll = torch.zeros_like(loss)
        size = max(1, _CHUNK.get(rows.device.type, _CHUNK_ELSEWHERE) // len(weight))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            with torch.autocast(rows.device.type, enabled=False):
                chunk = inputs[part]
                gradient = _chunk(chunk, projection, targets[part], smoothing, exact, loss, nll).to(product)
                if rows_gradient is not None:
                    rows_gradient[part] = gradient @ projection
                if weight_gradient is not None and product == exact:
                    weight_gradient.addmm_(gradient.T, chunk)
                elif weight_gradient is not None:
                    weight_gradient += gradient.T @ chunk
        if rows_gradient is not None:
            rows_gradient *= scored
        ctx.save_for_backward(rows_gradient, weight_gradient)
        ctx.dtypes = rows.dtype, weight.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        rows, weight = (None if g is None else (g * scale).to(dtype) for g, dtype in gradients)
        return rows, weight, None, None, None


def _chunk(
    inputs: Tensor,
    projection: Tensor,
    targets: Tensor,
    smoothing: float,
    exact: torch.dtype,
    loss: Tensor,
    nll: Tensor,
) -> Tensor:
    """Add a chunk's sums to `loss` and `nll`; return d loss / d logits, softmax - (1 - eps) 1_y - eps/V.

    The rows of padding are not masked in the result: their inputs are zero, and so is their part of the
    gradient.
    """
    log_p = torch.log_softmax((inputs @ projection.T).to(exact), dim=1)
    padding, target = targets == PAD, targets[:, None]
    part = -log_p.gather(1, target).squeeze(1).masked_fill(padding, 0).sum()
    nll += part
    loss += part * (1 - smoothing)
    if smoothing:
        loss -= log_p.mean(dim=1).masked_fill(padding, 0).sum() * smoothing
    gradient = log_p.exp_()
    if smoothing:
        gradient -= smoothing / len(projection)
    return gradient.scatter_add_(1, target, torch.full_like(target, smoothing - 1, dtype=exact))
