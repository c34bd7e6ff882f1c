"""Errors a user can cause, each with a remedy; everything else that raises is our own bug.

The command line turns these into one message on stderr and an exit code, never a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

SEE_DOCTOR = "`python -m transformer doctor` says what is missing"


class UserError(Exception):
    """Something the user can mend. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    `path` is the dotted key, `source` where its value came from (`file.yaml, line 3`,
    `--set model.heads=7`, `default`), `hint` what to do about it.
    """

    path: str
    message: str
    source: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        if self.hint:
            text += f"; {self.hint}"
        return f"{text} ({self.source})" if self.source else text


class ConfigError(UserError):
    """Every problem of a configuration at once. Exit code 2."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        if isinstance(problems, str):
            self.problems = [Problem("", problems)]
            super().__init__(problems)
        else:
            self.problems = list(problems)
            super().__init__("invalid configuration:\n" + "\n".join(f"  - {p}" for p in self.problems))


class DataError(UserError):
    """A data file cannot be used. The message names the file and, where there is one, the line."""


class CheckpointError(UserError):
    """A checkpoint or run directory is missing, cut short, or of another model."""


class OutOfMemory(UserError):
    """Memory does not suffice. `pair`: the number of the training pair that does not fit, where it is one."""

    def __init__(self, message: str, pair: int | None = None) -> None:
        super().__init__(message)
        self.pair = pair


# What torch and the libraries of CPU and GPU say, in a RuntimeError that has no class of its own. oneDNN's
# words do not tell a lack of memory from other reasons: the message repeats them.
_ALLOCATORS = (
    *("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory"),
    *("STATUS_ALLOC_FAILED", "could not create a primitive", "can't start new thread"),
    "callback: MemoryError",  # of a gradient's hook, which torch runs
)


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail? torch's own class is known by its name, as torch is not imported here."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, SystemError):  # C code whose allocation failed, and that did not say so
        return "without exception set" in str(error)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def is_own(error: Exception) -> bool:
    """Is an error of an import our own bug, and no package's fault?

    It is where a module of this toolkit is missing, or asks a package for a name that it does not have.
    """
    own = __name__.partition(".")[0]
    if (getattr(error, "name", None) or "").partition(".")[0] == own:
        return True
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    asks = str(error).startswith("cannot import name")
    return asks and place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith(f"{own}.")
