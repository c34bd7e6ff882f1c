"""python -m transformer docs: rewrite the generated tables of README.md and docs/*.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from .command import Parser, command
from .describe import refresh


@command
def main(argv: Sequence[str]) -> int:
    """Rewrite what stands between the marks; say which files changed."""
    parser = Parser("docs", "Rewrite the generated tables of README.md and docs/*.md in a checkout.")
    parser.add_argument("--root", default=".", type=Path, help="the checkout (default: here)")
    root = parser.parse_args(argv).root
    if not (root / "docs").is_dir():
        raise ConfigError(f"--root {root}: not a checkout, it has no docs directory")
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if path.is_file():
            before = path.read_text(encoding="utf-8")
            after = refresh(before)
            if after != before:
                path.write_text(after, encoding="utf-8")
                print(f"{path}: rewritten")
    return 0
