"""What finds translations of subwords, and scores them: the interface, and our models behind it.

Everything about text, lines and batches is the translator's, so that an engine that serves exported models
keeps the same contract.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from ..core.special import BOS, EOS, PAD
from ..model.packing import LaidOut, can_be_laid_out
from ..model.transformer import Transformer
from ..modules.embeddings import POSITIONS
from ..modules.precision import Precision, autocast, resolve_precision
from .config import SEARCHES, DecodeConfig
from .hypothesis import Hypothesis
from .limits import Limits
from .next_token import Ensemble, ModelNextToken, NextToken


@dataclass(frozen=True)
class Request:
    """A sentence to translate: its line's number, its subwords without EOS, the limits of its target."""

    number: int
    source: list[int]
    limits: Limits


class Engine(Protocol):
    """A conditional language model with its searches. Ids are the tokenizers'."""

    @property
    def positions(self) -> int:
        """How many positions it can count, on either side; BOS and EOS take one each."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """What it takes to call the methods below."""
        ...

    def search(self, requests: Sequence[Request], config: DecodeConfig) -> list[list[Hypothesis]]:
        """Each sentence's `config.n_best` hypotheses, best first; fewer where fewer are found."""
        ...

    def search_all(
        self, batches: Sequence[Sequence[Request]], config: DecodeConfig
    ) -> list[list[list[Hypothesis]]]:
        """`search` of each batch; an engine may work on several at a time."""
        ...

    def token_log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Of (source, target), both without EOS: log p of each target token, then of EOS."""
        ...


class Models:
    """One Transformer, or an ensemble, as an engine."""

    def __init__(
        self, models: Sequence[Transformer], precision: Precision, device: torch.device | str | None = None
    ) -> None:
        self.models = list(models)
        self.device = torch.device(device) if device is not None else models[0].output_weight.device
        for model in models:
            model.to(self.device)
        self.dtype = resolve_precision(precision, self.device)
        self._laid_out: list[LaidOut] = []
        self.model = _joined(self.models)

    @property
    def positions(self) -> int:
        configs = [model.config for model in self.models]
        return min(c.max_length if POSITIONS[c.positions].limited else sys.maxsize for c in configs)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the configured precision; training mode comes back afterwards."""
        if all(can_be_laid_out(model) for model in self.models):
            if any(each.stale for each in self._laid_out) or not self._laid_out:
                self._laid_out = [LaidOut(model, self.dtype) for model in self.models]
                self.model = _joined([each.model for each in self._laid_out])
            with torch.inference_mode():
                yield
            return
        training = [model for model in self.models if model.training]
        for model in training:
            model.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.dtype):
                yield
        finally:
            for model in training:
                model.train()

    def search(self, requests: Sequence[Request], config: DecodeConfig) -> list[list[Hypothesis]]:
        return self._search(self.model, requests, config)

    def search_all(
        self, batches: Sequence[Sequence[Request]], config: DecodeConfig
    ) -> list[list[list[Hypothesis]]]:
        """As many batches at a time as torch has threads, one thread each: no step waits for the others."""
        threads = torch.get_num_threads()
        workers = min(threads, len(batches)) if self._laid_out else 1
        if workers < 2:
            return [self.search(batch, config) for batch in batches]
        free: SimpleQueue[NextToken] = SimpleQueue()
        free.put(self.model)
        for _ in range(workers - 1):
            free.put(_joined([each.again().model for each in self._laid_out]))

        def work(batch: Sequence[Request]) -> list[list[Hypothesis]]:
            model = free.get()
            try:
                with torch.inference_mode():  # a thread has its own
                    return self._search(model, batch, config)
            finally:
                free.put(model)

        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            return list(pool.map(work, batches))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # what threads to come begin with

    def _search(
        self, model: NextToken, requests: Sequence[Request], config: DecodeConfig
    ) -> list[list[Hypothesis]]:
        source = self._padded([[*request.source, EOS] for request in requests])
        limits, numbers = [request.limits for request in requests], [request.number for request in requests]
        return SEARCHES[str(config.search)](model, source, limits, numbers, config)

    def token_log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        source = self._padded([[*source, EOS] for source, _ in pairs])
        inputs = self._padded([[BOS, *target] for _, target in pairs])
        outputs = self._padded([[*target, EOS] for _, target in pairs])
        rows = self.model.token_log_probs(source, inputs, outputs).tolist()
        return [row[: len(target) + 1] for row, (_, target) in zip(rows, pairs, strict=True)]

    def _padded(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        padded = [row + [PAD] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.device)


def _joined(models: Sequence[Transformer]) -> NextToken:
    members = [ModelNextToken(model) for model in models]
    return members[0] if len(members) == 1 else Ensemble(members)
