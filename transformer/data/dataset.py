"""From a `data` section to encoded, filtered corpora.

Everything made here is a function of the text and the options alone, so runs that differ in seed, model or
learning rate share it: it lies in a cache addressed by the hash of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError
from .batching import EVERYTHING, BatchStream, Share
from .config import DataConfig
from .corpus import DEMO, find, read_parallel
from .encoded import EncodedCorpus
from .encoding import check_unknown, encoded_split
from .report import FilterReport
from .sampling import SubwordSampler
from .splits import SplitText
from .tokenizer import Tokenizer
from .vocabulary import tokenizers_for

__all__ = ["DataConfig", "EncodedCorpus", "FilterReport", "Prepared", "prepare", "read_parallel"]

Log = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What training needs of the data."""

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: EncodedCorpus
    valid: EncodedCorpus
    report: FilterReport
    sampler: SubwordSampler | None
    seed: int
    digests: Mapping[str, str]  # of the text, whatever files it lies in
    valid_text: SplitText

    def stream(self, tokens_per_batch: int, *, prefetch: int = 0, share: Share = EVERYTHING) -> BatchStream:
        """Training batches in an order, and with subwords, that are functions of (seed, epoch)."""
        return BatchStream(
            self.train, tokens_per_batch, self.seed, sampler=self.sampler, prefetch=prefetch, share=share
        )

    def references(self) -> list[tuple[str, str]]:
        """All pairs of `valid` as they stand in the files, for scoring against the raw text.

        Raises DataError when the files have changed since.
        """
        with self.valid_text.unchanged():
            return list(self.valid_text.pairs())


def prepare(config: DataConfig, run_dir: Path, seed: int, log: Log) -> Prepared:
    """Read, check, train or load the tokenizers, filter, encode, map; `run_dir/tokenizer` is written.

    Raises DataError for every fault of the text. `seed` decides batches and sampling, not what is prepared.
    """
    for prefix in config.test.values():  # a missing test set is better known before training than after
        if prefix != DEMO:
            find(prefix, config.source), find(prefix, config.target)
    cache = Path(config.cache)
    train_text, valid_text = (
        SplitText(config, config.train, "train"),
        SplitText(config, (config.valid,), "valid"),
    )
    log(f"reading {' + '.join(config.train)} and {config.valid} ({config.source}-{config.target})")
    train_text.scan(cache, log)
    valid_text.scan(cache, log)
    tokenizers = tokenizers_for(config, train_text, run_dir / "tokenizer", cache, log)
    sampling = config.tokenizer.sampling > 0
    train, train_report = encoded_split(
        config, train_text, tokenizers, cache, texts=sampling, drops=True, log=log
    )
    valid, valid_report = encoded_split(
        config, valid_text, tokenizers, cache, texts=False, drops=False, log=log
    )
    if not len(train):
        raise DataError(f"no training pair is left after filtering:\n{chr(10).join(train_report.lines())}")
    if not valid_report.target_tokens:
        raise DataError(f"the validation text holds blank lines only:\n{chr(10).join(valid_report.lines())}")
    check_unknown(config, train_report, train_text, tokenizers)
    report = FilterReport(train_report, valid_report, tokenizers[0].size, tokenizers[1].size)
    sampler = None
    if sampling:
        sides = (
            ("source", "target")
            if config.tokenizer.sampling_side == "both"
            else (config.tokenizer.sampling_side,)
        )
        sampler = SubwordSampler(
            train, *tokenizers, config.tokenizer.sampling, sides, config.max_length, seed
        )
    digests = {"training text": train_text.digest, "validation text": valid_text.digest}
    return Prepared(*tokenizers, train, valid, report, sampler, seed, digests, valid_text)
