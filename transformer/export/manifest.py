"""export.json: what an export is made of, and the digests by which its files are known again.

It holds more than is read back: the weights' header, the wiring, and all figures of the verification. All of
it is under a digest of its own, `sha256`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.disk import content as content_of
from ..core.disk import regular
from ..core.errors import CheckpointError
from ..core.reading import read_json

MANIFEST = "export.json"
Format = Literal[3]
Engine = Literal["ctranslate2"]
Quantization = Literal["int8", "float16"]
(FORMAT,) = get_args(Format)
ENGINES: tuple[str, ...] = get_args(Engine)
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

MODEL = "model.bin"
# All that CTranslate2 may write; one vocabulary is shared where the two sides have the same.
ENGINE_FILES = (MODEL, "config.json", *(f"{of}_vocabulary.json" for of in ("shared", "source", "target")))


class Digests(BaseModel):
    """Of the tokenizers, which are the same where they are joint."""

    model_config = ConfigDict(strict=True, frozen=True)
    source: str
    target: str


class Manifest(BaseModel):
    """What is read back. Positions: BOS or EOS takes one, so that two hold a word."""

    model_config = ConfigDict(strict=True, frozen=True)
    format: Format
    engine: Engine
    quantization: Quantization | None
    positions: int = Field(ge=2)
    tokenizers: Digests
    files: dict[str, str]
    sha256: str


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the facts with the digests of the engine's files and of all this; return all of it."""
    manifest = {"format": FORMAT, **facts, "files": digests(directory)}
    manifest["sha256"] = _digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Raises CheckpointError where there is none, or not what this version writes."""
    file = directory / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{directory}: no export, it holds no {MANIFEST};"
            " write one with `python -m transformer export RUN --to ctranslate2 DIR`"
        )
    try:
        content = content_of(file)
        manifest = Manifest.model_validate_json(content)
        held = read_json(content)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise CheckpointError(f"{file}: cannot be read: {'; '.join(reasons)}; export again") from error
    # Positions and quantization are nowhere else: another number would be believed.
    if _digest(held) != manifest.sha256:
        raise CheckpointError(f"{file}: not what was written; export again")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all that a manifest holds beside it, however it is laid out."""
    held = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each of the engine's files that are there."""
    there = (name for name in ENGINE_FILES if (directory / name).is_file())
    return {name: _sha256(directory / name) for name in there}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", opener=regular) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
