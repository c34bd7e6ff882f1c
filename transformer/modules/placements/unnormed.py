"""Without norms: a gate, or initial values, keep the stream in bounds."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ..branch import Gains, Inner
from ..norms import NormFactory
from .base import PLACEMENTS, Branch, Placement, Site, Stack


@PLACEMENTS.register(
    "rezero",
    title="ReZero",
    equation="x + a f(x)",
    paper="Bachlechner et al. 2020, arXiv 2003.04887",
    note="One learned number a for each layer, 0 at the start.",
    cross_attention="as the authors' gates do: the layer's three sublayers share one",
    peers="Transformer-Clinic",
    cost="no norm; one product a sublayer",
)
@final
class ReZero(Placement):
    """x + a f(x), a one learned number for each layer, shared by its sublayers; a = 0 at the start.

    ::

        x --+--[ f ]--[* a]--(+)-->
            '-----------------^

    The stream is (x, a): a layer's first site owns the gate and hands it on. At the start every stack is the
    identity. Initial gains: all 1; with a = 0 the first update moves the decoder's gates alone, and the
    encoder's follow once cross-attention's count. Cross-attention reads a memory that nothing has normed.

    What people get wrong: one gate for each sublayer is SkipInit's choice. The gates see a large
    gradient: deep stacks want a smaller learning rate for them.
    """

    norms = ()

    def __init__(self, site: Site, make_norm: NormFactory, dropout: float) -> None:
        super().__init__(site, make_norm, dropout)
        self.gate = nn.Parameter(torch.zeros(())) if site.opens_layer else None

    def open(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(())

    def close(self, stream: tuple[Tensor, Tensor], norm: nn.Module) -> Tensor:
        return norm(stream[0])  # type: ignore[no-any-return]

    def forward(self, stream: tuple[Tensor, Tensor], branch: Branch) -> tuple[Tensor, Tensor]:
        x, gate = stream
        # A copy: the later sites use it when this site's parameters may be away (train.parallel: fsdp).
        gate = gate if self.gate is None else self.gate.clone()
        return x + gate * self.dropout(branch(x)), gate


@PLACEMENTS.register(
    "fixup",
    title="Fixup",
    equation="x + c f(x + s)",
    paper="Zhang et al. 2019, arXiv 1901.09321",
    note="Initial values by the number of branches; scalar shifts instead of biases; a learned scalar c.",
    cross_attention="as the authors do",
    peers="the authors' fork of fairseq",
    cost="no norm; one product and one addition a sublayer, and the shifts inside",
)
@final
class Fixup(Placement):
    """x + c f(x + s), c and s learned numbers that start as 1 and 0; f has shifts for biases, and is 0 first.

    ::

        x --+--(+ s)--[ f ]--[* c]--(+)-->
            '------------------------^

    Initial gains, with L = 2N + 3M branches in the model: feed-forward W1 L^(-1/2), W2 zero; attention
    W^Q, W^K and W^V L^(-1/6), W^O zero. That is L^(-1/(2m - 2)) for m matrices, the last one zero.
    The matrices have no biases; a scalar shift, 0 at the start, stands before each of them and before the
    activation, and one scalar multiplier at each branch.

    The shift s is of the stream alone: cross-attention's memory comes as it is. At the start every stack is
    the identity. Embeddings and output projection start as in every other placement.

    What people get wrong: L counts the branches of encoder and decoder together; and a zero matrix does not
    stop learning: its own gradient is not zero, and after one update the others' are not either.
    """

    norms = ()

    def __init__(self, site: Site, make_norm: NormFactory, dropout: float) -> None:
        super().__init__(site, make_norm, dropout)
        self.shift = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    @staticmethod
    def gains_at(site: Site) -> Gains:
        branches = 2 * site.encoder_layers + 3 * site.decoder_layers
        gain = branches ** (-1 / 6 if site.is_attention else -1 / 2)
        return Gains(beta=gain, query_key=gain, output=0.0)

    @staticmethod
    def inner_at(site: Site) -> Inner:
        return Inner(bias=False, shift=True)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.scale * self.dropout(branch(x + self.shift))  # type: ignore[no-any-return]


@PLACEMENTS.register(
    "tfixup",
    title="T-Fixup",
    equation="x + f(x)",
    paper="Huang et al. 2020, Improving Transformer Optimization Through Better Initialization (ICML)",
    note="Initial values alone, by depth: embeddings and the path of the values. Made to need no warm-up.",
    cross_attention="as the authors do",
    peers="the authors' fork of fairseq",
    cost="no norm, nothing beside the addition",
)
@final
class TFixup(Placement):
    """x + f(x), held by the initial values alone.

    ::

        x --+--[ f ]--(+)-->
            '----------^

    Initial gains, with N encoder and M decoder layers: value, output and feed-forward matrices of the
    decoder, cross-attention's included, (9M)^(-1/4); those of the encoder 0.67 N^(-1/4); query and key 1.
    Embeddings N(0, 1/D) times (9N)^(-1/4) for the source and (9M)^(-1/4) for the target; a shared table has
    the source's.

    What people get wrong: a further sqrt(2) on the values, as in the authors' code, only undoes the gain
    that their toolkit gives query, key and value. Positions are not scaled with the embeddings.
    """

    norms = ()

    @staticmethod
    def gains_at(site: Site) -> Gains:
        decoder = (9 * site.decoder_layers) ** (-1 / 4)
        return Gains(beta=0.67 * site.encoder_layers ** (-1 / 4) if site.stack == "encoder" else decoder)

    @staticmethod
    def embedding_gain(stack: Stack, layers: int) -> float:
        return math.pow(9 * layers, -1 / 4)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.dropout(branch(x))  # type: ignore[no-any-return]
