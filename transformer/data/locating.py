"""Where a training pair stands in its files. Encoded text does not know; it is read again, up to the pair."""

from __future__ import annotations

from .chunks import Encoder
from .config import DataConfig
from .encoding import in_chunks, recipe_of
from .splits import SplitText
from .tokenizer import Tokenizer


def place_of(config: DataConfig, tokenizers: tuple[Tokenizer, Tokenizer], number: int) -> str:
    """`data/train, line 17`: where the `number`th pair, from 1, of those that filtering left stands.

    Empty where there is no such pair: the text has changed.
    """
    text = SplitText(config, config.train, "train")
    encoder = Encoder(recipe_of(config, text, tokenizers, texts=False, drops=True), threads=-1)
    for chunk in in_chunks(text):
        for (prefix, pair), reason in zip(chunk, encoder.judge(chunk)[2], strict=True):
            number -= reason is None
            if not number:
                return f"{prefix}, line {pair.line}"
    return ""
