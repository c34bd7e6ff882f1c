"""Small parallel texts on disk, and a data section that points at them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from transformer.data.config import DataConfig

sys.path.insert(0, str(Path(__file__).parent))  # the tests of this folder import `sentences`

from sentences import sentences


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write("train", pairs)` writes train.en and train.de and returns their prefix."""

    def write_pairs(name: str, pairs: Sequence[tuple[str, str]]) -> str:
        for language, side in (("en", 0), ("de", 1)):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (tmp_path / f"{name}.{language}").write_bytes(text.encode())
        return str(tmp_path / name)

    return write_pairs


@pytest.fixture
def section(tmp_path: Path, write: Callable[..., str]) -> Callable[..., DataConfig]:
    """`section(pairs, max_length=9)`: a data section over these training pairs and a few validation pairs."""

    def make(pairs: Sequence[tuple[str, str]] | None = None, **options: Any) -> DataConfig:
        tokenizer = {"vocab_size": 120, **options.pop("tokenizer", {})}
        values: dict[str, Any] = {
            "train": write("train", sentences(300) if pairs is None else pairs),
            "valid": write("valid", sentences(20, seed=1)),
            "cache": str(tmp_path / "cache"),
            "tokenizer": tokenizer,
        }
        return DataConfig.model_validate(values | options)

    return make
