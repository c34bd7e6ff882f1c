"""Where the processes of a run find each other: torchrun's store, or rank 0's, and a roll call in it.

Until all have come nothing is done that a process could lose, and it has to be possible to end it. torch's
own waits hear no signal for as long as they last. So the waiting is done here: for an address, for somebody
who listens there and answers, for the others. What may last is called in a thread, and the main one listens.

A roll call is rank 0's, has a name that no other has, and counts for whom rank 0 has seen in it: what
torchrun's store still holds of processes that are gone is taken by nobody for his own. It ends once, for all
of them: with the word of rank 0 that everybody is there, or with that of a rank that has been told to end or
has waited for too long. Whichever is in the store first holds. Under torchrun each process ends for itself
and leaves no word: torchrun ends the others, and may have ended this one to start it anew.
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
from typing import Any, TypeVar
from uuid import uuid4

from ..core.errors import UserError
from .launch import supervised

LONGEST_START = timedelta(minutes=30)  # until all processes have come
LONGEST_CONNECTING = timedelta(minutes=2)  # of all who have come; one may be gone by then
ANSWER = timedelta(minutes=1)  # of somebody who listens
NOTE = 5.0  # seconds until the first word about what is waited for; the next comes after six times as many
PAUSE = 0.1
LEAVING = 5.0  # seconds for a last word in the store and for the others to find it
ALL, FAILED = "all are here", "failed: "  # how outcomes begin; else they tell of a signal

Heard = Callable[[], str]
Made = TypeVar("Made")


class NotMet(UserError):
    """The processes of a run have not found each other."""


class CalledOff(UserError):
    """A process of the run has been told to end before all had come; nothing has been done."""


class Wait:
    """The patience of one process.

    `heard`: the name of a signal that it has had, or nothing. `lost`: is the torchrun gone that started it?
    """

    def __init__(
        self,
        rank: int,
        size: int,
        heard: Heard = str,
        longest: timedelta | None = None,
        lost: Callable[[], bool] = bool,
    ) -> None:
        self.rank, self.size, self.heard = rank, size, heard
        self.name = f"rank {rank} of {size}"
        self._lost = lost
        self._longest = (longest or LONGEST_START).total_seconds()
        self._began, self._next = time.monotonic(), NOTE

    def on(self, what: Callable[[], str]) -> None:
        """Say `what` is waited for, now and then. NotMet where that has been too long, or torchrun is gone.

        What torchrun does not look after any more would be taken for one of those that are started next.
        """
        if self._lost():
            raise NotMet(f"{self.name}: torchrun, which started this process, is gone")
        waited = time.monotonic() - self._began
        if waited >= self._longest:
            minutes = f"{self._longest / 60:.0f} minutes"
            raise NotMet(f"{self.name}: {what()}, for {minutes}; start all processes again")
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


def meet(environment: Mapping[str, str], wait: Wait) -> Any:
    """The store of a run's processes. NotMet, or CalledOff."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not every torch has it

    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    place = f"MASTER_ADDR={host} MASTER_PORT={port}"
    agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    keeps = wait.rank == 0 and not agents
    if keeps:
        wait.until(lambda: socket.getaddrinfo(host, port), f"{place} is not known")
    else:
        seconds = ANSWER.total_seconds()
        wait.until(
            lambda: socket.create_connection((host, port), seconds).close(),
            f"nobody listens at {place}",
        )
    try:
        store = wait.once(
            lambda: TCPStore(host, port, wait.size, is_master=keeps, timeout=ANSWER, wait_for_workers=False),
            f"who listens at {place} says nothing",
        )
    except RuntimeError as error:  # torch has no other name for it
        reason = str(error).strip().partition("\n")[0]
        remedy = "an address of rank 0's machine, and a port that is free there, are wanted"
        raise NotMet(f"{wait.name}: {place}: {reason}; {remedy}") from error
    store.set_timeout(LONGEST_START)
    return store


def call_the_roll(store: Any, wait: Wait, job: str = "") -> tuple[str, str]:
    """Wait until all are there; a name that only this meeting has and, on rank 0, the job's (`Roll.job`).

    `job`: see `job_of`. CalledOff when one has been told to end, NotMet when it has been too long or they are
    not of one run.
    """
    roll = Roll(store, wait.rank, wait.size, job)
    outcome = ""
    try:
        while not (outcome := wait.once(roll.look, "the store of rank 0 or torchrun does not answer")):
            if name := wait.heard():
                if not supervised():
                    outcome = wait.once(lambda: roll.decide(wait.word(name)), "the last word is not taken")
                if not outcome:
                    raise CalledOff(wait.word(name))
                break
            wait.on(roll.missing)
            time.sleep(PAUSE)
    except BaseException as error:
        if not supervised() and isinstance(error, KeyboardInterrupt | CalledOff | NotMet):
            why = wait.word("a signal") if isinstance(error, KeyboardInterrupt) else str(error)
            roll.leave(FAILED + why if isinstance(error, NotMet) else why)
        raise
    if outcome == ALL:
        return roll.name, roll.job
    roll.leave(outcome)
    if outcome.startswith(FAILED):
        raise NotMet(outcome.removeprefix(FAILED))
    raise CalledOff(outcome)


