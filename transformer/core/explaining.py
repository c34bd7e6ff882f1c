"""Say what is wrong with values that a section refuses: path, value, where it came from, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .configuration import Conflicts, Section
from .errors import Problem
from .options import subsection, suggestion
from .reading import KeyPath
from .registry import nearest

_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)
S = TypeVar("S", bound=Section)


def explain_failures(
    section: type[S], values: Mapping[str, Any], source: Callable[[KeyPath], str], unread: bool = False
) -> tuple[S | None, list[Problem]]:
    """Build the section; with what is refused, set aside what was refused and try again.

    pydantic does not check how fields go together while one of them is wrong by itself. So refused
    values fall back to their defaults in another round, whose findings are kept unless they speak of
    a value that was set aside. With `unread`, missing values are not reported.
    """
    remaining = deepcopy(dict(values))
    aside: set[str] = set()
    problems: list[Problem] = []
    while True:
        try:
            built = section.model_validate(remaining)
        except ValidationError as failure:
            found = _grouped(section, failure.errors(include_url=False), remaining)
        else:
            return (None if problems else built), problems
        removed = False
        blamed: list[tuple[KeyPath, list[KeyPath]]] = []
        for path, details in found.items():
            said = _problems(section, path, details, source)
            blamed.append((path, [tuple(problem.path.split(".")) for problem in said]))
            for problem in said:
                spoken_of = set(re.findall(r"\w+", f"{problem.path} {problem.message}"))
                is_missing = details[0]["type"] == "missing"
                if problem not in problems and not (spoken_of & aside) and not (unread and is_missing):
                    problems.append(problem)
        for path, options in blamed:
            taken = [name for option in options for name in _take_out(section, remaining, option)]
            if not taken:  # a conflict that names a default: the values of its section go
                taken = _take_out(section, remaining, path)
            removed = removed or bool(taken)
            aside.update(taken)
        if not removed:
            return None, problems


def _grouped(
    section: type[Section], errors: list[ErrorDetails], values: Mapping[str, Any]
) -> dict[KeyPath, list[ErrorDetails]]:
    """Errors by key path. The branches of a union have one path: pydantic marks them below it."""
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_key_path(section, error["loc"], values), []).append(error)
    return groups


def _key_path(root: type[Section], location: tuple[int | str, ...], values: Any) -> KeyPath:
    path: KeyPath = ()
    section: type[Section] | None = root
    for part in location:
        if part in values if isinstance(values, Mapping) else _is_index(part, values):
            values = values[part]
        elif section is not None and part in section.model_fields:
            values = None
        else:
            break
        section = subsection(section, str(part)) if section is not None else None
        path = (*path, str(part))
    return path


def _is_index(part: int | str, values: Any) -> bool:
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def _problems(
    root: type[Section], path: KeyPath, details: list[ErrorDetails], source: Callable[[KeyPath], str]
) -> list[Problem]:
    first = details[0]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return [Problem(key, "unknown option", source(path), suggestion(root, path))]
    if first["type"] == "missing" and len(path) < len(first["loc"]):
        return [Problem(key, "too few values" + _given(first["input"]), source(path))]
    if first["type"] == "missing":
        hint = "set it in the file" + (f" or with --set {key}=..." if root.set_by_flag else "")
        return [Problem(key, "required, but not given", "", hint)]
    error = first.get("ctx", {}).get("error")
    if isinstance(error, Conflicts):
        return [_below(path, conflict, source) for conflict in error.problems]
    wants = list(dict.fromkeys(_want(detail) for detail in details))
    if len(wants) > 1:  # one per branch of a union
        wants = [want.partition(", got ")[0] for want in wants]
        return [Problem(key, " or ".join(wants) + _given(first["input"]), source(path))]
    said = first["type"] == "value_error"
    return [Problem(key, wants[0] + ("" if said else _given(first["input"])), source(path))]


def _below(path: KeyPath, problem: Problem, source: Callable[[KeyPath], str]) -> Problem:
    """A conflict found by the section at `path`, with its full key and the source of the value it names."""
    full = (*path, *problem.path.split(".")) if problem.path else path
    return Problem(".".join(full), problem.message, source(full), problem.hint)


def _want(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        names = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        guess = nearest(str(error["input"]), names)
        return f"must be one of {', '.join(names)}" + (f" (did you mean {guess!r}?)" if guess else "")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "too_short":
        return f"needs at least {error['ctx']['min_length']} value"
    if error["type"] == "too_long":
        return f"takes at most {error['ctx']['max_length']} values"
    if error["type"] == "dict_type":
        return "expected a mapping, such as {name: value}"
    return error["msg"].replace("Input should be", "must be").replace("a valid tuple", "a list")


def _given(value: Any) -> str:
    shown = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        shown = value
    return f", got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _take_out(root: type[Section], values: dict[str, Any], path: KeyPath) -> list[str]:
    """Remove the value that `path` leads to, whole. The names of the options that went."""
    section: type[Section] | None = root
    for depth, name in enumerate(path, start=1):
        if name not in values:
            return []
        inner = subsection(section, name) if section is not None else None
        if inner is None or depth == len(path):
            taken = values.pop(name)
            return [name] if inner is None else [name, *taken]
        section, values = inner, values[name]
    return []
