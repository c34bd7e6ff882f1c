"""python -m transformer doctor: what was found here, and what to do about what is missing.

Nothing but Python has to be installed for this command.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core.streams import show
from .machine import DANGLING, GONE, Facts, Place, look
from .packages import INSTALL, MEND_PACKAGES, Finding, is_broken, packages_found

OLDEST_PYTHON = (3, 10)
GIB = 1 << 30
ROOM, LITTLE_ROOM = 100 << 20, 2 * GIB  # bytes of disk below which nothing, or not much, can be kept
MEMORY, LITTLE_MEMORY = 512 << 20, 2 * GIB
REMEDIES = {  # of what keeps a place from being written; else another place is to be chosen
    GONE: "change to a directory that exists: cd",
    DANGLING: "delete the link, or make the directory that it names",
    os.strerror(errno.ENAMETOOLONG): "choose a shorter name",
    os.strerror(errno.EFBIG): "lift the limit on the size of files: ulimit -f unlimited",
}
DESCRIPTION = """\
Look at Python, torch, devices, packages, CPUs, memory and disk, and say what to do about what is missing.

exit codes: 0 a model can be trained here; 1 it cannot, and what is marked `wrong` says why; 2 the command
line is wrong"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; 0 if training is possible, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer doctor",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="directory of data.cache")
    arguments = parser.parse_args(argv)
    facts = look(arguments.cache)
    findings = examine(facts)
    able = all(finding.state != "wrong" for finding in findings)
    if arguments.json:
        found = {"can_train": able, "findings": [asdict(f) for f in findings], "facts": asdict(facts)}
        text = json.dumps(found, indent=2)
    else:
        text = "\n".join([*map(shown, findings), *_summary(findings)])
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return show(text.encode(encoding, "backslashreplace").decode(encoding)) or (0 if able else 1)


def shown(finding: Finding) -> str:
    """`note   compiler   none` and, on a line of its own, what to do."""
    text = f"{finding.state:<6} {finding.topic:<18} {finding.found}"
    return f"{text}\n{'':<26}-> {finding.remedy}" if finding.remedy else text


def _summary(findings: Sequence[Finding]) -> Iterator[str]:
    wrong = [finding.topic for finding in findings if finding.state == "wrong"]
    yield ""
    yield f"training is not possible: {', '.join(wrong)}" if wrong else "training is possible"


def examine(facts: Facts) -> list[Finding]:
    """What the facts mean. Each finding that is not ok has its remedy."""
    return [finding for check in CHECKS for finding in check(facts)]


def _python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    if facts.python >= OLDEST_PYTHON:
        yield Finding("python", "ok", version)
    else:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding(
            "python", "wrong", version, f"install Python {oldest} or newer, and make a new environment"
        )
    if facts.system not in ("Linux", "Darwin"):
        yield Finding(
            "system", "note", f"{facts.system} is not tested", "use Linux or macOS (on Windows, WSL 2)"
        )


