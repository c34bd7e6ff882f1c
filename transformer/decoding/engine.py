"""What finds translations of subwords, and scores them: the interface, and our models behind it.

Everything about text, lines and batches is the translator's, so that an engine that serves exported models
keeps the same contract.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import ConfigError, Problem
from ..core.special import BOS, EOS, PAD
from ..kernels import operators
from ..model.packing import Packed, can_be_packed
from ..model.transformer import Transformer
from ..modules.embeddings import POSITIONS
from ..modules.int8 import ways
from ..modules.precision import InferencePrecision, autocast, resolve_precision
from ..modules.products import has_onednn
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


_NO_INT8 = Problem(
    "decode.precision",
    "int8 needs float32 weights on a CPU for which torch has oneDNN's products",
    hint="use auto, bf16 or float32",
)


def require_products(dtype: torch.dtype, device: torch.device) -> None:
    """ConfigError for 8-bit products that cannot be had on a device, rather than others in their place."""
    if dtype == torch.int8 and not (device.type == "cpu" and has_onednn()):
        raise ConfigError([_NO_INT8])


class Models:
    """One Transformer, or an ensemble, as an engine."""

    def __init__(
        self,
        models: Sequence[Transformer],
        precision: InferencePrecision,
        device: torch.device | str | None = None,
    ) -> None:
        self.models = list(models)
        self.device = torch.device(device) if device is not None else models[0].output_weight.device
        for model in models:
            model.to(self.device)
        self.dtype = resolve_precision(precision, self.device)
        self._require_products()
        self._packed: list[Packed] = []  # of each model; none where kernels or number format are missing
        self._copies = [_joined(self.models)]  # one for each batch at a time

    @property
    def positions(self) -> int:
        configs = [model.config for model in self.models]
        return min(c.max_length if POSITIONS[c.positions].limited else sys.maxsize for c in configs)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the configured precision; training mode comes back afterwards."""
        self._prepare()
        training = [model for model in self.models if model.training and not self._packed]
        for model in training:
            model.eval()
        precision = nullcontext() if self._packed else autocast(self.device, self.dtype)
        try:
            with torch.inference_mode(), precision:
                yield
        finally:
            for each in self._packed:
                each.products.forget()  # the weights may be others when work begins again
            for model in training:
                model.train()

    def _prepare(self) -> None:
        """Packed copies of the models as they are now, where that is possible."""
        self._require_products()
        if not all(map(can_be_packed, self.models)):
            self._packed, self._copies = [], [_joined(self.models)]
        elif not (self._packed and all(each.fits for each in self._packed)):
            self._packed, self._copies = [Packed(model, self.dtype) for model in self.models], []
            self._have_copies(1)
            if self.dtype == torch.int8:
                ways()  # their trials and the compiler's work here, not in each process that is forked
            operators.prepare()

    def _require_products(self) -> None:
        if self.dtype == torch.int8 and not all(map(can_be_packed, self.models)):
            raise ConfigError([_NO_INT8])
        require_products(self.dtype, self.device)

    def _have_copies(self, number: int) -> None:
        while len(self._copies) < number:
            self._copies.append(_joined([each.copy() for each in self._packed]))

    def search(self, requests: Sequence[Request], config: DecodeConfig) -> list[list[Hypothesis]]:
        return self._search(self._copies[0], requests, config)

    def search_all(
        self, batches: Sequence[Sequence[Request]], config: DecodeConfig
    ) -> list[list[list[Hypothesis]]]:
        """On a CPU as many batches at a time as torch has threads: none waits for another at each step."""
        threads = torch.get_num_threads()
        workers = min(threads, len(batches)) if self._packed else 1
        if workers < 2:
            return [self.search(batch, config) for batch in batches]
        self._have_copies(workers)
        free: SimpleQueue[NextToken] = SimpleQueue()
        for model in self._copies[:workers]:
            free.put(model)

        def work(batch: Sequence[Request]) -> list[list[Hypothesis]]:
            model = free.get()
            try:
                with torch.inference_mode():  # a thread has its own
                    return self._search(model, batch, config)
            finally:
                free.put(model)

        before = _system_threads()
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        try:
            return list(pool.map(work, batches))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the workers' number is also what new threads begin with
            _wait_for_the_end_of_others(before)

    def _search(
        self, model: NextToken, requests: Sequence[Request], config: DecodeConfig
    ) -> list[list[Hypothesis]]:
        source = self._padded([[*request.source, EOS] for request in requests])
        limits, numbers = [request.limits for request in requests], [request.number for request in requests]
        with operators.at_work() if self._packed else nullcontext():
            return SEARCHES[str(config.search)](model, source, limits, numbers, config)

    def token_log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        source = self._padded([[*source, EOS] for source, _ in pairs])
        inputs = self._padded([[BOS, *target] for _, target in pairs])
        outputs = self._padded([[*target, EOS] for _, target in pairs])
        rows = self._copies[0].token_log_probs(source, inputs, outputs).tolist()
        return [row[: len(target) + 1] for row, (_, target) in zip(rows, pairs, strict=True)]

    def _padded(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        padded = [row + [PAD] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.device)


def _system_threads() -> set[int]:
    """On Linux, the numbers of this process's threads, Python's and torch's; elsewhere none."""
    return set(map(int, os.listdir("/proc/self/task"))) if os.path.isdir("/proc/self/task") else set()


def _wait_for_the_end_of_others(kept: set[int]) -> None:
    """Python calls a thread ended a moment before the system does, and torch's helpers end later still.

    Until then they may hold locks of the library of products, for which a process that is forked meanwhile
    would wait for ever. What is there after a second is somebody else's.
    """
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if _system_threads() <= kept | {each.native_id or 0 for each in threading.enumerate()}:
            return
        time.sleep(1e-4)


def _joined(models: Sequence[Transformer]) -> NextToken:
    members = [ModelNextToken(model) for model in models]
    return members[0] if len(members) == 1 else Ensemble(members)
