"""Cross-entropy of the output projection, without keeping a (tokens, V) matrix for backward.

Rows of the decoder's output are projected a chunk at a time; while a chunk's probabilities are at hand its
part of both gradients is formed, so backward only multiplies them by the incoming gradient. Peak memory is
some chunks of logits and the gradients themselves, whatever the number of tokens.

Shapes: B batch, T target length, D model width, V vocabulary, N target positions, padding included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..core.special import PAD
from ..modules.products import makes_kernels, multiply

# Logits of one chunk. On a CPU they should stay in the cache while softmax passes over them; elsewhere
# launches cost more than memory.
_CHUNK = {"cpu": 1 << 21}
_CHUNK_ELSEWHERE = 1 << 26
# Logits whose gradients are kept until they are multiplied. Each such product adds to the whole (V, D)
# gradient of the weight, which with a large vocabulary takes longer than the product itself.
_GROUP = 1 << 24


def sequence_loss(
    hidden: Tensor, output_weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over target tokens of (1 - eps) nll + eps mean over V of -log p, and the sum of nll alone.

    `hidden` (B, T, D), `output_weight` (V, D), `targets` (B, T) int64; positions that are PAD count in
    neither sum, whatever `hidden` holds there. The first result carries the gradient to `hidden` and
    `output_weight`; the second, from which perplexity is computed, carries none. Both are scalars, float32
    (float64 for float64 input).

    Label smoothing is torch's definition: eps / V for each of the V tokens, the target included (Szegedy et
    al. 2016, arXiv 1512.00567, section 7). fairseq's and JoeyNMT's spread eps over V - 1 and V - 2 tokens:
    losses are not comparable, gradients nearly are. Under autocast the products run in its dtype and the
    softmax in float32. Second derivatives are not available.
    """
    assert 0 <= label_smoothing < 1
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    device = rows.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    sums: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows, output_weight, wanted, label_smoothing, product, torch.is_grad_enabled()
    )
    return sums


class _LinearCrossEntropy(torch.autograd.Function):
    """(loss sum, nll sum) of softmax(rows @ weight.T), gradients formed in forward.

    With p the softmax, y the target and e the smoothing, a row's loss is log sum exp - (1 - e) logit_y
    - e mean logit, and its gradient to the logits p - (1 - e) 1_y - e / V. The last term is the same for all
    entries and need not be spread over (N, V): the mean logit is that of the mean weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        product: torch.dtype,
        recorded: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
        count, dtype = len(rows), rows.dtype
        if makes_kernels(product, rows.device):  # whole chunks, as each other size is another kernel
            spare = -count % _rows_at_once(rows, weight)
            rows, targets = F.pad(rows, (0, 0, 0, spare)), F.pad(targets, (0, spare), value=PAD)
        scored = (targets != PAD)[:, None]
        inputs, matrix = torch.where(scored, rows.to(exact), 0.0), weight.to(exact)
        wants_rows, wants_weight = (recorded and wants for wants in ctx.needs_input_grad[:2])
        with torch.autocast(rows.device.type, enabled=False):
            log_sum, target_logit, rows_gradient, weight_gradient = _in_chunks(
                inputs, matrix, targets, product, 1 - smoothing, wants_rows, wants_weight
            )
            mean = matrix.mean(0)
            nll = ((log_sum - target_logit) * scored.squeeze(1)).sum()
            loss = log_sum - (1 - smoothing) * target_logit - smoothing * (inputs @ mean)
            loss = (loss * scored.squeeze(1)).sum()
            if rows_gradient is not None:
                rows_gradient -= smoothing * mean
                rows_gradient = (rows_gradient * scored)[:count]
            if weight_gradient is not None:
                weight_gradient -= smoothing / len(matrix) * inputs.sum(0)
        ctx.save_for_backward(rows_gradient, weight_gradient)
        ctx.dtypes = dtype, weight.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        rows, weight = (None if g is None else (g * scale).to(dtype) for g, dtype in gradients)
        return rows, weight, None, None, None, None


def _rows_at_once(rows: Tensor, weight: Tensor) -> int:
    """Of a chunk: as few as there are, or a number that kernels like."""
    most = max(1, _CHUNK.get(rows.device.type, _CHUNK_ELSEWHERE) // len(weight))
    return max(1, min(len(rows), most if most < 32 else most // 32 * 32))


def _in_chunks(
    inputs: Tensor,
    matrix: Tensor,
    targets: Tensor,
    product: torch.dtype,
    confidence: float,
    wants_rows: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Log sum exp of the logits and the target's logit (N,), and what p - confidence 1_y gives each factor.

    The products are made in `product`, the rest in the inputs' own format. A row of zeros adds nothing to the
    weight's part. Chunks make up groups, whose gradients to the logits are multiplied at once. The buffers
    serve all of them: fresh memory would cost more than what is done in it.
    """
    exact, chunk = inputs.dtype, _rows_at_once(inputs, matrix)
    group = max(chunk, min(_GROUP // len(matrix) // chunk * chunk, len(inputs)))
    low, projection = inputs.to(product), matrix.to(product)
    log_sum, target_logit = inputs.new_empty(2, len(inputs)).unbind()
    rows_gradient = torch.empty_like(inputs) if wants_rows else None
    weight_gradient = torch.zeros_like(matrix) if wants_weight else None
    converted = product != exact  # else logits need no room of their own
    wide = inputs.new_empty(chunk if converted else 0, len(matrix))
    kept = low.new_empty(group, len(matrix))
    # Transposed once, or each product would; on a CPU.
    columns = projection.T.contiguous() if converted and low.device.type == "cpu" else projection.T
    for first in range(0, len(inputs), max(group, 1)):
        rows = slice(first, first + group)
        gradient = kept[: len(low[rows])]
        for start in range(0, len(gradient), chunk):
            narrow = gradient[start : start + chunk]
            part = slice(first + start, first + start + len(narrow))
            target = targets[part, None]
            if converted:
                logits = wide[: len(narrow)].copy_(torch.mm(low[part], columns, out=narrow))
            else:
                logits = multiply(low[part], columns.T)
            target_logit[part] = logits.gather(1, target).squeeze(1)
            largest = logits.amax(1)
            p = torch.softmax(logits, 1, out=logits if converted else narrow)
            log_sum[part] = largest - p.amax(1).log()  # the largest p is at least 1 / V
            if wants_rows or wants_weight:
                p.scatter_add_(1, target, p.new_full(target.shape, -confidence))
                if converted:
                    narrow.copy_(p)
        if rows_gradient is not None:
            rows_gradient[rows] = multiply(gradient, projection.T)
        if weight_gradient is not None:
            weight_gradient += multiply(gradient.T, low[rows].T)
    return log_sum, target_logit, rows_gradient, weight_gradient
