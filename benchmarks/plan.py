"""The plan for a very large run (docs/scaling.md) from its constants, of which you may have your own.

    python benchmarks/plan.py                                    # the table of the page
    python benchmarks/plan.py --gpus 16 --peak 990e12 --share 0.4 --network 50e9 --price 3

Nothing is measured here. Each constant says what it is taken from, and with which command its own machine
would tell it: `python benchmarks/plan.py --help`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- plan: begin -->", "<!-- plan: end -->"
WINDOW, BLOCK = 1 << 20, 1 << 10  # pairs of an epoch's order: planned at once, and never torn apart
OFFSETS = 16  # bytes of a pair in the encoded corpus, besides its ids
MOMENTS = 8  # bytes of a parameter in Adam
FORWARD_AND_BACKWARD = 3  # times the operations of the forward pass


def constant(default: float, mark: str, what: str, instead: str) -> Any:
    """`mark`: measured, counted or assumed, as on the page. `instead`: what tells yours."""
    return field(default=default, metadata={"mark": mark, "what": what, "instead": instead})


@dataclass(frozen=True)
class Constants:
    pairs: float = constant(1e9, "a", "sentence pairs", "`wc -l`")
    subwords: float = constant(
        27,
        "a",
        "subwords of a pair, each side, without EOS",
        "`python benchmarks/scale_plan.py --encoded CACHE`",
    )
    id_bytes: float = constant(2, "c", "bytes of an id", "2 up to 65,536 pieces, else 4")
    gpus: float = constant(64, "a", "GPUs, one rank each", "")
    tokens: float = constant(
        16384, "a", "tokens of a rank's share", "what memory holds: `python -m transformer bench train`"
    )
    width: float = constant(1024, "a", "d_model; feed-forward 4 times it", "")
    layers: float = constant(6, "a", "of encoder and decoder each", "")
    vocabulary: float = constant(32768, "a", "pieces, all embeddings tied", "")
    peak: float = constant(312e12, "a", "operations a second, dense bf16", "an A100, by its maker")
    share: float = constant(0.25, "a", "of the peak that training reaches", "`python benchmarks/gpu.py`: MFU")
    network: float = constant(
        100e9, "a", "bytes a second of a machine's link", "`iperf3` between two of them; bits / 8"
    )
    delay: float = constant(25e-6, "a", "seconds one way between machines", "`ping`: half a round trip")
    votes: float = constant(4, "m", "votes of an update", "`python benchmarks/network.py --part votes`")
    price: float = constant(2, "a", "dollars of a GPU hour", "your bill")
    preparing: float = constant(
        67_500, "m", "pairs a second, prepared", "`python benchmarks/corpus_scale.py`"
    )


@dataclass(frozen=True)
class Plan:
    """What follows; seconds, bytes, operations."""

    constants: Constants
    parameters: float
    sublayers: float  # parameters of them; fsdp gathers the others once
    source: float  # operations of a source token, forward
    target: float

    @property
    def corpus(self) -> float:
        return self.constants.pairs * (OFFSETS + self.constants.id_bytes * 2 * self.constants.subwords)

    @property
    def order(self) -> float:
        """Of every rank: a window, and the sequence of the blocks."""
        return 28 * WINDOW + 8 * self.constants.pairs / BLOCK

    @property
    def pair(self) -> float:
        """Operations of a pair; EOS is a token as well."""
        return FORWARD_AND_BACKWARD * (self.constants.subwords + 1) * (self.source + self.target)

    @property
    def update_pairs(self) -> float:
        return self.constants.gpus * self.constants.tokens / (self.constants.subwords + 1)

    @property
    def computing(self) -> float:
        c = self.constants
        return self.update_pairs * self.pair / (c.gpus * c.peak * c.share)

    def sent(self, layout: str) -> float:
        """Bytes on a machine's link for an update: rings over all ranks, where sums are scattered by nccl."""
        passes = {"ddp": 2 * self.parameters, "fsdp": 2 * self.parameters + self.sublayers}[layout]
        return (self.constants.gpus - 1) / self.constants.gpus * 4 * passes

    def sending(self, layout: str) -> float:
        return self.sent(layout) / self.constants.network

    @property
    def voting(self) -> float:
        """Votes go round a ring twice, one rank after the other; by the longest way, all over the network."""
        return self.constants.votes * 2 * (self.constants.gpus - 1) * self.constants.delay

    def update(self, layout: str) -> float:
        """Gradients hide behind the computation, or it behind them; votes, at worst, behind nothing."""
        return max(self.computing, self.sending(layout)) + self.voting

    def epoch(self, layout: str) -> float:
        return self.constants.pairs / self.update_pairs * self.update(layout)