def _torch(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if not torch.version:
        first = MEND_PACKAGES if is_broken(facts) else ""
        yield Finding("torch", "wrong", f"cannot be imported: {torch.error}", f"{first}{INSTALL} torch")
        return
    build = f"built for CUDA {torch.cuda}" if torch.cuda else "built for CPUs"
    yield Finding("torch", "ok", f"{torch.version}, {build}")
    if torch.error:
        unwritten = any(p.what == "temporary files" and not p.writable for p in facts.places)
        remedy = "mend first what is said of temporary files below; " if unwritten else ""
        remedy += MEND_PACKAGES if is_broken(facts) else ""
        remedy += "try --device cpu; else install torch anew for this machine's driver: https://pytorch.org"
        yield Finding("trial", "wrong", f"one update of a small model fails: {torch.error}", remedy)
    else:
        yield Finding("trial", "ok", "one update of a small model works")


def _devices(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if torch.gpus:
        for number, gpu in enumerate(torch.gpus):
            yield Finding("device", "ok", f"cuda:{number}: {gpu}")
    elif facts.nvidia:
        why = "its driver and this torch do not go together" if torch.cuda else "this torch is built for CPUs"
        remedy = "install the build of torch for the CUDA version that nvidia-smi shows: https://pytorch.org"
        yield Finding("device", "note", f"NVIDIA's driver is here, but {why}", remedy)
    else:
        yield Finding("device", "ok", "cpu; no GPU")


def _precision(facts: Facts) -> Iterator[Finding]:
    torch = facts.torch
    if not torch.capability:  # torch told nothing
        return
    device = "the GPU" if torch.gpus else f"the CPU ({torch.capability})"
    reports = f" with {' and '.join(torch.reports)}" if torch.reports and not torch.gpus else ""
    if torch.fast_bf16:
        yield Finding("precision", "ok", f"train.precision auto takes bf16: {device}{reports} is fast at it")
        return
    yield Finding(
        "precision",
        "note",
        f"train.precision auto takes float32: {device} reports neither AVX512-BF16 nor AMX, nor is it a "
        "GPU of compute capability 8",
        "leave it at auto: bf16 works here and would not be faster; a machine that reports one would",
    )


def _kernels(facts: Facts) -> Iterator[Finding]:
    if not facts.torch.capability or facts.torch.gpus:
        return
    if facts.torch.onednn:
        yield Finding("oneDNN", "ok", "there, for products that it is the fastest at")
    elif facts.processor.lower() in ("x86_64", "amd64"):
        remedy = "install torch from its own index (https://pytorch.org), whose builds have it"
        yield Finding("oneDNN", "note", "this torch has no oneDNN product: it may be slower", remedy)
    else:
        yield Finding("oneDNN", "ok", f"not used on {facts.processor}")


def _compiler(facts: Facts) -> Iterator[Finding]:
    if facts.compiler:
        yield Finding("compiler", "ok", f"{facts.compiler}, for train.compile")
    else:
        remedy = "install g++ or clang++, or name one in CXX; or leave train.compile at false"
        yield Finding("compiler", "note", "no C++ compiler: train.compile does not work on a CPU", remedy)


def _c_compiler(facts: Facts) -> Iterator[Finding]:
    if facts.c_compiler:
        yield Finding("C compiler", "ok", f"{facts.c_compiler}, for operators of translation on a CPU")
    elif facts.torch.onednn:  # elsewhere they are not used
        remedy = "install gcc or clang, or name one in CC; without one torch's operators do the same"
        yield Finding("C compiler", "note", "none that works: translation on a CPU is slower", remedy)


def _cpus(facts: Facts) -> Iterator[Finding]:
    usable = facts.usable_cpus
    share = f"{usable} of {facts.cpus}" if usable < facts.cpus else f"{usable}"
    if facts.quota is not None and facts.quota < usable:
        threads = max(1, int(facts.quota))
        remedy = f"--set train.threads={threads}: more threads than that wait for each other"
        yield Finding(
            "cpus", "note", f"{share}, of which a cgroup grants the time of {facts.quota:.3g}", remedy
        )
    else:
        yield Finding("cpus", "ok", share)
    yield from _threads(facts.omp_threads or "", usable)


def _threads(omp: str, usable: int) -> Iterator[Finding]:
    """OMP_NUM_THREADS: a number, or one for each level of nested loops."""
    if not omp:
        return
    if not re.fullmatch(r"\s*0{0,9}[1-9][0-9]{0,8}\s*(,[\s0-9]+)*", omp, re.ASCII):
        remedy = f"unset it, or export OMP_NUM_THREADS={usable}"
        found = f"OMP_NUM_THREADS={omp[:20]!r}{'...' * (len(omp) > 20)} is no number of threads"
        yield Finding("threads", "note", found, remedy)
    elif (threads := int(omp.partition(",")[0])) < usable:
        remedy = f"unset it, or --set train.threads={usable}, unless other runs use the rest"
        found = f"OMP_NUM_THREADS={threads} keeps torch from using {usable} CPUs"
        yield Finding("threads", "note", found, remedy)


def _memory(facts: Facts) -> Iterator[Finding]:
    free, found = (
        facts.memory_available,
        f"{_size(facts.memory_available)} of {_size(facts.memory)} available",
    )
    if facts.memory_limit is not None and facts.memory_limit < facts.memory:
        free, found = min(free, facts.memory_limit), f"{found}; a cgroup grants {_size(facts.memory_limit)}"
    if free >= LITTLE_MEMORY:
        yield Finding("memory", "ok", found)
        return
    remedy = "end other programs; use smaller train.batch_tokens with train.accumulate, or a smaller model"
    yield Finding("memory", "note" if free >= MEMORY else "wrong", found, remedy)


def _places(facts: Facts) -> Iterator[Finding]:
    for place in facts.places:
        found = f"{place.path}: {_size(place.free)} free"
        if not place.writable:
            why = f": {place.error}" if place.error else ""
            remedy = REMEDIES.get(place.error) or _elsewhere(place)
            yield Finding(place.what, "wrong", f"{place.path}: cannot be written{why}", remedy)
        elif place.free < LITTLE_ROOM:
            remedy = f"delete what is not needed, or {_elsewhere(place)}"
            yield Finding(place.what, "note" if place.free >= ROOM else "wrong", found, remedy)
        else:
            yield Finding(place.what, "ok", found)


def _elsewhere(place: Place) -> str:
    return {
        "data cache": "set data.cache to a directory with room that you may write",
        "temporary files": "set TMPDIR to a directory with room that you may write",
    }.get(place.what, "give --run-dir and data.cache in a directory with room that you may write")


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _devices,
    _precision,
    _kernels,
    _compiler,
    _c_compiler,
    packages_found,
    _cpus,
    _memory,
    _places,
)
