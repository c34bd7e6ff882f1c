"""An export's directory: written whole or not at all, and read back.

It holds the engine's files, `tokenizer/`, `config.yaml` (the run's, resolved) and `export.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, Problem
from ..core.rundir import TOKENIZERS
from ..data.tokenizer import JOINT, SOURCE, TARGET, Tokenizer, load_tokenizers
from .engine import CTranslate2

MANIFEST = "export.json"
FORMAT = 1


@dataclass(frozen=True)
class Served:
    """A loaded export: its engine, and the tokenizers that its vocabulary came from."""

    engine: CTranslate2
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    manifest: Mapping[str, Any]

    @property
    def quantization(self) -> str | None:
        """None: float32."""
        quantization: str | None = self.manifest["quantization"]
        return quantization


def unusable(directory: Path, force: bool) -> Iterator[Problem]:
    """Why nothing can be written there. `force` replaces an export, never something else."""
    if not directory.exists():
        return
    if not (directory / MANIFEST).is_file():
        yield Problem("", f"{directory} exists and is no export: it would not be replaced; name another")
    elif not force:
        yield Problem("", f"{directory} exists; --force replaces it")


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its place when the block ends well, and vanishes otherwise."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    new, old = holder / "new", holder / "old"
    try:
        new.mkdir()
        yield new
        if directory.exists():
            os.rename(directory, old)
        os.rename(new, directory)
    finally:
        if old.exists() and not directory.exists():
            os.rename(old, directory)
        shutil.rmtree(holder)


def write_tokenizers(directory: Path, source: Tokenizer, target: Tokenizer) -> None:
    folder = directory / TOKENIZERS
    folder.mkdir()
    named = {JOINT: source} if source.digest == target.digest else {SOURCE: source, TARGET: target}
    for name, tokenizer in named.items():
        tokenizer.save(folder / name)


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **facts}, indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def open_export(directory: Path, device: torch.device | None = None, threads: int = 0) -> Served:
    """Load an export. Raises CheckpointError, with the file's name, where something is missing or wrong."""
    file = directory / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{directory}: no export, it holds no {MANIFEST};"
            " write one with `python -m transformer export RUN --to ctranslate2 DIR`"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known, positions = manifest["format"], int(manifest["positions"])
        digests = manifest["tokenizers"]["source"], manifest["tokenizers"]["target"]
        manifest["quantization"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error!r}; export again") from error
    if known != FORMAT:
        raise CheckpointError(f"{file}: of format {known}, this version reads {FORMAT}; export again")
    source, target = load_tokenizers(directory / TOKENIZERS)
    if (source.digest, target.digest) != digests:
        raise CheckpointError(f"{directory / TOKENIZERS}: not the tokenizer of this export; export again")
    engine = CTranslate2(directory, source.vocabulary, target.vocabulary, positions, device, threads)
    return Served(engine, source, target, manifest)
