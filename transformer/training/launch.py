"""What torchrun tells a process: one of how many it is, which device is its own, whose attempt it is."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..core.errors import ConfigError, Problem

REMEDY = (
    "torchrun sets all of these for each process, and so has whoever starts processes without it; to train"
    " in one process, unset RANK and WORLD_SIZE"
)


OWN = "TORCHELASTIC_ERROR_FILE"  # in a directory that each torchrun makes for itself
# Of what /proc does not tell: another user's process, one that has ended, another system than Linux.
UNKNOWN = (FileNotFoundError, PermissionError, ProcessLookupError)


def require_launch(environment: Mapping[str, str] = os.environ) -> None:
    """ConfigError with all that is missing or wrong in what starts several processes, if something did."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return  # one of them alone says nothing of several processes, and some machines set it for all
    problems: list[Problem] = []

    def number(name: str, least: int, most: int | None = None, needed: bool = True) -> int | None:
        text = environment.get(name)
        if text is None:
            problems.extend([Problem(name, "not set")] * needed)
            return None
        value = int(text) if re.fullmatch(r"0|[1-9][0-9]{0,8}", text) else -1
        if value < least or (most is not None and value > most):
            bounds = f"from {least} up" if most is None else f"from {least} to {most}"
            problems.append(Problem(name, f"a whole number {bounds} is wanted, not {text!r}"))
            return None
        return value

    size = number("WORLD_SIZE", 1)
    last = None if size is None else size - 1
    number("RANK", 0, last)
    here = number("LOCAL_WORLD_SIZE", 1, size, needed=False)
    number("LOCAL_RANK", 0, last if here is None else here - 1, needed=here is not None and here > 1)
    number("TORCHELASTIC_RESTART_COUNT", 0, needed=False)
    if size != 1:
        address = environment.get("MASTER_ADDR")
        if not address:
            problems.append(Problem("MASTER_ADDR", "not set" if address is None else "empty"))
        elif not _may_be_address(address):
            problems.append(Problem("MASTER_ADDR", f"{address!r} cannot be the name of a machine"))
        number("MASTER_PORT", 1, 65535)
    if problems:
        raise ConfigError([*problems[:-1], replace(problems[-1], hint=REMEDY)])


def _may_be_address(text: str) -> bool:
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Has torchrun, or what speaks its language, started this process as one of several?"""
    return "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Has torchrun started this process anew after a failure?"""
    several = "RANK" in environment and "WORLD_SIZE" in environment
    return several and int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Does torchrun look after this process, and start all anew when one ends with another code than 0?"""
    return "TORCHELASTIC_RESTART_COUNT" in environment


def job_of(environment: Mapping[str, str] = os.environ) -> str:
    """The torchrun that started this process, the same in all of its attempts; empty where there is none.

    It is known by the directory that it makes for itself, `OWN` up to the attempt, which scripts and
    containers in between hand on. Where it is told to make none (`--log-dir /dev/null`) it is known by its
    process.
    """
    if not supervised(environment):
        return ""
    own = re.match(r"(.+)[/\\]attempt_[0-9]+[/\\]", environment.get(OWN, ""), re.DOTALL)
    if own:
        return _in_a_line(own[1])
    process, machine, since = _chain(environment)[-1], socket.gethostname(), ""
    if not process:  # it is outside of this container
        return ""
    with suppress(*UNKNOWN):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(*UNKNOWN):
        since = f" since {_stat(process)[19]}"
    return _in_a_line(f"{environment.get('TORCHELASTIC_RUN_ID', '')} process {process} of {machine}{since}")


def _in_a_line(text: str) -> str:
    return text.encode("unicode_escape").decode()


def know_torchrun() -> list[int]:
    """The processes from the parent of this one up to torchrun, as when this was first called.

    For programs, before they import anything heavy: when that is done it may be gone.
    """
    if os.getpid() not in _known:
        _known[os.getpid()] = _chain(os.environ)
    return _known[os.getpid()]


def torchrun_is_gone() -> bool:
    """Has it ended, or what it has started in between, so that nobody looks after this process any more?"""
    chain = know_torchrun()
    if os.getppid() != chain[0]:
        return True
    with suppress(OSError):  # such as too many open files
        return [int(_stat(process)[1]) for process in chain[:-1]] != chain[1:]
    return False


_known: dict[int, list[int]] = {}  # by the process that asked: a fork has another one


def _chain(environment: Mapping[str, str]) -> list[int]:
    """The parent, and where that is a script, which torchrun has given the same variables, its parent, ..."""
    name = OWN if environment.get(OWN, "") not in ("", os.devnull) else "TORCHELASTIC_RUN_ID"
    mark = f"\0{name}={environment.get(name, '')}\0".encode(errors="surrogateescape")
    chain = [os.getppid()]
    with suppress(*UNKNOWN):
        while mark in b"\0" + Path(f"/proc/{chain[-1]}/environ").read_bytes():
            chain.append(int(_stat(chain[-1])[1]))
    return chain


def _stat(process: int) -> list[str]:
    """What Linux says of a process, after its name: state, parent, ...; the 20th is when it began."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Is it this process that tells what all processes of its machine find?"""
    return not launched(environment) or environment.get("LOCAL_RANK", "0") == "0"


def own_device(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """`auto` and `cuda` of one of several processes: the device of its own; else the name itself."""
    if not launched(environment) or name not in ("auto", "cuda"):
        return name
    import torch  # here, since programs ask other things of this module before they import anything heavy

    if not torch.cuda.is_available():
        return name
    processes, there = int(environment.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > there:
        raise ConfigError(
            f"{processes} processes on a machine with {there} CUDA devices;"
            f" give --nproc-per-node {there}, or --device cpu"
        )
    return f"cuda:{environment.get('LOCAL_RANK', '0')}"
