"""export.json: what an export is made of, and the digests by which its files are known again.

It holds more than is read back: the weights' header, the wiring, and all figures of the verification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import CheckpointError

MANIFEST = "export.json"
Format = Literal[2]
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


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the facts with the digests of the engine's files; return all of it."""
    manifest = {"format": FORMAT, **facts, "files": digests(directory)}
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
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise CheckpointError(f"{file}: cannot be read: {'; '.join(reasons)}; export again") from error


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each of the engine's files that are there."""
    there = (name for name in ENGINE_FILES if (directory / name).is_file())
    return {name: _sha256(directory / name) for name in there}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
