"""A field that is a choice: its names in checks, schema and tables are the registry's, whenever asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from transformer.core.configuration import Section, choice
from transformer.core.options import options
from transformer.core.registry import Registry

LATE: Registry[int] = Registry("shape")


class Drawing(Section):
    shape: choice(LATE) = "square"  # type: ignore[valid-type]
    other: choice(LATE) | None = None  # type: ignore[valid-type]


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a JSON Schema."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas(inner)


def test_a_choice_registered_after_its_section_is_legal_and_listed() -> None:
    if "square" not in LATE:
        LATE.register("square", title="Square")(4)
    assert [option.kind for option in options(Drawing)] == ["square", "square or null"]
    with pytest.raises(ValidationError, match="unknown shape 'round'"):
        Drawing(shape="round")
    LATE.register("round", title="Circle")(0)
    assert Drawing(shape="round", other="round").shape == "round"
    assert [option.kind for option in options(Drawing)] == ["square|round", "square|round or null"]
    enums = [schema["enum"] for schema in schemas(Drawing.model_json_schema()) if "enum" in schema]
    assert enums == [["square", "round"]] * 2
