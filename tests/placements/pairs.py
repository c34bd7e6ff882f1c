"""Which placements and norms go together, as the papers' wirings say; not read from the package."""

from __future__ import annotations

from typing import Any

import pytest

from transformer import NORMS, PLACEMENTS

# The stream itself passes through the norm: one that does not bring it back to scale makes no sense there.
THROUGH_THE_NORM = {
    "post",
    "deepnorm",
    "admin",
    "b2t",
    "resi_dual",
    "keel",
    "rskip",
    "xskip",
    "mix",
    "hybrid",
}
NO_RESCALING = {"dyt", "derf", "none"}
# Without a norm anywhere; there is nothing to choose.
WITHOUT_NORM = {"rezero", "fixup", "tfixup"}
# These norm heads or several streams: one token at a time.
OVER_ONE_TOKEN = {"hybrid", "hyper"}
OVER_A_SENTENCE = {"instance", "frn"}
OVER_A_BATCH = {"batch", "power"}
# The backward pass runs the branch again: statistics that are remembered would count twice, and what no
# norm of a token's own holds lets its rounding errors grow.
RUNS_TWICE = {"reversible"}


def is_legal(placement: str, norm: str) -> bool:
    """In the encoder. In a decoder the norms of OVER_A_BATCH are refused besides."""
    if placement in WITHOUT_NORM:
        return norm == "none"
    if placement == "xskip" and norm == "none":  # the paper's arm without LN
        return True
    if placement in THROUGH_THE_NORM and norm in NO_RESCALING:
        return False
    if placement in OVER_ONE_TOKEN and norm in OVER_A_SENTENCE | OVER_A_BATCH:
        return False
    return not (placement in RUNS_TWICE and norm in OVER_A_BATCH | OVER_A_SENTENCE | {"none"})


PAIRS = [(p, n) for p in PLACEMENTS for n in NORMS if is_legal(p, n)]
ILLEGAL = [(p, n) for p in PLACEMENTS for n in NORMS if not is_legal(p, n)]


def plan(norm: str) -> Any:
    """The norm in both stacks, or in the encoder alone where a decoder may not have it."""
    return {"encoder": norm, "decoder": "layer"} if norm in OVER_A_BATCH else norm


def usual(placement: Any) -> str:
    """A norm that goes with the placement, or with the placements of a plan."""
    return "none" if isinstance(placement, str) and placement in WITHOUT_NORM else "layer"


def extras(placement: str, norm: str) -> dict[str, Any]:
    """Options without which a small model would not show the pair.

    Of 16 numbers prms would take one; dividing by a single number lets rounding errors grow. With a share of
    a quarter mix has no Post-LN layer in a stack of two.
    """
    options = {"norm_options": {"p": 0.5}} if norm == "prms" else {}
    return options | ({"placement_options": {"share": 0.5}} if placement == "mix" else {})


# Each placement with one norm, and each norm with one placement.
ONCE = [pair for i, pair in enumerate(PAIRS) if all(pair[0] != p[0] for p in PAIRS[:i])]
ONCE += [pair for i, pair in enumerate(PAIRS) if all(pair[1] != p[1] for p in PAIRS[:i]) and pair not in ONCE]

# A norm of one token's own numbers cannot tell in which placement it stands: with those, the first of each is
# tried at once and the rest of the matrix by `make slow`. What spans tokens is tried everywhere: a norm of a
# sentence's numbers and one of a batch's, the two of each in turn.
_TRIED = {*ONCE}
for _spans in (OVER_A_SENTENCE, OVER_A_BATCH):
    for _i, _placement in enumerate(dict.fromkeys(p for p, n in PAIRS if n in _spans)):
        _norms = sorted(_spans)
        _TRIED.add((_placement, _norms[_i % len(_norms)]))
MATRIX = [pytest.param(*pair, marks=[] if pair in _TRIED else pytest.mark.slow) for pair in PAIRS]
