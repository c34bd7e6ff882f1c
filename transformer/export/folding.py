"""Any of our models as a plain Transformer, exactly, or all the reasons why it is none.

A stack of sites LN(r x + f(x)) becomes one of sites LN(x' + f'(x')) on the stream x' = r x: the norm that
made x gets its gain and bias times r, the first site's r goes into the embedding, and the matrices that read
the stream have their columns divided by r. Each norm sees the numbers it saw, so eps stays what it was.
Factors of a branch's input or output go into the norm in front of it, or into its last matrix.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ..core.errors import ConfigError, Problem
from ..core.registry import Entry, Registry
from ..model.parts import Sublayer
from ..model.stacks import Decoder, Encoder
from ..model.transformer import Transformer
from ..modules.attention import MultiHeadAttention
from ..modules.embeddings import POSITIONS, Embedding, UnitEmbedding, unit_rows
from ..modules.feedforward import FeedForward, ThresholdedLinearUnit
from ..modules.folded import Folded, Wiring
from ..modules.norms import NORMS, Norm
from ..modules.placements import PLACEMENTS, Placement
from .plain import (
    Array,
    Linear,
    PlainAttention,
    PlainFeedForward,
    PlainNorm,
    PlainSite,
    PlainStack,
    PlainTransformer,
)

# Where no norm has an eps: so small that float32 does not see it beside a mean square.
NO_EPS = 1e-12
ACTIVATIONS = {"relu": "relu", "tlu": "relu", "gelu": "gelu", "swiglu": "swish"}
SERVED = ", ".join(wiring.value for wiring in Wiring)


def fold(model: Transformer, positions: int) -> PlainTransformer:
    """The model's numbers as a plain Transformer with `positions` rows in its position tables.

    Learned positions have the rows they have. Raises ConfigError with every reason why it cannot be done.
    """
    folding = _Folding(model, positions)
    plain = folding.transformer()
    if folding.problems:
        raise ConfigError(list(dict.fromkeys(folding.problems)))
    return plain


class _Folding:
    """One model's folding: what cannot be done is noted in `problems`, and the rest gone on with."""

    def __init__(self, model: Transformer, positions: int) -> None:
        self.model, self.config = model, model.config
        self.rows = self.config.max_length if POSITIONS[self.config.positions].limited else positions
        self.problems: list[Problem] = []
        self.eps: set[float | None] = set()

    def transformer(self) -> PlainTransformer:
        model = self.model
        if model.config.attention_window is not None:
            self.refuse("attention_window", "attention is served over all columns, not the last ones")
        if model.config.activation not in ACTIVATIONS:
            self.refuse("activation", f"{model.config.activation} is not served")
        encoder = self.stack(model.encoder, model.source_embedding)
        decoder = self.stack(model.decoder, model.target_embedding)
        return PlainTransformer(
            encoder, decoder, array(model.output_weight), self.config.heads, self.one_eps()
        )

    def refuse(self, option: str, message: str) -> None:
        self.problems.append(Problem(f"model.{option}", message))

    def one_eps(self) -> float:
        """The eps of all norms, which engines have once for the model."""
        if len(self.eps) > 1:
            has = sorted("none" if eps is None else f"{eps:g}" for eps in self.eps)
            self.refuse("norm_eps", f"all norms have to share one eps, these have {' and '.join(has)}")
        return next((eps for eps in self.eps if eps is not None), NO_EPS)

    def stack(self, stack: Encoder | Decoder, embedding: Embedding) -> PlainStack:
        name = "encoder" if isinstance(stack, Encoder) else "decoder"
        rows = embedding.tokens.weight
        table = unit_rows(rows) if isinstance(embedding.tokens, UnitEmbedding) else rows
        plain = PlainStack(
            Wiring.PRE,
            array(table) * embedding.scale,
            array(embedding.positions(self.rows)),
            self.norm(stack.embedding_norm),
            [],
            self.norm(stack.final_norm),
        )
        if not len(stack.layers):
            self.refuse(f"{name}_layers", "a stack without layers is not served")
        wirings: set[Wiring] = set()
        at_work: list[tuple[Folded, PlainSite]] = []
        for layer in stack.layers:
            plain.layers.append([])
            for placement, sublayer in layer.sites():  # type: ignore[operator]
                attention = isinstance(sublayer, MultiHeadAttention)
                if attention and sublayer.query_norm is not None and not placement.inner.query:
                    self.refuse(
                        "qk_norm", "CTranslate2 norms queries and keys differently in cross-attention"
                    )
                folded = placement.folded()
                if folded is None:
                    self.refuse("placement", f"{_said(PLACEMENTS, placement)} ({name}) is none of {SERVED}")
                    for norm in placement.modules():  # they may be a reason of their own
                        self.norm(norm if isinstance(norm, Norm) else None)
                    continue
                wirings.add(folded.wiring)
                if not array(folded.residual).all():
                    self.refuse(
                        "placement", "the residual's factor is 0 in some channel: it cannot be divided by"
                    )
                norms = [plain_norm for norm in folded.norms if (plain_norm := self.norm(norm)) is not None]
                site = PlainSite(norms, self.branch(placement, sublayer))
                plain.layers[-1].append(site)
                at_work.append((folded, site))
        if len(wirings) > 1:
            both = " and ".join(sorted(wiring.value for wiring in wirings))
            self.refuse("placement", f"all layers of the {name} have to be wired alike, these are {both}")
        plain.wiring = next(iter(wirings), Wiring.PRE)
        if not self.problems:
            self.factors(plain, at_work)
        return plain

    def factors(self, stack: PlainStack, sites: list[tuple[Folded, PlainSite]]) -> None:
        """Multiply the factors of each site into what stands before and behind them."""
        width = stack.table.shape[1]
        make_stream = stack.multiply_bottom
        for folded, site in sites:
            residual, into, out = (
                np.broadcast_to(array(factor), (width,))
                for factor in (folded.residual, folded.input, folded.output)
            )
            site.branch.output.multiply(out)
            if stack.wiring is not Wiring.POST:
                assert (residual == 1).all()
                site.norms[0].multiply(into)
                continue
            assert (into == 1).all()
            make_stream(residual)
            for matrix in site.branch.readers:
                matrix.divide_input(residual)
            make_stream = site.norms[0].multiply

    def norm(self, norm: nn.Module | None) -> PlainNorm | None:
        """A norm's arrays; None for the identity, and for what is refused."""
        if norm is None or isinstance(norm, nn.Identity):
            return None
        assert isinstance(norm, Norm)
        folded = norm.folded()
        if folded is None:
            self.refuse("norm", f"{_said(NORMS, norm)} is neither LayerNorm nor RMSNorm")
            return None
        self.eps.add(folded.eps)
        bias = None if folded.bias is None else array(folded.bias)
        return PlainNorm(folded.centred, array(folded.gain), bias)

    def branch(self, placement: Placement, sublayer: Sublayer) -> PlainAttention | PlainFeedForward:
        """A sublayer's matrices; `folded` has promised that it holds nothing else."""
        assert sublayer.inner_norm is None
        assert sublayer.shift is None
        if isinstance(sublayer, MultiHeadAttention):
            assert sublayer.head_scale is None
            matrices = (sublayer.query, sublayer.key, sublayer.value, sublayer.output)
            query, key, value, output = map(linear, matrices)
            return PlainAttention(query, key, value, output, placement.site.is_cross_attention)
        return _feedforward(sublayer, ACTIVATIONS.get(self.config.activation, ""))


