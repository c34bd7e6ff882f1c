"""The rules of the house, read from the source with `ast`; nothing is imported to check them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "transformer"
FLOORS = ("core", "modules", "model", "data", "training", "decoding", "evaluation", "cli")
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = (ROOT / "train.py", ROOT / "translate.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever the import stands; relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_only_down(path: Path) -> None:
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return
    upward = [module for module in imports(path) if (floor(module) or 0) > own]
    assert not upward, f"{name_of(path)} imports from a higher floor: {upward}"
    top = [module for module in imports(path) if module in ("transformer", "transformer.Transformer")]
    assert not top, f"{name_of(path)} imports the package's top, which stands on every floor"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_core_does_not_import_torch(path: Path) -> None:
    assert not [module for module in imports(path) if module.split(".")[0] == "torch"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_has_more_than_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_the_scripts_are_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 20


def registered(file: str) -> set[str]:
    """Names registered in a file: the first argument of every `X.register("name", ...)`."""
    tree = ast.parse((PACKAGE / "modules" / file).read_text(encoding="utf-8"))
    return {
        str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "register"
        and isinstance(node.args[0], ast.Constant)
    }


def compared_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Text constants that stand in a comparison or a `case`, with their line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        inside = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        inside += [node.pattern] if isinstance(node, ast.match_case) else []
        for part in inside:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield leaf.lineno, leaf.value


def test_no_code_compares_the_name_of_a_placement_or_a_norm() -> None:
    names = (registered("placements.py") | registered("norms.py")) - {"none"}
    assert {"pre", "post", "layer", "rms"} <= names
    found = [(name_of(p), line, text) for p in FILES for line, text in compared_texts(p) if text in names]
    assert not found
    code = "|".join(re.escape(name) for name in ("placement", "norm"))
    asked = re.compile(rf"\b(?:\w*_)?(?:{code})(?:_of\([^)]*\))?\s*(?:==|!=|in)\s*[\"'(\[]")
    lines = [
        (name_of(p), line)
        for p in FILES
        for line in p.read_text(encoding="utf-8").splitlines()
        if asked.search(line)
    ]
    assert not lines


def test_nothing_is_swallowed() -> None:
    """No `except: pass`, bare or not."""
    swallowed = [
        (name_of(path), node.lineno)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert not swallowed


def test_nothing_that_is_read_can_run_code() -> None:
    """No pickle loads, no eval, no unsafe YAML; torch.load only with weights_only=True."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
