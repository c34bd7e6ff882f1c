"""An export's directory: written whole or not at all, and read back.

It holds the engine's files, `tokenizer/`, `config.yaml` (the run's, resolved) and `export.json`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.disk import content, sync_directory, sync_file
from ..core.errors import CheckpointError, Problem
from ..core.reading import read_json
from ..core.rundir import CONFIG_FILE, TOKENIZERS
from ..core.seal import is_broken
from ..data.tokenizer import JOINT, SOURCE, TARGET, Tokenizer, load_tokenizers
from .engine import CTranslate2
from .manifest import ENGINE_FILES, ENGINES, MANIFEST, MODEL, digests, read_manifest

_TOKENIZER_FILES = (f"{TOKENIZERS}/{name}" for name in (JOINT, SOURCE, TARGET))
WRITTEN = frozenset((MANIFEST, CONFIG_FILE, *ENGINE_FILES, TOKENIZERS, *_TOKENIZER_FILES))


@dataclass(frozen=True)
class Served:
    """A loaded export: its engine, and the tokenizers that its vocabulary came from."""

    engine: CTranslate2
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer


def unusable(directory: Path, run: Path, force: bool) -> Iterator[Problem]:
    """Why an export of the run cannot be written there. `force` replaces an export, never something else."""
    if not os.path.lexists(directory):
        return
    real = _real(directory)
    if not directory.exists():
        yield Problem("", f"{directory} is a link to nothing; remove it, or name another")
    elif _real(run).is_relative_to(real):
        yield Problem("", f"{directory} holds the run itself: it would not be replaced; name another")
    elif not _is_export(directory):
        yield Problem("", f"{directory} exists and is no export: it would not be replaced; name another")
    elif foreign := sorted({path.relative_to(real).as_posix() for path in real.rglob("*")} - WRITTEN):
        names = ", ".join(foreign[:3]) + (", ..." if foreign[3:] else "")
        message = f"{directory} holds {names}, which no export writes: it would not be replaced"
        yield Problem("", message, hint="move that away, or name another")
    elif not force:
        yield Problem("", f"{directory} exists; --force replaces it")


def _is_export(directory: Path) -> bool:
    """Of any format: one that this version does not read can be replaced, too."""
    try:
        manifest = read_json(content(directory / MANIFEST))
    except (OSError, ValueError):
        return False
    return (
        isinstance(manifest, dict)
        and isinstance(manifest.get("format"), int)
        and manifest.get("engine") in ENGINES
        and (directory / MODEL).is_file()
    )


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its place when the block ends well, and vanishes otherwise."""
    directory = _real(directory)  # a link to an export stays one
    parents = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    new, old = holder / "new", holder / "old"
    try:
        new.mkdir()
        yield new
        for path in filter(Path.is_file, new.rglob("*")):
            sync_file(path)
        sync_directory(new)
        if directory.exists():
            os.rename(directory, old)
        os.rename(new, directory)
        sync_directory(directory.parent)
    except OSError as error:
        if error.filename is None:  # of a write
            error.filename = str(directory)
        raise
    finally:
        if old.exists() and not directory.exists():
            os.rename(old, directory)
        shutil.rmtree(holder)
        for parent in parents:  # the innermost first
            with suppress(OSError):  # they stay where the export is in them
                parent.rmdir()


def _real(path: Path) -> Path:
    """The path without links; one that runs in a circle is no error here."""
    return Path(os.path.realpath(path))


def write_tokenizers(directory: Path, source: Tokenizer, target: Tokenizer) -> None:
    folder = directory / TOKENIZERS
    folder.mkdir()
    named = {JOINT: source} if source.digest == target.digest else {SOURCE: source, TARGET: target}
    for name, tokenizer in named.items():
        tokenizer.save(folder / name)


def open_export(
    directory: Path,
    device: torch.device | None = None,
    threads: int = 0,
    *,
    scores: bool = True,
    together: bool = True,
) -> Served:
    """Load an export, with an engine of these options.

    Raises CheckpointError, with the file's name, where one is missing or has changed.
    """
    manifest = read_manifest(directory)
    config = directory / CONFIG_FILE
    if not config.is_file() or is_broken(config):
        raise CheckpointError(
            f"{config}: missing, damaged or edited after it was written; export again, or take out its first"
            " line if what it says is what you want"
        )
    changed = dict(manifest.files.items() ^ digests(directory).items())
    if changed:
        raise CheckpointError(f"{directory / min(changed)}: missing, or not what was written; export again")
    source, target = load_tokenizers(directory / TOKENIZERS)
    if (source.digest, target.digest) != (manifest.tokenizers.source, manifest.tokenizers.target):
        raise CheckpointError(f"{directory / TOKENIZERS}: not the tokenizer of this export; export again")
    engine = CTranslate2(
        directory,
        source.vocabulary,
        target.vocabulary,
        manifest.positions,
        device,
        threads,
        manifest.quantization,
        scores=scores,
        together=together,
    )
    return Served(engine, source, target)