def _feedforward(sublayer: FeedForward, activation: str) -> PlainFeedForward:
    """W2 max(h, tau) = W2 (relu(h - tau) + tau)."""
    hidden, output = linear(sublayer.hidden), linear(sublayer.output)
    if isinstance(sublayer.activation, ThresholdedLinearUnit):
        threshold = array(sublayer.activation.threshold)
        hidden.bias = hidden.bias - threshold
        output.bias = output.bias + output.weight @ threshold
    gate = None if sublayer.gate is None else linear(sublayer.gate)
    return PlainFeedForward(hidden, gate, output, activation)


def linear(matrix: nn.Linear) -> Linear:
    weight = array(matrix.weight)
    return Linear(weight, np.zeros(len(weight)) if matrix.bias is None else array(matrix.bias))


def array(values: Tensor | float) -> Array:
    """A copy in float64, on the host."""
    if isinstance(values, Tensor):
        return np.array(values.detach().double().cpu().numpy())
    return np.array(values, dtype=np.float64)


def _said(registry: Registry[type[Norm]] | Registry[type[Placement]], part: Norm | Placement) -> str:
    """`b2t, LN(b + x + f(x)), ...`: a name with what it computes."""
    entries: list[Entry[type[Norm]] | Entry[type[Placement]]] = [*registry.entries()]
    entry = next((entry for entry in entries if entry.value is type(part)), None)
    return f"{entry.name}, {entry.equation}" if entry else type(part).__name__
