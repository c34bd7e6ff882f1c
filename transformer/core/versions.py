"""Versions of packages against the ranges that pyproject.toml asks for."""

from __future__ import annotations

import operator
import re

_SIGNS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def satisfies(version: str, wanted: str) -> bool:
    """Is a version in a range such as `>=2.9,<4`? Only the numbers of its release count: 2.9.0rc1 is 2.9."""
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        found = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*(\d[\d.]*)", clause)
        assert found, f"not a range: {wanted}"
        ours, theirs = _release(version), _release(found[2])
        width = max(len(ours), len(theirs))
        padded = (release + (0,) * (width - len(release)) for release in (ours, theirs))
        if not _SIGNS[found[1]](*padded):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
