"""Where a training pair stands in its files. Encoded text does not know; it is read again, up to the pair."""

from __future__ import annotations

from .config import DataConfig
from .encoding import _CHUNK, _chunks, _reason, longest_text
from .splits import SplitText
from .tokenizer import Tokenizer


def place_of(config: DataConfig, tokenizers: tuple[Tokenizer, Tokenizer], number: int) -> str:
    """`data/train, line 17`: where the `number`th pair, from 1, of those that filtering left stands.

    Empty where there is no such pair: the text has changed.
    """
    most = longest_text(config)
    for chunk in _chunks(SplitText(config, config.train, "train").located(), _CHUNK):
        sources = tokenizers[0].encode_batch([pair.source[:most] for _, pair in chunk])
        targets = tokenizers[1].encode_batch([pair.target[:most] for _, pair in chunk])
        for (prefix, pair), source, target in zip(chunk, sources, targets, strict=True):
            number -= _reason(config, pair, len(source), len(target)) is None
            if not number:
                return f"{prefix}, line {pair.line}"
    return ""
