"""What torch and other packages can do here, tried in a process of its own, which they may end."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTS = {  # of packages that the toolkit imports, beside torch
    "numpy": "numpy",
    "sentencepiece": "sentencepiece",
    "sacrebleu": "sacrebleu",
    "tensorboard": "torch.utils.tensorboard",
    "pyyaml": "yaml",
    "pydantic": "pydantic",
    "safetensors": "safetensors.torch",
    "tqdm": "tqdm",
    "typing_extensions": "typing_extensions",
    "matplotlib": "matplotlib",
    "submitit": "submitit",
    "ctranslate2": "ctranslate2",
}
ENDED = "the process ended"
LONGEST = 300  # seconds: an import from a busy network file system takes minutes, a driver that hangs all


@dataclass(frozen=True)
class Torch:
    """`error`: why it cannot be imported or cannot make one small update of a model; empty if it can."""

    version: str = ""
    error: str = ""
    cuda: str | None = None  # version it was built for
    gpus: tuple[str, ...] = ()
    capability: str = ""  # vector instructions that torch uses on this CPU
    reports: tuple[str, ...] = ()  # of AVX512-BF16 and AMX, those that the CPU has
    fast_bf16: bool = False
    onednn: bool = False
    unusable: Mapping[str, str] = field(default_factory=dict)  # packages that cannot be imported, and why
    complete: bool = False  # all was tried


def look_at_torch() -> Torch:
    """What another process tells, from a directory that is there; MKL ends one whose directory is not."""
    path = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import tell; tell()"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            timeout=LONGEST,
        )
    except OSError as error:
        return Torch(error=f"no process can be started to try it: {error.strerror}")
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""  # bytes even of a text stream, in some versions of Python
        known = _last_told(told if isinstance(told, str) else told.decode("utf-8", "replace"))
        return _cut_off(known, f"it did not answer within {LONGEST} seconds")
    values = _last_told(done.stdout)
    if not values.get("complete"):
        return _cut_off(values, _end(done))
    if done.stderr and sys.stderr:  # warnings
        sys.stderr.write(done.stderr)
    return _read(values)


def _cut_off(values: dict[str, Any], error: str) -> Torch:
    """What was known when the process ended: at a package that it imported, or before that at torch."""
    unusable = values.get("unusable", {})
    if ENDED in unusable.values():
        named = {package: error if why == ENDED else why for package, why in unusable.items()}
        return _read({**values, "unusable": named})
    return _read({**values, "gpus": (), "reports": (), "error": error})


def _read(values: dict[str, Any]) -> Torch:
    lists = {name: tuple(value) for name, value in values.items() if name in ("gpus", "reports")}
    return Torch(**{**values, **lists})


def _last_told(text: str) -> dict[str, Any]:
    """The last of what `tell` printed, if anything. What else starts with Python may print as well."""
    told = [line for line in text.splitlines() if line.startswith('{"version":') and line.endswith("}")]
    return dict(json.loads(told[-1])) if told else {}


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """How the process ended, and the last that it said."""
    code = done.returncode
    how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
    said = done.stderr.strip().splitlines()
    return f"the process ended with {how}{': ' + said[-1] if said else ''}"


def tell() -> None:
    """Print a line of JSON as soon as torch is imported, and one when all is known."""
    for found in _stages():
        print(json.dumps(asdict(found)), flush=True)


def _stages() -> Iterator[Torch]:
    """What is known, time and again: torch first, then the packages, of which each may end the process."""
    known = Torch()
    for known in _torch():
        yield known
    unusable: dict[str, str] = {}
    for package, module in IMPORTS.items():
        if _is_installed(package) and (known.version or "torch" not in module):
            yield replace(known, unusable={**unusable, package: ENDED})
            if error := _import(module):
                unusable[package] = error
    yield replace(known, unusable=unusable, complete=True)


def _torch() -> Iterator[Torch]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Torch(error=_first_line(error))
        return
    known = Torch(str(torch.__version__), cuda=torch.version.cuda)
    yield known
    try:
        from ..modules.precision import fast_bf16
        from ..modules.products import has_onednn
        from .runs import pick_device

        device = pick_device("auto")
        yield replace(
            known,
            error=_trial(device),
            gpus=tuple(_gpus(torch.cuda.device_count())),
            capability=torch.backends.cpu.get_cpu_capability(),
            reports=tuple(_reports()),
            fast_bf16=fast_bf16(device),
            onednn=has_onednn(),
        )
    except Exception as error:
        yield replace(known, error=_first_line(error))


def _gpus(count: int) -> Iterator[str]:
    import torch

    for number in range(count):
        found = torch.cuda.get_device_properties(number)
        memory = found.total_memory / 2**30
        yield f"{found.name}, {memory:.0f} GiB, compute capability {found.major}.{found.minor}"


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # which is a finding of its own
        return False
    return True


def _import(module: str) -> str:
    """Why it cannot be imported; empty if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return _first_line(error)
    return ""


def _reports() -> Iterator[str]:
    import torch

    for name, text in (("_is_avx512_bf16_supported", "AVX512-BF16"), ("_is_amx_tile_supported", "AMX")):
        if getattr(torch.cpu, name, lambda: False)():
            yield text


def _trial(device: object) -> str:
    """Why one update of a small model fails on the device; empty if it does not."""
    import torch

    from ..model.transformer import Transformer

    try:
        model = Transformer(8, 8, d_model=8, heads=2, d_ff=8, encoder_layers=1, decoder_layers=1)
        model.to(device)  # type: ignore[call-overload]
        ids = torch.tensor([[4, 5, 3]], device=model.output_weight.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(ids, ids).logsumexp(-1).sum().backward()
        optimizer.step()
        finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    except Exception as error:
        return _first_line(error)
    return "" if finite else "the weights are not finite after one update"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