class Roll:
    """A roll call in a store, as one process sees it. Any call lasts for as long as the store is silent."""

    def __init__(self, store: Any, rank: int, size: int, job: str = "") -> None:
        self._store, self._rank, self._size = store, rank, size
        group = os.environ.get("GROUP_RANK", "")  # torchrun's number of the machine
        self._own = f"{size} {uuid4().hex} {group} {job}"
        self._taken = False  # another process has answered this call as the same rank
        self._seen = rank == 0  # rank 0 has seen this one's answer, so it is alive
        self._here = {rank: job}  # rank 0 learns who has answered
        self.name = ""

    @property
    def job(self) -> str:
        """The torchruns of all who are here, a line each; some of them start the next attempt as well."""
        return "\n".join(sorted(filter(None, set(self._here.values()))))

    def look(self) -> str:
        """Call the roll, or answer it; the outcome that holds for this process, or nothing."""
        if self._rank:
            self._answer()
        else:
            self._call()
        return self._get("outcome") if self._seen else ""

    def decide(self, word: str) -> str:
        """The outcome: `word`, if there was none. Nothing while no roll is called."""
        return self._first("outcome", word) if self.name and not self._taken else ""

    def leave(self, word: str) -> None:
        """Decide, and stay until those who have come know, for LEAVING seconds at most.

        The store may go with this process, may be gone or silent.
        """

        def last() -> None:
            with suppress(RuntimeError, NotMet):
                while self._rank and not self.name:
                    self._answer()
                    time.sleep(PAUSE)
                self.decide(word)
                if self._rank and not self._taken:
                    self._first("left", "yes", self._rank)
                while not self._rank and not all(self._get("left", rank) for rank in self._here if rank):
                    self._call()  # who comes now has to know as well
                    time.sleep(PAUSE)

        thread = threading.Thread(target=last, name="leaving", daemon=True)
        thread.start()
        thread.join(LEAVING)

    def missing(self) -> str:
        """What is waited for."""
        if self._rank and not self.name:
            return "rank 0 has not called the roll"
        if self._taken:
            return f"another process has answered as rank {self._rank}"
        if self._rank:
            return "rank 0 has not seen all of the others"
        gone = ", ".join(str(rank) for rank in range(self._size) if rank not in self._here)
        return f"of {self._size} processes these ranks have not come: {gone}"

    def _call(self) -> None:
        if not self.name:
            self.name = uuid4().hex
            self._store.set("call", self.name)
        for rank in range(self._size):
            answer = "" if rank in self._here else self._get("here", rank)
            if answer and self._is_stray(answer):
                self._store.delete_key(self._key("here", rank))
            elif answer:
                size, _, _, self._here[rank] = answer.split(" ", 3)
                self._store.set(self._key("seen", rank), answer)
                if size != str(self._size):
                    sizes = f"WORLD_SIZE is {self._size} for rank 0, and {size} for rank {rank}"
                    self.decide(f"{FAILED}{sizes}; start all processes with the same")
        if len(self._here) == self._size:
            self.decide(ALL)

    def _answer(self) -> None:
        called = self._store.get("call").decode() if self._store.check(["call"]) else ""
        if called and called != self.name:
            self.name, self._seen = called, False
            self._taken = self._first("here", self._own, self._rank) != self._own
            if self._taken and not supervised():
                raise NotMet(
                    f"another process is rank {self._rank} of {self._size}, or has been; RANK has to be"
                    " another for each process, and all have to be started again where one has ended"
                )
        elif self._taken:  # by one that rank 0 may not take
            self._taken = self._first("here", self._own, self._rank) != self._own
        if self.name and not self._seen and not self._taken:
            self._seen = self._get("seen", self._rank) == self._own

    def _is_stray(self, answer: str) -> bool:
        """Was it started by another torchrun on the machine of rank 0, one that has been killed?"""
        (_, _, group, job), (_, _, own_group, own) = answer.split(" ", 3), self._own.split(" ", 3)
        return bool(group and job and own) and group == own_group and job != own

    def _first(self, key: str, value: str, rank: int | None = None) -> str:
        """Set what is not set yet; what is there then."""
        return str(self._store.compare_set(self._key(key, rank), "", value).decode())

    def _get(self, key: str, rank: int | None = None) -> str:
        """What is there, or nothing."""
        name = self._key(key, rank)
        return str(self._store.get(name).decode()) if self._store.check([name]) else ""

    def _key(self, key: str, rank: int | None) -> str:
        return f"{self.name}/{key}" if rank is None else f"{self.name}/{key} {rank}"
