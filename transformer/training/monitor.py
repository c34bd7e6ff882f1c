"""What an update looks like from within, layer by layer: measured at some updates, nothing at the others.

B batch, L length of a side, T queries, S keys, H heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..core.special import PAD
from ..model.transformer import Transformer
from ..modules.attention import MultiHeadAttention
from ..modules.masks import causal_mask
from ..modules.norms import Norm
from ..modules.placements import Placement, Stack
from .passes import UNOBSERVED, Observer

# {stack: {statistic: [a number for each layer, None where there is none]}}
Reading: TypeAlias = dict[str, dict[str, list[float | None]]]

STACKS: tuple[Stack, Stack] = ("encoder", "decoder")
GAINS = ("weight", "gain")  # what norms call theirs
LOGITS = 1 << 22  # of one attention, at most: its statistics are of as many sentences as fit, or of one
AS_IT_IS = nn.Identity()


class Monitor(Observer):
    """Statistics of each layer at update 1 and every `every` updates; 0 is never.

    Of the first micro-batch, in training mode, padding excluded:

        stream        mean square of the stream that leaves the layer
        branch        |f| / |x|, the mean over the layer's sublayers; f is what a sublayer adds, before
                      dropout and before a gate, x the stream that enters it
        entropy       of self-attention's weights, nats, the mean over queries and heads
        logit         the largest logit of self-attention that is not masked
        cross_entropy, cross_logit    the same of cross-attention, in the decoder

    Of the whole update:

        gradient      norm of the gradient of the layer's parameters, before clipping
        update        |dW| / |W| over the layer's matrices
        gain          root mean square of (gain - initial gain) over the layer's norms, after the update

    The stream is what `close` makes of it without a norm: x + d of a dual stream, the mean of a reversible
    pair and of the n streams of hyper-connections. Attention's statistics are computed anew from its inputs.
    The hooks that see all this are there during one forward pass and are gone before its backward pass, so
    that a reversible stack, which runs again there, is counted once. They draw nothing and change nothing:
    weights are the same bits with and without. One read of the device at the end.

    To be made before trained weights are loaded: the gains of this moment are the initial ones.
    """

    hooks = True

    def __init__(self, model: Transformer, every: int) -> None:
        self.model, self.every = model, every
        self.layers = {(stack, i): layer for stack in STACKS for i, layer in enumerate(_layers(model, stack))}
        self.initial_gains = {
            place: [gain.detach().clone() for gain in gains_of(layer)] if every else []
            for place, layer in self.layers.items()
        }
        self.clear()

    def clear(self) -> None:
        self.found: dict[tuple[str, int, str], list[Tensor]] = {}
        self.before: dict[tuple[str, int], list[Tensor]] = {}
        self.seen = False

    def at(self, update: int) -> Observer:
        """This one at an update that is probed, else one that does nothing."""
        if not self.every or (update > 1 and update % self.every):
            return UNOBSERVED
        self.clear()
        return self

    def read(self) -> Reading | None:
        """What was found since `at`, to four digits; None at an update that was not probed. Waits."""
        if not self.found:
            return None
        numbers = torch.stack([torch.stack(each).mean().float() for each in self.found.values()]).tolist()
        reading: Reading = {
            stack: {
                name: [None] * len(_layers(self.model, stack))
                for found, _, name in self.found
                if found == stack
            }
            for stack in STACKS
        }
        for (stack, layer, name), number in zip(self.found, numbers, strict=True):
            reading[stack][name][layer] = float(f"{number:.4g}")
        self.clear()
        return reading

    # --- as an observer

    @contextmanager
    def forward(self, batch: Any) -> Iterator[None]:
        if self.seen:
            yield
            return
        self.seen = True
        real = {"encoder": batch.source != PAD, "decoder": batch.target_in != PAD}
        with ExitStack() as stack:
            for placement, sublayer in self.model.sites():
                watch = _Site(placement, real[placement.site.stack], self._note)
                for handle in watch.attach(sublayer):
                    stack.callback(handle.remove)
            yield

    def gradients(self) -> None:
        for (stack, i), layer in self.layers.items():
            if gradients := [p.grad for p in layer.parameters() if p.grad is not None]:
                self._note(stack, i, "gradient", get_total_norm(gradients))
            self.before[stack, i] = [matrix.detach().clone() for matrix in _matrices(layer)]

    def updated(self) -> None:
        for (stack, i), layer in self.layers.items():
            if old := self.before.pop((stack, i)):
                moved = [new.detach() - was for new, was in zip(_matrices(layer), old, strict=True)]
                self._note(stack, i, "update", get_total_norm(moved) / get_total_norm(old))
            drift = [
                (now.detach() - first).flatten()
                for now, first in zip(gains_of(layer), self.initial_gains[stack, i], strict=True)
            ]
            if drift:
                self._note(stack, i, "gain", torch.cat(drift).square().mean().sqrt())

    def _note(self, stack: str, layer: int, name: str, value: Tensor) -> None:
        self.found.setdefault((stack, layer, name), []).append(value)


class _Site:
    """The hooks of one residual connection."""

    def __init__(
        self, placement: Placement, real: Tensor, note: Callable[[str, int, str, Tensor], None]
    ) -> None:
        self.placement, self.site, self.real, self.note = placement, placement.site, real, note
        self.entering = real.new_zeros((), dtype=torch.float32)

    def attach(self, sublayer: nn.Module) -> list[Any]:
        handles = [
            self.placement.register_forward_pre_hook(self._enter),
            self.placement.dropout.register_forward_pre_hook(self._branch),
            self.placement.register_forward_hook(self._leave),
        ]
        if isinstance(sublayer, MultiHeadAttention):
            handles.append(sublayer.register_forward_pre_hook(self._attend, with_kwargs=True))
        return handles

    @torch.no_grad()
    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.entering = mean_square(self.placement.close(inputs[0], AS_IT_IS), self.real)

    @torch.no_grad()
    def _branch(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        share = (mean_square(inputs[0], self.real) / self.entering).sqrt()
        self.note(self.site.stack, self.site.layer, "branch", share)

    @torch.no_grad()
    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.site.closes_layer:
            leaving = mean_square(self.placement.close(output, AS_IT_IS), self.real)
            self.note(self.site.stack, self.site.layer, "stream", leaving)

    @torch.no_grad()
    def _attend(
        self, attention: MultiHeadAttention, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        entropy, largest = attention_statistics(attention, self.real, *inputs, **options)
        crossing = "cross_" if self.site.is_cross_attention else ""
        self.note(self.site.stack, self.site.layer, f"{crossing}entropy", entropy)
        self.note(self.site.stack, self.site.layer, f"{crossing}logit", largest)


def mean_square(x: Tensor, real: Tensor) -> Tensor:
    """Mean of x^2 over real tokens and channels. x (B, L, D), real (B, L) -> scalar, float32 at least."""
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1)
    return squares.masked_fill(~real, 0).sum() / real.sum()


def attention_statistics(
    attention: MultiHeadAttention,
    real: Tensor,
    x: Tensor,
    memory: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    cache: object = None,
) -> tuple[Tensor, Tensor]:
    """Mean entropy (nats) over real queries and heads, and the largest logit they may attend to.

    x (B, T, D), real (B, T), memory (B, S, D), mask (B or 1, 1, T or 1, S); of the first sentences, as many
    as make up LOGITS logits.
    """
    rows = max(1, LOGITS // (attention.heads * x.shape[1] * (x if memory is None else memory).shape[1]))
    x, real = x[:rows], real[:rows]
    memory = x if memory is None else memory[:rows]
    query, key = (
        projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # (B, H, L, K)
        for projected in (attention.query(x), attention.key(memory))
    )
    query = query if attention.query_norm is None else attention.query_norm(query)
    key = key if attention.key_norm is None else attention.key_norm(key)
    logits = (query @ key.mT).float() * query.shape[-1] ** -0.5  # (B, H, T, S)
    allowed = real[:, None, :, None]
    if mask is not None:
        allowed = allowed & mask[:rows]
    if causal:
        allowed = allowed & causal_mask(x.shape[1], device=x.device)
    least = torch.finfo(logits.dtype).min
    logits = logits.masked_fill(~allowed, least)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(~real[:, None], 0).sum()
    return entropy / (real.sum() * attention.heads), logits.amax()


def gains_of(layer: nn.Module) -> list[nn.Parameter]:
    """The gains of all norms of a layer, those inside sublayers and of queries and keys too."""
    norms = (module for module in layer.modules() if isinstance(module, Norm))
    return [p for norm in norms for name, p in norm.named_parameters(recurse=False) if name in GAINS]


def _layers(model: Transformer, stack: Stack) -> nn.ModuleList:
    return model.encoder.layers if stack == "encoder" else model.decoder.layers


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters() if p.ndim > 1]
