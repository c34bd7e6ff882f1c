"""The rules of the house, read from the source with `ast`; nothing is imported to check them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "transformer"
FLOORS = (
    "core",
    "kernels",
    "modules",
    "model",
    "data",
    "training",
    "decoding",
    "evaluation",
    "analysis",
    "studies",
    "export",
    "speed",
    "cli",
)
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = (ROOT / "train.py", ROOT / "translate.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Everything in a file, which several tests look through."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever the import stands; relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor(module: str) -> int | None:
    """The floor of `transformer.model.layers` is 2; None for what is outside or on top of the house."""
    parts = module.split(".")
    return (
        FLOORS.index(parts[1])
        if len(parts) > 1 and parts[0] == "transformer" and parts[1] in FLOORS
        else None
    )


def test_every_folder_is_a_floor() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders <= set(FLOORS)


def test_imports_point_only_down() -> None:
    upward, top = [], []
    for path in FILES:
        own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own is None:
            continue
        upward += [(name_of(path), module) for module in imports(path) if (floor(module) or 0) > own]
        whole = ("transformer", "transformer.Transformer")
        top += [name_of(path) for module in imports(path) if module in whole]
    assert not upward, "these import from a higher floor"
    assert not top, "these import the package's top, which stands on every floor"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_core_does_not_import_torch(path: Path) -> None:
    assert not [module for module in imports(path) if module.split(".")[0] == "torch"]


def test_no_file_has_more_than_300_lines() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: number for name, number in lines.items() if number > 300}


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_the_scripts_are_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 20


def registered(folder: str) -> set[str]:
    """Names registered in a package of modules: the first argument of every `X.register("name", ...)`."""
    files = sorted((PACKAGE / "modules" / folder).rglob("*.py"))
    assert len(files) > 2, f"modules/{folder} is not where it was"
    names = set()
    for path in files:
        for node in nodes_of(path):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and isinstance(called, ast.Attribute) and called.attr == "register":
                (name, *_) = node.args
                assert isinstance(name, ast.Constant), (
                    f"{name_of(path)}:{node.lineno}: a name not written out"
                )
                names.add(str(name.value))
    return names


def compared_texts(source: str) -> Iterator[tuple[int, str]]:
    """Text constants that stand in a comparison or a `case`, with their line.

    What is compared with a norm's `span` is a word of its own: statistics over a "batch" are no name.
    """
    for node in ast.walk(ast.parse(source)):
        inside = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        inside += [node.pattern] if isinstance(node, ast.match_case) else []
        if any(isinstance(part, ast.Attribute) and part.attr == "span" for part in inside):
            continue
        for part in inside:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield leaf.lineno, leaf.value


def asked_by_name(source: str) -> Iterator[str]:
    """Lines that compare a placement or a norm with a text, or look it up among texts."""
    asked = re.compile(r"\b(?:\w*_)?(?:placement|norm)(?:_of\([^)]*\))?\s*(?:==|!=|in)\s*[\"'(\[]")
    return (line for line in source.splitlines() if asked.search(line))


@pytest.mark.parametrize(
    "line",
    [
        'if config.norm == "batch": pass',
        'if placement in ("pre", "x"): pass',
        'x = 1 if "rms" != name else 2',
        'match name:\n    case "post": pass',
    ],
)
def test_a_comparison_with_a_name_would_be_found(line: str) -> None:
    names = registered("placements") | registered("norms")
    assert [text for _, text in compared_texts(line) if text in names]


def test_a_lookup_among_names_would_be_found() -> None:
    assert list(asked_by_name('if self.config.norm in ["x"]: pass\nif norm_of(stack, 0) == "none": pass'))
    assert len(list(asked_by_name('if norm in NORMS: pass\nif norm_of(stack, 0) == "none": pass'))) == 1
    assert not list(compared_texts('if norm.span == "batch": pass'))


def test_no_code_compares_the_name_of_a_placement_or_a_norm() -> None:
    names = (registered("placements") | registered("norms")) - {"none"}
    assert {"pre", "post", "layer", "rms"} <= names
    sources = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
    found = [(p, at, text) for p, source in sources.items() for at, text in compared_texts(source)]
    assert not [(p, at, text) for p, at, text in found if text in names]
    assert not [(p, line) for p, source in sources.items() for line in asked_by_name(source)]


def test_nothing_is_swallowed() -> None:
    """No `except: pass`, bare or not."""
    swallowed = [
        (name_of(path), node.lineno)
        for path in FILES
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert not swallowed


def test_nothing_that_is_read_can_run_code() -> None:
    """No pickle loads, no eval, no unsafe YAML; torch.load only with weights_only=True."""
    found = []
    for path in FILES:
        for node in nodes_of(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe_load = called == "torch.load" and keywords.get("weights_only") != "True"
            if unsafe_load or called in (
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "yaml.unsafe_load",
            ):
                found.append((name_of(path), node.lineno, called))
    assert not found
