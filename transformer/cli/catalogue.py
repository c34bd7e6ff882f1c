"""What there is to know of each placement and norm: its registration, and counts of models built with it."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch

from ..core.options import options
from ..core.registry import Entry
from ..core.signature import options_of
from ..core.special import EOS
from ..model.pairing import SUBLAYERS, norm_needs
from ..model.transformer import Transformer
from ..modules.norms import NORMS, Norm
from ..modules.placements import PLACEMENTS
from .wiring import norms_in

# What norms and parameters are counted of. Vocabularies are as small as can be: no choice changes them.
SHAPE: dict[str, Any] = {"d_model": 512, "d_ff": 2048, "heads": 8, "encoder_layers": 6, "decoder_layers": 6}
SHAPE_TEXT = "d_model 512, d_ff 2048, 8 heads, 6 + 6 layers"
VOCABULARY = EOS + 1
# Of a norm of one token, which may stand anywhere.
EVERYWHERE = "as everywhere: a norm of one token does not know where it stands"
ALONE = """\
                channels
a token         . . . .     no statistic: each number for itself
the next        . . . ."""
SHARED = {
    "token": """\
                channels
a token         a a a a     equal letters share their statistics
the next        b b b b""",
    "sentence": """\
                channels
sentence 1      a b c d     equal letters share their statistics
                a b c d
                - - - -     padding
sentence 2      e f g h     in the decoder each token has its own: of its channel, up to itself
                e f g h
                e f g h""",
    "batch": """\
                channels
sentence 1      a b c d     equal letters share their statistics
                a b c d
                - - - -     padding
sentence 2      a b c d
                a b c d
                a b c d""",
}
PLAIN_PLACEMENT, PLAIN_NORM, NO_NORM = "post", "layer", "none"  # what the counts are compared with


def entry_facts(entry: Entry[Any]) -> dict[str, Any]:
    """What was said at the registration."""
    return {
        "name": entry.name,
        "title": entry.title,
        "equation": entry.equation,
        "paper": entry.paper,
        "note": entry.note,
        "cross_attention": entry.cross_attention,
        "peers": entry.peers,
        "cost": entry.cost,
    }


def placement_facts(name: str) -> dict[str, Any]:
    """All facts of a placement; counts are of the default options in a model of SHAPE."""
    entry, model = PLACEMENTS.entry(name), _model(name)
    refused = placement_refuses(name)
    return {
        **entry_facts(entry),
        "figure": figure(entry.value),
        "options": option_facts(entry.value),
        "final_norm": entry.value.final_norm,
        "embedding_norm": model.config.embedding_norm_of("encoder"),
        "norms_per_layer": {
            "encoder": [norms_in(layer) for layer in model.encoder.layers],
            "decoder": [norms_in(layer) for layer in model.decoder.layers],
        },
        "norms": norms_in(model),
        "parameters_beyond_post": model.parameter_count() - _model(PLAIN_PLACEMENT).parameter_count(),
        "counted_at": SHAPE,
        "default_norm": model.config.norm,
        "norms_that_go": [norm for norm in NORMS if norm not in refused],
        "of_these_encoder_only": [n for n in NORMS if n not in refused and NORMS[n].unfit("decoder")],
        "norms_refused": refused,
    }


@cache
def norm_facts(name: str) -> dict[str, Any]:
    """All facts of a norm; parameters are those of the norms of a Pre-LN model of SHAPE."""
    entry = NORMS.entry(name)
    unfit = {stack: NORMS[name].unfit(stack) for stack in SUBLAYERS}
    refused = {p: refusal for p in PLACEMENTS if (refusal := placement_refuses(p).get(name))}
    return {
        **entry_facts(entry),
        "figure": norm_figure(entry.value),
        "cross_attention": entry.cross_attention or EVERYWHERE,
        "options": option_facts(entry.value),
        "span": entry.value.span,
        "normalises": entry.value.normalises,
        "rescales": entry.value.rescales,
        "parameters_beyond_none": _pre(name).parameter_count() - _pre(NO_NORM).parameter_count(),
        "counted_at": {**SHAPE, "placement": _pre(name).config.placement},
        "unfit": {stack: reason for stack, reason in unfit.items() if reason},
        "placements_that_refuse": refused,
    }


@cache
def placement_refuses(name: str) -> dict[str, str]:
    """Norms that a placement does not go with, and why; stacks that a norm is unfit for do not count."""
    if not list(norm_needs(_model(name).config)):
        return {norm: "it has no norms" for norm in NORMS if NORMS[norm].normalises}
    found = {norm: [PLACEMENTS[name].refuses(NORMS[norm], stack) for stack in SUBLAYERS] for norm in NORMS}
    return {norm: next(filter(None, reasons)) for norm, reasons in found.items() if any(reasons)}


def option_facts(built: type) -> list[dict[str, Any]]:
    """The options that a class's constructor declares."""
    return [
        {"name": o.key, "type": o.kind, "default": o.default, "help": o.help}
        for o in options(options_of(built))
    ]


def figure(built: type) -> str:
    """The first literal block of a class's docstring: what follows `::`."""
    found = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.cleandoc(built.__doc__ or "") + "\n")
    return inspect.cleandoc("\n" + found[1]) if found else ""


def norm_figure(built: type[Norm]) -> str:
    """The docstring's figure, else which numbers share one statistic, as its `span` says."""
    return figure(built) or (SHARED[built.span] if built.rescales else ALONE)


@cache
def _model(placement: str) -> Transformer:
    return _built(placement=placement)


@cache
def _pre(norm: str) -> Transformer:
    return _built(norm=norm, allow_unsound=True)


def _built(**flags: Any) -> Transformer:
    with torch.device("meta"):  # shapes without numbers
        return Transformer(VOCABULARY, VOCABULARY, **SHAPE, **flags)
