"""Where the processes of a run find each other: torchrun's store, or rank 0's, and a roll call in it.

Until all have come nothing is done that a process could lose, and it has to be possible to end it. torch's
own waits hear no signal for as long as they last. So the waiting is done here: for an address, for somebody
who listens there and answers, for the others.

The roll call ends once, for all: with the word of rank 0 that everybody is there, or with that of a rank that
has been told to end or has waited for too long. Whichever is in the store first holds; who comes later finds
it. Under torchrun each process ends for itself and leaves no word: torchrun tells the others, and may have
ended this one to start it anew in the same store.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import UserError
from .launch import supervised

LONGEST_START = timedelta(minutes=30)  # until all processes have come
CONNECTING = timedelta(minutes=1)  # to somebody who listens
NOTE = 5.0  # seconds until the first word about what is waited for; the next comes after six times as many
PAUSE = 0.1
ALL, FAILED = "all are here", "failed: "  # how outcomes begin; else they tell of a signal

Heard = Callable[[], str]
Made = TypeVar("Made")


class NotMet(UserError):
    """The processes of a run have not found each other."""


class CalledOff(UserError):
    """A process of the run has been told to end before all had come; nothing has been done."""


class Wait:
    """The patience of one process. `heard`: the name of a signal that it has had, or nothing."""

    def __init__(self, rank: int, size: int, heard: Heard = str) -> None:
        self.rank, self.size, self.heard = rank, size, heard
        self.name = f"rank {rank} of {size}"
        self._began, self._next = time.monotonic(), NOTE

    def on(self, what: Callable[[], str]) -> None:
        """Say `what` is waited for, now and then. NotMet where that has been too long."""
        waited = time.monotonic() - self._began
        longest = LONGEST_START.total_seconds()
        if waited >= longest:
            raise NotMet(f"{self.name}: {what()}, for {longest / 60:.0f} minutes; start all processes again")
        if waited >= self._next:
            self._next *= 6
            with suppress(OSError):  # nobody need be listening
                print(f"{self.name}: {what()}; waiting", file=sys.stderr, flush=True)

    def until(self, tried: Callable[[], object], what: str) -> None:
        """Try again and again, until no OSError comes of it; signals are heard meanwhile."""
        reason = "no answer so far"
        while True:
            try:
                self.once(tried, f"{what} ({reason})")
                return
            except OSError as error:
                reason = error.strerror or str(error)
            self._look_up(f"{what} ({reason})")
            time.sleep(5 * PAUSE)

    def once(self, tried: Callable[[], Made], what: str) -> Made:
        """What comes of a call that may last and hears no signal: a thread makes it, and this one listens."""
        ended = threading.Event()
        made: list[Made] = []
        failed: list[Exception] = []

        def work() -> None:
            try:
                made.append(tried())
            except Exception as error:  # whatever it is, the thread that asked must see it
                failed.append(error)
            finally:
                ended.set()

        threading.Thread(target=work, name="meeting", daemon=True).start()
        while not ended.wait(PAUSE):
            self._look_up(what)
        if failed:
            raise failed[0]
        return made[0]

    def _look_up(self, what: str) -> None:
        if name := self.heard():
            raise CalledOff(self.word(name))
        self.on(lambda: what)

    def word(self, name: str) -> str:
        """Why all end."""
        return f"{name} to {self.name} before all had come: nothing was done"


def meet(environment: Mapping[str, str], wait: Wait) -> tuple[Any, str]:
    """The store of this attempt, and on rank 0 the name of the job. NotMet, or CalledOff.

    torchrun may keep its store from one attempt to the next, with the addresses of processes that are gone in
    it: each attempt has names of its own there. Then the job is named by the first attempt: in a later one
    rank 0 may be on another machine.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not every torch has it

    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    place = f"MASTER_ADDR={host} MASTER_PORT={port}"
    agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    keeps = wait.rank == 0 and not agents
    if keeps:
        wait.until(lambda: socket.getaddrinfo(host, port), f"{place} is not known")
    else:
        seconds = CONNECTING.total_seconds()
        wait.until(
            lambda: socket.create_connection((host, port), seconds).close(),
            f"nobody listens at {place}",
        )
    try:
        store = wait.once(
            lambda: TCPStore(
                host, port, wait.size, is_master=keeps, timeout=CONNECTING, wait_for_workers=False
            ),
            f"who listens at {place} says nothing",
        )
    except RuntimeError as error:  # torch has no other name for it
        reason = str(error).strip().partition("\n")[0]
        remedy = "an address of rank 0's machine, and a port that is free there, are wanted"
        raise NotMet(f"{wait.name}: {place}: {reason}; {remedy}") from error
    store.set_timeout(LONGEST_START)
    job = store.compare_set("job", "", agent_of(environment)).decode() if wait.rank == 0 else ""
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}", store), job


def call_the_roll(store: Any, wait: Wait) -> None:
    """Wait until all are there. CalledOff when one has been told to end, NotMet when it has been too long."""

    def decide(word: str) -> None:
        store.compare_set("outcome", "", word)

    def missing() -> str:
        if wait.rank:
            return "rank 0 has not seen all of the others"
        gone = [str(rank) for rank in range(wait.size) if not store.check([f"here {rank}"])]
        return f"of {wait.size} processes these ranks have not come: {', '.join(gone)}"

    def leave(word: str) -> None:
        if not supervised():
            with suppress(RuntimeError):  # the store is gone, and the others with it
                decide(word)

    store.set(f"here {wait.rank}", "")
    everyone = [f"here {rank}" for rank in range(wait.size)]
    try:
        while not store.check(["outcome"]):
            if name := wait.heard():
                if supervised():
                    raise CalledOff(wait.word(name))
                decide(wait.word(name))
            elif wait.rank == 0 and store.check(everyone):
                decide(ALL)
            else:
                wait.on(missing)
                time.sleep(PAUSE)
    except KeyboardInterrupt:
        leave(wait.word("a signal"))
        raise
    except NotMet as error:
        leave(FAILED + str(error))
        raise
    outcome = store.get("outcome").decode()
    if outcome.startswith(FAILED):
        raise NotMet(outcome.removeprefix(FAILED))
    if outcome != ALL:
        raise CalledOff(outcome)


def agent_of(environment: Mapping[str, str]) -> str:
    """The process of torchrun on this machine, which outlives its attempts; empty where there is none."""
    if not supervised(environment):
        return ""
    parent, started = os.getppid(), ""
    with suppress(OSError, IndexError):  # elsewhere than on Linux the number must do
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(") ")[2].split()[19]
    job = environment.get("TORCHELASTIC_RUN_ID", "")
    return f"{job} {socket.gethostname()} {parent} {started}"
