"""What all commands share: flags for options, and errors as messages and exit codes, never as tracebacks."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TypeAlias

from ..core.errors import SEE_DOCTOR, OutOfMemory, UserError, is_out_of_memory, is_own
from ..core.loading import Override
from ..core.streams import Output, discard_stdout

Main: TypeAlias = Callable[..., int]

INTERRUPTED = 130
EXIT_CODES = """\
exit codes: 0 done; 1 a data file, checkpoint or run directory cannot be used, or memory does not suffice;
2 the configuration or the command line is wrong; 3 the run diverged; 130 interrupted by Ctrl-C or SIGTERM
(training: or SIGHUP), with what was done saved"""
MEMORY = (
    "set a smaller train.batch_tokens or data.max_length in training, decode.batch_tokens, decode.beam or"
    " --threads in translation, or a smaller model"
)


def command(run: Callable[[Sequence[str]], int]) -> Main:
    """Make `main(argv=None) -> exit code` of a function of the arguments."""

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        _open_closed_streams()
        _wait_for_streams()
        try:
            with _terminable(), _brief_threads(), redirect_stdout(Output(sys.stdout)):
                code = run(sys.argv[1:] if argv is None else list(argv))
                sys.stdout.flush()
                return code
        except UserError as error:
            _complain(f"error: {error}")
            discard_stdout()
            return error.exit_code
        except KeyboardInterrupt:
            _complain("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            discard_stdout()
            return 0
        except ImportError as error:  # of what is imported when it is needed
            if is_own(error):
                raise
            _complain(f"error: {error}; {SEE_DOCTOR}")
            discard_stdout()
            return UserError.exit_code
        except OSError as error:
            named = f"{error.filename}: " if error.filename is not None else ""
            _complain(f"error: {named}{error.strerror or error}")
            discard_stdout()
            return UserError.exit_code
        except (RuntimeError, MemoryError, SystemError) as error:
            if not is_out_of_memory(error):
                raise
            _complain(f"error: memory does not suffice ({_first_line(error)}); {MEMORY}")
            discard_stdout()
            return OutOfMemory.exit_code

    return main


def _open_closed_streams() -> None:
    """Python has None for what the shell has closed (`<&-`, `>&-`).

    Reading such a stdin, and writing such a stdout, is an error when it is done; stderr is not missed.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _wait_for_streams() -> None:
    """A reader or writer that is slower is waited for, also where a stream was handed down without waiting.

    Python takes a moment without data for the end of such an input, and loses what such an output does not
    take at once.
    """
    if os.name == "posix":
        for number in range(3):
            with suppress(OSError):  # it is closed
                os.set_blocking(number, True)


@contextmanager
def _terminable() -> Iterator[None]:
    """A context in which SIGTERM and Ctrl-C raise KeyboardInterrupt. Only the main thread may set that.

    A Ctrl-C that is ignored, or that the caller handles in a way of its own, is left to that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `end_quietly` has it
        before[signal.SIGINT] = signal.SIG_DFL
    try:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _brief_threads() -> Iterator[None]:
    """A context in which a thread that can no longer write says so in a line.

    TensorBoard's is such a one; who hands it something to write is told by an exception of its own.
    """
    before = threading.excepthook

    def tell(end: threading.ExceptHookArgs) -> None:
        error = end.exc_value
        if isinstance(error, OSError):
            _complain(f"in the background: {error.strerror or error}")
        elif error is not None and is_out_of_memory(error):
            _complain(f"in the background: memory does not suffice ({_first_line(error)})")
        else:
            before(end)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _complain(text: str) -> None:
    with suppress(OSError):  # where stderr is gone too, the exit code has to do
        print(text, file=sys.stderr)


def whole_number(text: str) -> int:
    """The type of flags that count something."""
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps line breaks in its texts and takes no abbreviations."""

    def __init__(self, name: str, description: str, epilog: Callable[[], str] = lambda: EXIT_CODES) -> None:
        script = os.path.basename(sys.argv[0])
        super().__init__(
            prog=script if script == f"{name}.py" else f"python -m transformer {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.lazy_epilog = epilog

    def format_help(self) -> str:
        self.epilog = self.lazy_epilog()
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        super().print_help(file)
        sys.stdout.flush()  # argparse ends the process, and would not say that this fails

    def add_options(self, flags: dict[str, tuple[str, str]], only: str = "") -> None:
        """Flags that set options, flag: (key, help), and `--set`; `overrides` keeps their order."""
        self.set_defaults(overrides=[])
        for flag, (key, text) in flags.items():
            metavar = flag.strip("-").replace("-", "_").upper()
            self.add_argument(flag, action=_Collect, key=key, metavar=metavar, help=text, dest=flag)
        example = f"{only}.x=y" if only else "section.key=value"
        text = f"set an option: --set {example}; may be given often, the last one counts"
        self.add_argument("--set", action=_Collect, metavar=example, help=text, dest="--set")


class _Collect(argparse.Action):
    """Append an option's new value to `overrides`, with the words it was given in."""

    def __init__(self, *args: Any, key: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "default": argparse.SUPPRESS})
        self.key = key

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        item = (
            Override(tuple(self.key.split(".")), values, f"{option_string} {values}") if self.key else values
        )
        namespace.overrides = [*namespace.overrides, item]


MODEL_FLAGS = {
    "--placement": ("model.placement", "where the norm sits: `list placements`"),
    "--norm": ("model.norm", "which norm: `list norms`"),
    "--warmup": ("train.warmup", "updates of warm-up; 0 is none"),
    "--lr": ("train.lr", "peak learning rate"),
    "--seed": ("seed", "seed of the run"),
}
