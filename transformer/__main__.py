"""python -m transformer COMMAND ...: the toolkit's commands under one name."""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
from collections.abc import Sequence

from .core.errors import SEE_DOCTOR, is_own
from .core.signals import end_quietly
from .core.streams import show
from .training.launch import know_torchrun

COMMANDS = {
    "train": "train a model, or go on with a run",
    "translate": "translate with one run or an ensemble; score against a reference",
    "list": "what can be chosen and set: placements, norms, schedules, optimizers, ..., options, schema",
    "explain": "equations, norm count, parameters and learning rates of a configuration",
    "probe": "measure a model: gradients, streams, updates, ... at initialisation or of a run",
    "study": "run a grid of arms and seeds, and write a report with a verdict on each question",
    "compare": "paired significance tests between two runs",
    "demo": "translations of test sentences and the scores of a run",
    "export": "write a run for CTranslate2 to serve: folded, verified",
    "bench": "time training and translation, beside what this machine could do",
    "average": "average checkpoints of a run into one weights file",
    "data": "prepare or inspect the data of a configuration",
    "doctor": "what was found here, and what to do about what is missing",
    "docs": "write the generated tables of the documentation",
}

ALONE = {"translate", "study", "export", "average", "data"}  # several of these would get in each other's way


def program(*first: str) -> int:
    """`main` of a process of its own: with what stands on its command line, after `first`.

    One of several processes ends here when all is done: a thread of torch's that is at work while the
    interpreter takes itself down may abort it, which torchrun would take for a failure of the run. Where a
    library crashes the process, stderr says in which line of Python.
    """
    end_quietly()
    if sys.stderr is not None:  # closed by the shell
        faulthandler.enable()
    if "RANK" in os.environ:
        know_torchrun()
    code = main([*first, *sys.argv[1:]])
    if "RANK" in os.environ:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by name; `-h` lists them. Only the one asked for is imported."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10} {text}" for command, text in COMMANDS.items()]
        return show(
            "\n".join(["usage: python -m transformer COMMAND ...\n\ncommands (each has --help):", *lines])
        )
    if name not in COMMANDS:
        from .core.registry import unknown

        print(f"error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    size = os.environ.get("WORLD_SIZE", "") if "RANK" in os.environ else ""
    if name in ALONE and size not in ("", "1") and not {"-h", "--help"} & {*rest}:
        told = (
            f"error: {name}: RANK and WORLD_SIZE say that this is one of {size} processes, which would read"
        )
        told += " and write the same; start one, without torchrun, or unset the two"
        print(f"{told} (--processes N starts more)" if name == "translate" else told, file=sys.stderr)
        return 2
    try:
        os.getcwd()
    except OSError as error:  # libraries would end the process when they are loaded
        if name != "doctor":
            print(
                f"error: the current directory: {error.strerror}; change to one that is there",
                file=sys.stderr,
            )
            return 1
    try:
        command = importlib.import_module(f".cli.{name}", __package__)
    except (ImportError, OSError) as error:  # the latter of a library that a package lacks
        if is_own(error):
            raise
        print(f"error: {error}; {SEE_DOCTOR}", file=sys.stderr)
        return 1
    code: int = command.main(rest)
    return code


if __name__ == "__main__":
    raise SystemExit(program())