def plan(constants: Constants) -> Plan:
    from transformer.model.config import ModelConfig
    from transformer.model.cost import cost_of
    from transformer.model.transformer import Transformer

    width, layers, pieces = int(constants.width), int(constants.layers), int(constants.vocabulary)
    shape: dict[str, Any] = {"d_model": width, "d_ff": 4 * width, "heads": max(1, width // 64)}
    shape |= {"encoder_layers": layers, "decoder_layers": layers, "tie_embeddings": "all"}
    config = ModelConfig(**shape)
    cost = cost_of(config, pieces, pieces)
    import torch

    with torch.device("meta"):
        model = Transformer(pieces, pieces, config)
    sublayers = {id(p): p.numel() for site in model.sites() for part in site for p in part.parameters()}
    return Plan(constants, cost.parameters, sum(sublayers.values()), cost.source, cost.target)


def rows(planned: Plan) -> Iterator[tuple[str, str]]:
    c, hour = planned.constants, 3600.0
    yield "parameters", f"{planned.parameters / 1e9:.3f} x 10^9"
    yield "encoded corpus", f"{planned.corpus / 1e9:,.0f} GB"
    yield "preparing it, with two cores", f"{c.pairs / c.preparing / hour:.1f} h"
    yield "an epoch's order, of each rank", f"{planned.order / 1e6:,.0f} MB"
    whole = (8 + MOMENTS) * planned.parameters / 1e9
    parts = "weights, gradients and moments of a GPU, `ddp`; `fsdp` without its groups"
    yield parts, f"{whole:.2f} GB; {whole / c.gpus:.3f} GB"
    yield "operations of a pair", f"{planned.pair / 1e9:.1f} GFLOP"
    yield "pairs of an update", f"{planned.update_pairs:,.0f}"
    yield "computing of an update", f"{planned.computing:.3f} s"
    for layout in ("ddp", "fsdp"):
        slow = planned.sent(layout) / 3e9
        yield (
            f"bytes of an update on a link, `{layout}`",
            f"{planned.sent(layout) / 1e9:.2f} GB: {planned.sending(layout):.3f} s; at 3 GB/s {slow:.2f} s",
        )
    yield "votes of an update", f"{planned.voting:.3f} s"
    yield "an update, `ddp`; `fsdp`", f"{planned.update('ddp'):.3f} s; {planned.update('fsdp'):.3f} s"
    hours = planned.epoch("ddp") / hour
    spent = hours * c.gpus
    yield "updates of an epoch", f"{c.pairs / planned.update_pairs:,.0f}"
    yield "an epoch, `ddp`", f"{hours:.2f} h, {spent:,.0f} GPU hours, {spent * c.price:,.0f} dollars"


def said(value: float) -> str:
    return f"{value:,.0f}" if 1 <= abs(value) < 1e6 else f"{value:g}"


def table(constants: Constants) -> str:
    """The constants and what follows from them, in Markdown."""
    lines = ["| constant | value | | what tells yours |", "|---|---|---|---|"]
    for each in fields(constants):
        of = each.metadata
        value = said(getattr(constants, each.name))
        mark = of["mark"] if getattr(constants, each.name) == each.default else "yours"
        lines.append(f"| `--{each.name}`: {of['what']} | {value} | [{mark}] | {of['instead']} |")
    lines += ["", "| what follows | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows(plan(constants))]
    return "\n".join(lines)


def put(text: str, page: Path) -> None:
    """Replace what stands between the marks of a page."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for each in fields(Constants):
        of = each.metadata
        words = f"{of['what']} [{of['mark']}] {of['instead']} (default: {said(float(str(each.default)))})"
        parser.add_argument(f"--{each.name}", type=float, default=each.default, help=words)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the page's marks")
    given = vars(parser.parse_args(argv))
    page = given.pop("write")
    text = table(Constants(**given))
    print(text)
    if page:
        put(text, page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
