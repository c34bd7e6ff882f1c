"""The processes of one run, as torchrun starts them; nothing else in the package asks torch.distributed.

    torchrun --nproc-per-node N train.py CONFIG

starts N processes of `train.py`, the *ranks* 0 to N - 1. Each makes one `Ranks` of what torchrun has put into
its environment and hands it to the trainer. What it offers:

    rank, size, chief     which one this is, of how many; the chief is rank 0, the only one that writes
    job                   which torchruns these are, some of them in each attempt
    sum, total            tensors on the device, and whole numbers, added over the ranks
    largest               whole numbers, each the largest of all ranks: also a vote, as 0 and 1
    broadcast             the chief's value: plain data, as JSON holds it, and nothing that could run code
    require_alike         an error where options or text are not the chief's
    decide                what the chief finds by doing something; if that fails, every rank stops
    chief_first           a context that the chief goes through first, and the others when it is done
    barrier               wait for each other
    tell, told            a word for the chief, which may be at work while the others wait

All but the last two are *collective*: every rank calls the same ones in the same order, and waits. They raise
RankLost when a process is gone. Of one process, `ALONE`, they return what they are given, at once.

Tensors on a CPU go through gloo, those on CUDA devices through nccl, so a vote never waits for the device.
Ranks that wait while the chief prepares data, validates or scores wait up to LONGEST_WAIT. A process that
dies closes its connections, which ends the others at once with gloo; torchrun ends them in any case. A
machine that is gone closes nothing: kernels ask each other for signs of life, for LONGEST_SILENCE seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..core.errors import ConfigError, UserError
from ..core.signals import hangup_interrupts
from .connections import probe_connections
from .launch import job_of, launched, require_launch, supervised, torchrun_is_gone
from .meeting import LONGEST_CONNECTING, Heard, Wait, call_the_roll, meet

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=24)
LONGEST_SILENCE = 120.0  # seconds without an answer from the kernel of another machine
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class RankLost(UserError):
    """Another process of the run has ended, or cannot be reached; or this one could not do its part."""


class Elsewhere(UserError):
    """The chief has failed, and has said why: this rank ends without a word."""


class Unlike(UserError):
    """The processes of a run have not been started alike."""


class Ranks:
    """The only process of a run: every collective returns what it is given."""

    rank, size = 0, 1
    job = ""  # on the chief, the torchruns that started these processes, a line each

    @property
    def chief(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """`rank 1 of 4`; empty for the only one."""
        return f"rank {self.rank} of {self.size}" if self.size > 1 else ""

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors of one shape, type and device, each summed over the ranks; no gradient goes through."""
        return tensors

    def total(self, number: int) -> int:
        return number

    def largest(self, *numbers: int) -> tuple[int, ...]:
        return numbers

    def broadcast(self, value: T) -> T:
        return value

    def barrier(self) -> None: ...

    def decide(self, find: Callable[[], T]) -> T:
        """What `find` returns on the chief, plain data. If it raises there, others raise Elsewhere."""
        return find()

    def require_alike(self, values: Mapping[str, Any]) -> None:
        """Unlike on ranks whose values, plain data, are not the chief's, and on the chief; else Elsewhere."""

    @contextmanager
    def chief_first(self) -> Iterator[None]:
        """The body runs on the chief, then on the others; if it raises there, they raise Elsewhere."""
        yield

    def tell(self, word: str) -> None:
        """Leave a word for the chief, any time."""

    def told(self) -> str:
        """On the chief, any time: the word that another rank has left since this was asked; or nothing."""
        return ""

    def lost(self, error: Exception, what: str) -> Exception:
        """What to raise for an error while all ranks were at work on `what`."""
        return error


ALONE = Ranks()


