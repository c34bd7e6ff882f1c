"""CTranslate2 as an engine: the translator's contract, and what of it CTranslate2 cannot do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TypeVar

import torch

from ..core.errors import CheckpointError, Problem
from ..core.special import BOS, EOS, PAD
from ..decoding.config import DecodeConfig
from ..decoding.engine import Request
from ..decoding.hypothesis import Hypothesis
from ..decoding.penalties import LENGTH_PENALTIES
from ..decoding.ranking import NOT_NUMBERS
from .conversion import ctranslate2

T = TypeVar("T")
_NOTHING = object()
Found = tuple[tuple[int, ...], float]  # ids without EOS, and log p as CTranslate2's search has it

# CTranslate2 divides log p by length^exponent; the exponent that is our penalty of that alpha.
EXPONENTS: Mapping[str, Callable[[float], float]] = {
    "none": lambda alpha: 0.0,
    "average": lambda alpha: alpha,
}


def cannot(config: DecodeConfig, quantization: str | None) -> Iterator[Problem]:
    """Options that CTranslate2 has no words for: refused, never ignored."""
    if config.search not in ("beam", "greedy"):
        message = f"CTranslate2 cannot be given the seed of each line's {config.search}"
        # What would be refused next of the search that is advised is told with it.
        advised = config.model_copy(update={"search": "beam"})
        others = [problem.path for problem in advised.conflicts()]
        others += ["length_penalty"] if _lacks_penalty(advised) else []
        neutral = ", ".join(f"decode.{name}={DecodeConfig.model_fields[name].default}" for name in others)
        hint = "use beam or greedy" + (f" with {neutral}" if neutral else "")
        yield Problem("decode.search", message, hint=f"{hint}, or translate with the run itself")
    if _lacks_penalty(config):
        message = f"CTranslate2's beam search has no penalty {config.length_penalty!r}"
        yield Problem("decode.length_penalty", message, hint=f"use {' or '.join(EXPONENTS)}")
    if config.precision not in ("auto", made := quantization or "float32"):
        message = f"the export's numbers are {made}, not {config.precision}"
        yield Problem("decode.precision", message, hint="leave it at auto, or export again")


def _lacks_penalty(config: DecodeConfig) -> bool:
    """Do hypotheses compete under a length penalty that CTranslate2 has not?"""
    ranked = config.search == "beam" and config.beam > 1 and config.alpha > 0
    return ranked and config.length_penalty not in EXPONENTS


class CTranslate2:
    """An exported model, found and scored by CTranslate2.

    Its searches are its own: beam search stops once `beam` hypotheses have ended, ours once none can win.
    Limits, banned ids and scores are as in ours. A hypothesis that is at its limit without EOS is cut there,
    and log p of all hypotheses is computed anew, EOS included, so that scoring a translation gives the
    number that the search reported. That takes as long as a greedy search: where nobody reads them,
    `scores=False` leaves CTranslate2's own, without EOS where it was cut and without what banned ids had.

    On a CPU batches are searched side by side, one thread each; `together=False` gives all threads to each.
    """

    def __init__(
        self,
        directory: Path,
        source_vocabulary: Sequence[str],
        target_vocabulary: Sequence[str],
        positions: int,
        device: torch.device | None = None,
        threads: int = 0,
        quantization: str | None = None,
        *,
        scores: bool = True,
        together: bool = True,
    ) -> None:
        self.directory, self.positions, self.scores = directory, positions, scores
        self.device = torch.device("cpu") if device is None else device
        self.source, self.target = list(source_vocabulary), list(target_vocabulary)
        self.ids = {piece: i for i, piece in enumerate(self.target)}
        library = ctranslate2()
        kind, index = self.device.type, self.device.index or 0
        threads_of_torch = torch.get_num_threads()
        threads = threads or threads_of_torch
        self.workers = threads if together and kind == "cpu" else 1
        with self._told():
            # Where the device has no such numbers, CTranslate2 takes float32 too, with a warning each time.
            has = quantization is None or quantization in library.get_supported_compute_types(kind, index)
            self.translator = library.Translator(
                str(directory),
                device=kind,
                device_index=index,
                compute_type="default" if has else "float32",
                inter_threads=self.workers,
                intra_threads=threads // self.workers,
            )
        # CTranslate2 sets OpenMP's number for the thread that loads it, and torch's with it: a training in
        # the same process would add up in another order.
        torch.set_num_threads(threads_of_torch)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A context in which CTranslate2's errors become one that has a remedy."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            remedy = "export again" if self.device.type == "cpu" else "--device cpu needs no CUDA library"
            raise CheckpointError(f"{self.directory}: CTranslate2 says: {error}; {remedy}") from error

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def search(self, requests: Sequence[Request], config: DecodeConfig) -> list[list[Hypothesis]]:
        """All sentences under the loosest of their limits, then those that broke theirs once more, alike ones
        together: CTranslate2 has one limit for a batch.
        """
        found = dict(zip(_numbers(requests), self._search(requests, config), strict=True))
        broken = [r for r in requests if any(len(ids) > r.limits.cap for ids, _ in found[r.number])]
        for _, group in groupby(sorted(broken, key=_cap), key=_cap):
            alike = list(group)
            found.update(zip(_numbers(alike), self._search(alike, config), strict=True))
        each = [found[request.number] for request in requests]
        if not self.scores and not any(request.limits.prefix for request in requests):
            return [_ranked(hypotheses, config) for hypotheses in each]
        # Where a prefix leaves nothing to choose, beams of probability 0 repeat it.
        distinct = [list(dict.fromkeys(ids for ids, _ in hypotheses)) for hypotheses in each]
        return self._scored(requests, distinct, config)

    def search_all(
        self, batches: Sequence[Sequence[Request]], config: DecodeConfig
    ) -> list[list[list[Hypothesis]]]:
        """On a CPU as many at a time as there are threads, in parts where batches are fewer."""
        each = -(-self.workers // max(len(batches), 1))
        parts = [batch[i::each] for batch in batches for i in range(each)]
        pool = ThreadPoolExecutor(min(self.workers, len(parts)) or 1)
        try:
            found = list(pool.map(lambda part: self.search(part, config) if part else [], parts))
        finally:
            pool.shutdown(cancel_futures=True)
        return [_woven(found[i : i + each]) for i in range(0, len(found), each)]

    def _search(self, requests: Sequence[Request], config: DecodeConfig) -> list[list[Found]]:
        """Each sentence's hypotheses.

        One step more than the longest has room for would make the hypotheses that differ there alone equal.
        """
        longest = max(map(_cap, requests))
        beam = config.beam if config.search == "beam" else 1
        prefixes = [self._pieces(request.limits.prefix) for request in requests]
        exponent = EXPONENTS.get(str(config.length_penalty), EXPONENTS["none"])(config.alpha)
        with self._told():
            results = self.translator.translate_batch(
                [[self.source[i] for i in request.source] for request in requests],
                prefixes if any(prefixes) else None,
                beam_size=beam,
                num_hypotheses=min(config.n_best, beam),
                length_penalty=exponent,
                disable_unk=True,
                suppress_sequences=[[self.target[PAD]], [self.target[BOS]]],
                return_end_token=True,  # length then counts EOS, as ours does
                return_scores=True,
                max_input_length=0,
                max_decoding_length=longest,
                min_decoding_length=min(config.min_length, longest),
            )
        return [
            [
                (tuple(self._ids(pieces)), score * len(pieces) ** exponent)
                for pieces, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result in results
        ]

    def _scored(
        self, requests: Sequence[Request], found: list[list[tuple[int, ...]]], config: DecodeConfig
    ) -> list[list[Hypothesis]]:
        """Hypotheses with their true log p, best first; none of probability 0."""
        pairs = [(request.source, ids) for request, each in zip(requests, found, strict=True) for ids in each]
        totals = iter([sum(row) for row in self.token_log_probs(pairs)])
        return [_ranked([(ids, next(totals)) for ids in each], config) for each in found]

    def token_log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        if not pairs:
            return []
        sources = [[self.source[i] for i in source] for source, _ in pairs]
        targets = [self._pieces(target) for _, target in pairs]
        with self._told():
            results = self.translator.score_batch(sources, targets, max_input_length=0)
        return [list(result.log_probs) for result in results]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.target[i] for i in ids]

    def _ids(self, pieces: Sequence[str]) -> list[int]:
        """Ids up to EOS."""
        try:
            ids = [self.ids[piece] for piece in pieces]
        except KeyError as error:
            message = f"{self.directory}: its tokenizer has no piece {error}, CTranslate2's vocabulary has"
            raise CheckpointError(f"{message}; export again") from error
        return ids[: ids.index(EOS)] if EOS in ids else ids


def _ranked(found: Sequence[Found], config: DecodeConfig) -> list[Hypothesis]:
    """Hypotheses, best first; none of probability 0."""
    if any(math.isnan(total) for _, total in found):
        raise CheckpointError(NOT_NUMBERS)
    penalty = LENGTH_PENALTIES[str(config.length_penalty)]
    made = [
        Hypothesis(ids, total, total / penalty(len(ids) + 1, config.alpha))
        for ids, total in found
        if total > -math.inf
    ]
    return sorted(made, key=lambda hypothesis: -hypothesis.score)


def _woven(parts: Sequence[list[T]]) -> list[T]:
    """What was dealt out in turn, in order again: part i has items i, i + n, i + 2n, ... of n parts."""
    woven = zip_longest(*parts, fillvalue=_NOTHING)
    return [item for items in woven for item in items if item is not _NOTHING]  # type: ignore[misc]


def _cap(request: Request) -> int:
    return request.limits.cap


def _numbers(requests: Sequence[Request]) -> list[int]:
    return [request.number for request in requests]
