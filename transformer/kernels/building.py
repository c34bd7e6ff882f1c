"""operators.c as a library: compiled once for this processor by the C compiler that is there, and kept.

It is kept in `prepost-transformer` of the user's cache ($XDG_CACHE_HOME or ~/.cache), under a name that
changes with the source, the compiler's call and the processor, and ends in a digest of its own. Where that
directory cannot be written, or others could write it, each process makes its own. Without a compiler there is
no library, and nothing else is missing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("operators.c")
# NaN counts, and sums are made in their order: nothing that assumes otherwise, whatever $CC says.
_FLAGS = (
    "-O3",
    "-fno-fast-math",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)
_PROCESSOR = ("-march=native", "-mcpu=native")  # as the processor's makers have it
_SECONDS = 30


@cache
def library() -> ctypes.CDLL | None:
    """The compiled operators; None where no compiler is found, or where it fails."""
    return _loaded(compiler(), _kept_in()) if os.name == "posix" else None


def compiler() -> list[str]:
    """The call of $CC, if that is set, else of the first C compiler there is; empty: none."""
    if (chosen := os.environ.get("CC")) is not None:
        try:
            call = shlex.split(chosen)
        except ValueError:  # a quote that is not closed
            return []
        return call if call and shutil.which(call[0]) else []
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), [])


def _loaded(call: list[str], kept: Path | None) -> ctypes.CDLL | None:
    if not call:
        return None
    if kept is None:
        return _loaded_once(call)
    try:
        text = "\0".join((_SOURCE.read_text(encoding="utf-8"), *call, *_FLAGS, _processor()))
        begin = f"operators-{_digest(text.encode())}-"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours_alone(kept):
            return _loaded_once(call)
        for made in sorted(kept.glob(f"{begin}*.so")):
            if made.name == f"{begin}{_digest(made.read_bytes())}.so":
                return ctypes.CDLL(str(made))
            made.unlink()  # a library that is cut short would end the process
        _compile(call, whole := kept / f"{begin}{os.getpid()}.new")
        os.replace(whole, made := kept / f"{begin}{_digest(whole.read_bytes())}.so")
        return ctypes.CDLL(str(made))
    except OSError:
        return _loaded_once(call)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_ours_alone(folder: Path) -> bool:
    """Can nobody else put a library there?"""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _loaded_once(call: list[str]) -> ctypes.CDLL | None:
    """Where nothing can be kept, for this process; its file is not needed once it is loaded."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _compile(call, made := Path(folder, "operators.so"))
            return ctypes.CDLL(str(made))
    except OSError:
        return None


def _compile(call: list[str], target: Path) -> None:
    """Write the library, whole or not at all; OSError where the compiler fails."""
    handle, made = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        for processor in _PROCESSOR:
            command = [*call, *_FLAGS, processor, str(_SOURCE), "-o", made, "-lm"]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise OSError(f"{call[0]} took longer than {_SECONDS} s") from error
            if done.returncode == 0:
                with open(made, "rb") as whole:
                    os.fsync(whole.fileno())
                os.replace(made, target)
                return
        raise OSError(done.stderr.decode(errors="replace"))
    finally:
        Path(made).unlink(missing_ok=True)


def _kept_in() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "prepost-transformer"
    except RuntimeError:  # a user without a home
        return None


def _processor() -> str:
    """What tells processors apart: a home may be shared by several."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.exists() else []
    named = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join((platform.machine(), platform.processor(), *sorted(named)))
