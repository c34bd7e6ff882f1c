"""What users see: public names, quiet imports, and documents whose generated parts are fresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import transformer
from transformer.__main__ import COMMANDS
from transformer.cli.describe import REGISTRIES, grouped_options, refresh

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]


@pytest.mark.parametrize("name", ["Transformer", "ModelConfig", "NORMS", "PLACEMENTS", "__version__"])
def test_the_public_names_exist(name: str) -> None:
    assert hasattr(transformer, name)


def test_importing_the_package_is_quiet() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import transformer"], capture_output=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_generated_parts_of_the_documents_are_fresh(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert refresh(text) == text, "run `python -m transformer docs`"


def test_every_option_and_choice_is_documented() -> None:
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    for _, group in grouped_options():
        for option in group:
            assert f"`{option.key}`" in text
            assert option.help, f"{option.key} has no help text"
    for registry in REGISTRIES.values():
        assert all(f"`{name}`" in text for name in registry)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    assert (ROOT / "transformer" / "cli" / f"{command}.py").is_file()


def test_the_readme_names_every_choice() -> None:
    """The README's table of what can be toggled is written by hand; this keeps it whole."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in ("placements", "norms", "schedules", "optimizers", "activations", "positions"):
        missing = [name for name in REGISTRIES[kind] if f"`{name}`" not in readme]
        assert not missing, f"README.md does not name these {kind}: {missing}"
