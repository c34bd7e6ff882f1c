"""The pages docs/placements.md and docs/norms.md, from the registries and the classes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.reading import written
from ..export.folding import fold
from ..model.pairing import normless
from ..model.transformer import Transformer
from ..modules.folded import Folded
from ..modules.norms import NORMS
from ..modules.placements import PLACEMENTS
from .catalogue import NO_NORM, PLAIN_NORM, SHAPE_TEXT, norm_facts, placement_facts

ROOT = Path(__file__).parents[2]
SPANS = {"token": "one token", "sentence": "the tokens of a sentence", "batch": "all tokens of a batch"}
NONE_FOUND = "none found"  # among the toolkits that were looked at


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def placements_table() -> str:
    rows = []
    for name in PLACEMENTS:
        facts = placement_facts(name)
        per_layer = facts["norms_per_layer"]
        rows.append(
            [
                _link(facts),
                facts["title"],
                f"`{facts['equation']}`",
                f"{_span(per_layer['encoder'])} + {_span(per_layer['decoder'])}",
                "yes" if facts["final_norm"] else "no",
                f"{facts['parameters_beyond_post']:+,}",
            ]
        )
    head = [
        "name",
        "title",
        "equation",
        "norms a layer (encoder + decoder)",
        "final norm",
        "parameters, Post-LN's taken off",
    ]
    return markdown_table(head, rows)


def placement_entries() -> str:
    return "\n\n".join(_placement(placement_facts(name)) for name in PLACEMENTS)


def norms_table() -> str:
    rows = []
    for name in NORMS:
        facts = norm_facts(name)
        rows.append(
            [
                _link(facts),
                facts["title"],
                f"`{facts['equation']}`",
                SPANS[facts["span"]] if facts["rescales"] else "none",
                "yes" if facts["rescales"] else "no",
                f"{facts['parameters_beyond_none']:+,}",
            ]
        )
    head = [
        "name",
        "title",
        "equation",
        "statistics over",
        "brings back the scale",
        f"parameters, those of `{NO_NORM}` taken off",
    ]
    return markdown_table(head, rows)


def norm_entries() -> str:
    return "\n\n".join(_norm(norm_facts(name)) for name in NORMS)


def served_placements() -> str:
    """Which placements an engine can serve, with their default options in stacks of four layers."""
    rows = []
    for entry in PLACEMENTS.entries():
        model = Transformer(
            8, 8, placement=entry.name, d_model=8, heads=2, d_ff=8, encoder_layers=4, decoder_layers=4
        )
        try:
            wiring = f"`{fold(model, positions=8).decoder.wiring.value}`"
        except ConfigError:
            rows.append([f"`{entry.name}`", f"`{entry.equation}`", "no", ""])
            continue
        sites = [site.folded() for site, _ in model.sites()]
        rows.append([f"`{entry.name}`", f"`{entry.equation}`", wiring, _factors(sites)])
    return markdown_table(["placement", "computes", "served as", "folded into the weights"], rows)


def _factors(sites: Sequence[Folded | None]) -> str:
    """What is not 1 at some site."""
    words = {
        "residual": "the residual's factor",
        "input": "the input's factor",
        "output": "the output's factor",
    }
    moved = [
        text
        for name, text in words.items()
        if any(bool((torch.as_tensor(getattr(site, name)) != 1).any()) for site in sites)
    ]
    return ", ".join(moved)


def served_norms() -> str:
    rows = []
    for entry in NORMS.entries():
        folded = entry.value(8).folded()
        kind = "no" if folded is None else "LayerNorm" if folded.centred else "RMSNorm"
        eps = "" if folded is None else "none" if folded.eps is None else "`model.norm_eps`"
        rows.append([f"`{entry.name}`", f"`{entry.equation}`", kind, eps])
    return markdown_table(["norm", "computes", "served as", "its eps"], rows)


def _placement(facts: Mapping[str, Any]) -> str:
    per_layer = facts["norms_per_layer"]
    norms = (
        f"{_span(per_layer['encoder'])} in an encoder layer, {_span(per_layer['decoder'])} in a decoder layer"
    )
    norms += ", and one at the top of each stack" if facts["final_norm"] else ", none at the top"
    norms += ", and one after each embedding" if facts["embedding_norm"] else ""
    kept = "" if facts["default_norm"] == PLAIN_NORM else f", with `norm: {facts['default_norm']}`"
    points = {
        "Norms": f"{norms}{kept}",
        "Parameters": _more(facts["parameters_beyond_post"], "Post-LN"),
        "Cost": facts["cost"],
        "Cross-attention": facts["cross_attention"],
        "Goes with": _goes_with(facts["norms_refused"], facts["of_these_encoder_only"]),
        "Elsewhere": facts["peers"] or NONE_FOUND,
    }
    return _entry(facts, PLACEMENTS[facts["name"]], "placement_options", points)


def _norm(facts: Mapping[str, Any]) -> str:
    unfit = "; ".join(f"refused in the {stack}: {reason}" for stack, reason in facts["unfit"].items())
    points = {
        "Statistics over": SPANS[facts["span"]] if facts["rescales"] else "none",
        "Brings back the scale": "yes" if facts["rescales"] else "no",
        "Parameters": _more(facts["parameters_beyond_none"], f"`{NO_NORM}`"),
        "Cost": facts["cost"],
        "Cross-attention and decoder": facts["cross_attention"],
        "Stacks": unfit,
        "Refused by": _names([p for p in facts["placements_that_refuse"] if not normless(p)]),
        "Elsewhere": facts["peers"] or NONE_FOUND,
    }
    return _entry(facts, NORMS[facts["name"]], "norm_options", points)


def _entry(facts: Mapping[str, Any], built: type, field: str, points: Mapping[str, str]) -> str:
    parts = [f"### {facts['name']}", f"**{facts['title']}**: `{facts['equation']}`"]
    parts += [f"```\n{facts['figure']}\n```"] if facts["figure"] else []
    parts += [text for text in (facts["paper"], facts["note"]) if text]
    lines = [f"- {label}: {text}" for label, text in points.items() if text]
    lines += [
        f"- `model.{field}.{o['name']}` = `{written(o['default'])}` ({o['type']}): {o['help']}"
        for o in facts["options"]
    ]
    file = Path(inspect.getfile(built)).relative_to(ROOT).as_posix()
    return "\n\n".join([*parts, "\n".join([*lines, f"- Source: [`{built.__name__}`](../{file})"])])


def _link(facts: Mapping[str, Any]) -> str:
    return f"[`{facts['name']}`](#{facts['name']})"


def _more(parameters: int, other: str) -> str:
    if not parameters:
        return f"as many as {other}"
    return f"{abs(parameters):,} {'more' if parameters > 0 else 'fewer'} than {other}"


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _goes_with(refused: Mapping[str, str], encoder_only: Sequence[str]) -> str:
    """`all norms but dyt, none: REASON`, by reason; and what is for the encoder only."""
    alone = f"; {_names(encoder_only)} in the encoder only" if encoder_only else ""
    if not refused:
        return f"all norms{alone}"
    by_reason: dict[str, list[str]] = {}
    for norm, reason in refused.items():
        by_reason.setdefault(reason, []).append(norm)
    if len(refused) == sum(norm.normalises for norm in NORMS.values()):
        return f"`{NO_NORM}` alone: {next(iter(by_reason))}"
    reasons = "; ".join(f"{_names(norms)} ({reason})" for reason, norms in by_reason.items())
    return f"all norms but {reasons}{alone}"


def _names(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES: dict[str, Callable[[], str]] = {
    "placements_table": placements_table,
    "placement_entries": placement_entries,
    "norms_table": norms_table,
    "norm_entries": norm_entries,
    "served_placements": served_placements,
    "served_norms": served_norms,
    "shape": lambda: f"Counted in a model of {SHAPE_TEXT}, with the default options.",
}
