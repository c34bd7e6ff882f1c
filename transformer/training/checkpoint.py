"""Weights on disk: written whole or not at all, read without running anything, known by their checksum.

Weights are safetensors with a header of strings, which holds the SHA-256 of all the rest; tied tensors are
stored once. Every write goes to a temporary name, is flushed to the disk and then renamed, so a crash or a
full disk leaves what was there before. What else a training is made of: states.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.disk import regular, replace
from ..core.errors import CheckpointError
from ..core.holding import require_held
from ..core.reading import read_json
from ..core.rundir import CHECKPOINTS, WEIGHTS
from .fingerprint import tensor_digest

TIED = "tied"
CHECKSUM = "sha256"
_HINT = "is the disk full or read-only?"
_HINTS: dict[type[Exception], str] = {
    IsADirectoryError: "a directory has this name: move it away",
    FileExistsError: "what has its directory's name is none: move it away",
    NotADirectoryError: "what has its directory's name is none: move it away",
}
PARTIAL = ".partial"  # the ending of a file that is being written


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict; tensors that share memory once, the others' names in the header."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor.detach().contiguous().cpu()
    header = {**metadata, TIED: json.dumps(tied)}
    header[CHECKSUM] = _checksum(kept, header)
    write_atomically(path, lambda temporary: save_file(kept, temporary, header))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, tied names sharing one, and the header. CheckpointError names file and remedy.

    The checksum is verified; a file of an older version, or of another program, has none.
    """
    try:
        with open(path, "rb", opener=regular):  # safe_open would wait for a pipe, and hear no signal
            pass
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = metadata.pop(CHECKSUM, None)
        if written is not None and written != _checksum(tensors, metadata):
            raise ValueError("damaged: its checksum is not that of its content")
        tied = read_json(metadata.pop(TIED, "{}"))
        return tensors | {name: tensors[kept] for name, kept in tied.items()}, metadata
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file{others(path)}") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: cut short or not a weights file ({error}); it cannot be used{others(path)}"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and bytes of all tensors, and of the header."""
    lines = [f"{name} {tensor_digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join([*lines, json.dumps(dict(header), sort_keys=True)]).encode()).hexdigest()


def load_model_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Load a weights file into its model; return the header. CheckpointError names what does not fit."""
    tensors, metadata = read_weights(path)
    set_weights(model, tensors, str(path))
    return metadata


def set_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, or raise CheckpointError with every kind of misfit."""
    expected = model.state_dict()
    misfits = {
        "missing": [name for name in expected if name not in tensors],
        "not in this model": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, here {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        "of another kind of number": [
            f"{name} {tensors[name].dtype}, here {tensor.dtype}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point()
        ],
    }
    if any(misfits.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in misfits.items() if names)
        raise CheckpointError(
            f"{source}: weights of another model ({listed});"
            " build the model from the config.yaml of the same run"
        )
    model.load_state_dict(dict(tensors))


def average_checkpoints(
    paths: Sequence[Path], require: Callable[[Mapping[str, str], Path], None] = lambda *_: None
) -> dict[str, Tensor]:
    """The mean of several weights files, tensor by tensor, summed in float64.

    Tensors keep their dtype, tied ones stay tied, and integer buffers are taken from the last file. Equal
    files average to themselves exactly. Running statistics of norms are averaged like weights: near to, but
    not, those of a model with the mean weights. `require(header, path)` raises for a file that is not to be
    among them. Source: Vaswani et al. 2017, section 6.1.
    """
    if not paths:
        raise CheckpointError("no checkpoints to average")
    last, _ = read_weights(paths[-1])
    mean: dict[str, Tensor] = {}
    for count, path in enumerate(paths, start=1):
        tensors, header = read_weights(path)
        require(header, path)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in last.items()}:
            raise CheckpointError(
                f"{path}: weights of another model than {paths[-1]}; they cannot be averaged"
            )
        for name, tensor in _untied(tensors).items():
            if tensor.is_floating_point():
                start = mean.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64))
                start += (tensor.double() - start) / count
    kept = {id(tensor): name for name, tensor in reversed(list(last.items()))}
    averaged = {
        name: mean[name].to(last[name].dtype) if name in mean else last[name] for name in _untied(last)
    }
    return {name: averaged[kept[id(tensor)]] for name, tensor in last.items()}


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under the first of its names."""
    seen: set[int] = set()
    return {n: t for n, t in tensors.items() if not (id(t) in seen or seen.add(id(t)))}  # type: ignore[func-returns-value]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, flush it, rename. An old file survives failure."""
    require_held(path)
    temporary = beside(path, f".{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        if temporary.stat().st_mode != mode:  # of a library that has its own mind on who may read
            with suppress(OSError):  # some file systems know no modes
                temporary.chmod(mode)
        replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        likely = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), _HINT)
        raise CheckpointError(
            f"{path}: cannot be written ({error}: {likely}); what was there before is kept"
        ) from error
    finally:
        with suppress(OSError):  # as of a name that is too long: what came first is what is said
            temporary.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """`path` with a longer name."""
    return path.with_name(path.name + suffix)


def others(path: Path) -> str:
    """Other weights of the run, newest first, as the end of a message: they are never chosen silently."""
    run = next((p.parent for p in path.parents if p.name == CHECKPOINTS), path.parent)
    found = [
        run / WEIGHTS,
        *run.glob("checkpoints/update-*.safetensors"),
        run / CHECKPOINTS / "last" / WEIGHTS,
    ]
    usable = sorted(
        {p for p in found if p.is_file() and p != path}, key=lambda p: p.stat().st_mtime, reverse=True
    )
    if not usable:
        return ""
    return f"; weights that are still there: {_some([str(p) for p in usable], 3)}"


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
