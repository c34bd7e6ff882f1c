"""python -m transformer list placements|norms|...|options [--json]: what can be chosen and set."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.registry import unknown
from .command import Parser, command
from .describe import REGISTRIES, choices_facts, choices_text, options_facts, options_text, schema

KINDS = (*REGISTRIES, "options", "schema")


@command
def main(argv: Sequence[str]) -> int:
    """Print registries, options, or the JSON Schema of a configuration file."""
    parser = Parser(
        "list", "Print what can be chosen (" + ", ".join(REGISTRIES) + "), every option, or the JSON Schema."
    )
    parser.add_argument(
        "kind", nargs="*", metavar="KIND", help=f"one or more of {', '.join(KINDS)}; default: all choices"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    kinds = arguments.kind or list(REGISTRIES)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(unknown("kind", kind, KINDS))
    if arguments.json or "schema" in kinds:
        facts = {kind: _facts(kind) for kind in kinds}
        print(json.dumps(facts[kinds[0]] if len(kinds) == 1 else facts, indent=2, ensure_ascii=False))
    elif len(kinds) == 1:
        print(_text(kinds[0]))
    else:
        print("\n\n".join(f"{kind}:\n{_text(kind)}" for kind in kinds))
    return 0


def _facts(kind: str) -> object:
    return options_facts() if kind == "options" else schema() if kind == "schema" else choices_facts(kind)


def _text(kind: str) -> str:
    return options_text() if kind == "options" else choices_text(kind)