class Processes(Ranks):
    """One of several processes. The default process group is there while this is open, and its store."""

    def __init__(self, rank: int, size: int, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        together = torch.stack(tensors)
        with self._reaching():
            torch.distributed.all_reduce(together)
        return together.unbind()

    def summing(self, tensor: Tensor) -> torch.futures.Future[Tensor]:
        """Begin to replace a tensor by its sum over the ranks; the future has it."""
        work = torch.distributed.all_reduce(tensor, async_op=True)
        assert work is not None
        summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        return summed

    def total(self, number: int) -> int:
        return int(self.sum(torch.tensor(number))[0])

    def largest(self, *numbers: int) -> tuple[int, ...]:
        together = torch.tensor(numbers)
        with self._reaching():
            torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        return tuple(together.tolist())

    def broadcast(self, value: T) -> T:
        text = json.dumps(value).encode() if self.chief else b""
        (length,) = self.largest(len(text))
        held = torch.frombuffer(bytearray(text or bytes(length)), dtype=torch.uint8)
        with self._reaching():
            torch.distributed.broadcast(held, 0)
        return cast(T, json.loads(bytes(held.tolist())))

    def barrier(self) -> None:
        self.largest(0)

    def decide(self, find: Callable[[], T]) -> T:
        found: dict[str, Any] = {}
        failure: Exception | None = None
        if self.chief:
            try:
                found["value"] = find()
            except Exception as error:  # whatever it is, the others must not wait
                failure = error
        self._meet()
        found = self.broadcast(found)
        if failure is not None:
            raise failure
        if "value" not in found:
            raise Elsewhere("rank 0 has failed")
        return cast(T, found["value"])

    def require_alike(self, values: Mapping[str, Any]) -> None:
        own = json.loads(json.dumps(values))
        first = self.broadcast(own)
        names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
        (others,) = self.largest(bool(names))
        if names:
            told = (f"{name} is {_brief(own.get(name))} and not {_brief(first.get(name))}" for name in names)
            raise Unlike(f"{self.name} is not started as rank 0 is: here {'; '.join(told)}")
        if others and self.chief:
            raise Unlike("not all processes are started as rank 0 is; they say in what they differ")
        if others:
            raise Elsewhere("another rank is not started as rank 0 is")

    @contextmanager
    def chief_first(self) -> Iterator[None]:
        if not self.chief and self._meet():
            raise Elsewhere("rank 0 has failed")
        try:
            yield
        except BaseException:
            if self.chief:
                with suppress(RankLost):
                    self._meet(1)
            raise
        if self.chief:
            self._meet()

    def _meet(self, number: int = 0) -> int:
        """The largest of all. A signal is heard meanwhile: its handler runs between two looks only."""
        together, pause = torch.tensor(number), 0.001
        with self._reaching():
            work = torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            work.wait()
        return int(together)

    def tell(self, word: str) -> None:
        if self._store is not None and not self.chief:
            with suppress(RuntimeError):  # the store is gone, and the run with it
                self._store.set("word", word)

    def told(self) -> str:
        with suppress(RuntimeError):
            if self._store is not None and self._store.check(["word"]):
                word = self._store.get("word").decode()
                self._store.delete_key("word")
                return str(word)
        return ""

    def lost(self, error: Exception, what: str) -> Exception:
        reason = str(error).strip().partition("\n")[0]
        return RankLost(
            f"{self.name}: {what} failed ({type(error).__name__}: {reason}). If another"
            " process has ended, that is why, and its own message counts. What was saved stays: --resume RUN"
            " goes on from it, and torchrun --max-restarts 3 does so by itself"
        )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch has no other name for it
            raise self.lost(error, "speaking with the others") from error


@contextmanager
def open_ranks(
    device: torch.device, environment: Mapping[str, str] = os.environ, heard: Heard = str
) -> Iterator[Ranks]:
    """The ranks that this process is one of, with what torchrun has put into `environment`.

    Until all have come a signal ends the wait: by KeyboardInterrupt or, where signals only leave their name
    with `heard`, by CalledOff.
    """
    require_launch(environment)
    if not launched(environment):
        alone = Ranks()
        alone.job = job_of(environment)
        yield alone
        return
    if not torch.distributed.is_available():
        raise ConfigError(
            "this torch is built without torch.distributed: start one process, without torchrun"
        )
    size = int(environment["WORLD_SIZE"])
    if environment.get("LOCAL_WORLD_SIZE") == str(size) and sys.platform in LOOPBACK:
        # Of one machine: gloo would ask for its name's address, which need not be known.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    # A rank without rows takes variances of nothing, and nothing comes of them.
    warnings.filterwarnings("ignore", message=r"var\(\): degrees of freedom")
    ranks = Processes(int(environment["RANK"]), size)
    with ranks._reaching(), hangup_interrupts():
        lost = torchrun_is_gone if supervised(environment) else bool
        wait = Wait(ranks.rank, size, heard, lost=lost)
        store = meet(environment, wait)
        name, ranks.job = call_the_roll(store, wait, job_of(environment))
        ranks._store = torch.distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
        wait = Wait(ranks.rank, size, heard, LONGEST_CONNECTING, lost)
        wait.once(partial(_connect, backend, ranks), "all have come and are not yet connected")
    probe_connections(LONGEST_SILENCE)
    yield ranks
    torch.distributed.destroy_process_group()  # not after an error: the others may be gone


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 64 else f"{text[:12]}..."


def _connect(backend: str, ranks: Processes) -> None:
    torch.distributed.init_process_group(
        backend, store=ranks._store, rank=ranks.rank, world_size=ranks.size, timeout=LONGEST_WAIT
    )
