"""Which tokenizers a run uses: its own, those it was told to use, cached ones, or new ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.disk import content, replace
from ..core.errors import DataError
from ..core.reading import read_json
from .cache import TOKENIZERS, fetch, key_of
from .checksums import META, is_sound, seal
from .config import DataConfig
from .splits import SplitText
from .tokenizer import Tokenizer, load_tokenizers, train_tokenizers

_STAMP = "trained_from.json"
_FORMAT = 1  # raise it when the same options come to train another model

Log = Callable[[str], None]


def tokenizers_for(
    config: DataConfig, text: SplitText, directory: Path, cache: Path, log: Log
) -> tuple[Tokenizer, Tokenizer]:
    """Those of the run directory if it has them, else those named, else cached or newly trained ones."""
    options = config.tokenizer.training_options()
    if (directory / _STAMP).exists():
        return _kept(config, text, directory, log)
    if config.tokenizer.path is not None:
        tokenizers = load_tokenizers(config.tokenizer.path)
        log(f"using the tokenizer in {config.tokenizer.path}")
        _install(tokenizers, directory, {"options": options, "text": "", "path": config.tokenizer.path})
        return tokenizers

    def make(folder: Path) -> None:
        log(f"training the tokenizer ({config.tokenizer.type}) on {text.count:,} pairs")
        with text.unchanged():
            train_tokenizers(config.tokenizer, text.pairs, text.count, folder)
        seal(folder)

    def sound(folder: Path) -> bool:
        return is_sound(folder) or _older(folder)

    key = key_of(kind="tokenizer", format=_FORMAT, options=options, text=text.digest)
    entry, made = fetch(cache / TOKENIZERS, key, make, sound, log)
    if not made:
        log(f"tokenizer from the cache ({entry})")
    tokenizers = load_tokenizers(entry)
    _install(tokenizers, directory, {"options": options, "text": text.digest, "path": None})
    return tokenizers


def _older(folder: Path) -> bool:
    """Is it of a version that knew no checksums, in a cache that this process may not write?"""
    if (folder / META).exists() or os.access(folder.parent, os.W_OK):
        return False
    try:
        load_tokenizers(folder)
    except DataError:
        return False
    return True


def _kept(config: DataConfig, text: SplitText, directory: Path, log: Log) -> tuple[Tokenizer, Tokenizer]:
    """The run's own tokenizers stay, though the text may have changed: the model's ids mean their pieces."""
    try:
        stamp = read_json(content(directory / _STAMP))
        trained_with, trained_on = dict(stamp["options"]), str(stamp["text"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{directory / _STAMP}: cut short or damaged ({error!r}); {_mend(directory)}"
        ) from error
    options = config.tokenizer.training_options()
    changed = [key for key, value in options.items() if trained_with.get(key) != value]
    if changed and config.tokenizer.path is None:
        asked = ", ".join(f"{key} = {options[key]} (was {trained_with.get(key)})" for key in changed)
        raise DataError(
            f"{directory} was trained with other options: {asked}; use another run directory; where that is"
            f" the run's own, {_mend(directory)}"
        )
    if trained_on and trained_on != text.digest:
        log(f"the training text has changed since {directory} was trained; the run keeps its tokenizer")
    try:
        source, target = load_tokenizers(directory)
    except DataError as error:
        raise DataError(f"{error}; {_mend(directory)}") from error
    digests = stamp.get("digests")  # an older version wrote none
    if digests is not None and digests != [source.digest, target.digest]:
        raise DataError(f"{directory}: damaged: not the pieces that the run began with; {_mend(directory)}")
    return source, target


def _mend(directory: Path) -> str:
    """What to do about damaged tokenizers."""
    return f"put back a copy of {directory}, or delete it to have it made anew from the same text"


def _install(tokenizers: tuple[Tokenizer, Tokenizer], directory: Path, stamp: dict[str, Any]) -> None:
    """Put the models into the run directory; the stamp comes last, so a directory that has it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    source, target = tokenizers
    stamp = {**stamp, "digests": [source.digest, target.digest]}
    if source is target:
        source.save(directory / "joint.model")
    else:
        source.save(directory / "source.model")
        target.save(directory / "target.model")
    temporary = directory / f".{_STAMP}.{os.getpid()}"
    temporary.write_text(json.dumps(stamp, indent=1) + "\n")
    replace(temporary, directory / _STAMP)
