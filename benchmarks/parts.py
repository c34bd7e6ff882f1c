"""Where the time of torch's operators goes on a CPU, and how far each part is from what the machine can do.

Every operator that torch executes is timed where it is dispatched, and its multiplications and its bytes
are counted. `alone` is the fastest of a few calls of the same operator on the same data, one right after
the other: torch's kernel with its data in the cache. Its sum is what the program would take if every kernel
always ran so and nothing were between them. `swept` is the same with the cores' own caches overwritten before
each call, as an operator finds them whose data are larger than they are: its kernel with its data in the
cache that all cores share, or in memory. `least` is what a part takes at the rates of large products and
of a copy, which the same process measures; its sum is what these operators can take together whatever
kernels execute them: only fewer operators, fused ones, would take less. `interpreter` is what the operators
leave of the whole without the timing: Python, autograd and torch's dispatch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from transformer.speed.ceilings import fastest, measure_ceilings, name_of

_WRITTEN_ONLY = ("copy_", "random_", "fill_", "zero_")
_CALLS = 5
_SWEPT = 1 << 24  # bytes: more than the caches of a few cores, less than the one that they share
_COPIED = 1 << 23  # bytes: about as large as an activation
_PRODUCTS = (
    *("mm", "bmm", "addmm", "baddbmm", "matmul"),
    *("linear", "_linear_pointwise", "qlinear_pointwise"),
)


@dataclass
class Part:
    """Totals: seconds, operations of products, bytes read and written, seconds `alone` and `swept`."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    alone: float = 0.0
    swept: float = 0.0

    def __truediv__(self, times: int) -> Part:
        """Of one time."""
        return Part(*(total / times for total in astuple(self)))


class Counted(TorchDispatchMode):
    """Times and counts what is dispatched in this context, by part."""

    def __init__(self, part_of: Callable[[str, list[Tensor]], str]) -> None:
        """`part_of`: of an operator's name and its tensors, the name of its part."""
        super().__init__()
        self.part_of = part_of
        self.parts: defaultdict[str, Part] = defaultdict(Part)
        self._fastest: dict[object, tuple[float, float]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        began = time.perf_counter()
        made = func(*args, **given)
        took = time.perf_counter() - began
        name = func._schema.name.split("::")[1]
        arguments = list(tensors((args, given)))
        computes = func._schema.is_mutable or not views(arguments, list(tensors(made)))
        if computes and not name.startswith(("empty", "new_empty", "resize")):
            part = self.parts[self.part_of(name, arguments)]
            part.seconds += took
            part.bytes += moved(name, arguments, list(tensors(made)))
            part.operations += operations(name, arguments, made)
            key = func, *(described(each) for each in (args, *given.items()))
            if key not in self._fastest:
                self._fastest[key] = alone(func, args, given), alone(func, args, given, sweep)
            part.alone, part.swept = (
                total + min(each, took)
                for total, each in zip((part.alone, part.swept), self._fastest[key], strict=True)
            )
        return made


def sweep() -> None:
    """Fill the caches of the cores that torch computes on with other data."""
    torch.zeros(_SWEPT, dtype=torch.uint8)


def alone(
    func: Any, args: tuple[Any, ...], given: dict[str, Any], before: Callable[[], None] = lambda: None
) -> float:
    """Seconds of the fastest of a few calls; of copies, where the operator changes what it is given."""
    if func._schema.is_mutable:
        args, given = copied(args), copied(given)
    took = []
    for _ in range(_CALLS):
        before()
        began = time.perf_counter()
        func(*args, **given)
        took.append(time.perf_counter() - began)
    return min(took)


def copied(found: Any) -> Any:
    """Nested arguments with a tensor of its own for each."""
    if isinstance(found, Tensor):
        return found.clone() if found.layout == torch.strided else found
    if isinstance(found, dict):
        return {name: copied(each) for name, each in found.items()}
    return type(found)(map(copied, found)) if isinstance(found, list | tuple) else found


def described(found: Any) -> object:
    """What the time of an operator depends on, of an argument: a tensor's form, not its numbers."""
    if isinstance(found, Tensor):
        return found.shape, found.dtype, found.stride() if found.layout == torch.strided else found.layout
    if isinstance(found, list | tuple):
        return tuple(map(described, found))
    return str(found)


def tensors(found: Any) -> Iterator[Tensor]:
    """All in nested arguments or results."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple | dict):
        for each in found.values() if isinstance(found, dict) else found:
            yield from tensors(each)


def views(arguments: list[Tensor], made: list[Tensor]) -> bool:
    """Do all results, of which there are some, lie in an argument's memory?"""
    memory = {each.untyped_storage().data_ptr() for each in arguments if each.layout == torch.strided}
    return bool(made) and all(each.untyped_storage().data_ptr() in memory for each in made)


def is_product(name: str) -> bool:
    return name in _PRODUCTS


def factors(name: str, arguments: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A and B of A B."""
    if name in ("addmm", "baddbmm"):
        return arguments[1], arguments[2]
    one, other = arguments[:2]
    return one, other.mT if name in ("linear", "_linear_pointwise") else other


def transposed(matrix: Tensor) -> bool:
    return matrix.stride(0) == 1 and matrix.stride(1) != 1


def operations(name: str, arguments: list[Tensor], made: Any) -> float:
    """Two for each element of the first factor and each column of the product."""
    return 2.0 * factors(name, arguments)[0].numel() * made.shape[-1] if is_product(name) else 0.0


def moved(name: str, arguments: list[Tensor], made: list[Tensor]) -> float:
    """Bytes: each argument is read once and each result written once; a tensor changed in place is both."""
    results = {id(t) for t in made}
    given = {id(t): t for t in arguments}
    read = [t for key, t in given.items() if key not in results or changes(name)]
    return float(sum(map(extent, read)) + sum(map(extent, made)))


def changes(name: str) -> bool:
    return name.endswith("_") and not name.endswith(_WRITTEN_ONLY)


def extent(tensor: Tensor) -> int:
    """Bytes of its different elements."""
    if tensor.layout != torch.strided:  # ordered for a kernel
        return tensor.numel() * tensor.element_size()
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(torch.Size(sizes).numel() * tensor.element_size())


class Rates(NamedTuple):
    """Operations/s of large products, and bytes/s of a copy, read and written together."""

    products: float
    copying: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Rates:
        """Of this machine's CPU, as this process reaches them with its threads."""
        cpu = torch.device("cpu")
        there, here = torch.zeros(2, _COPIED, dtype=torch.uint8).unbind()
        copying = 2 * _COPIED / fastest(partial(there.copy_, here), cpu, 0.4)
        return cls(measure_ceilings(cpu, [dtype]).products[name_of(dtype)], copying)

    def least(self, part: Part) -> float:
        """Seconds that a part takes at these rates."""
        return max(part.operations / self.products, part.bytes / self.copying)

    def __str__(self) -> str:
        return f"{self.products / 1e9:,.0f} GFLOP/s; a copy of 8 MiB: {self.copying / 1e9:.1f} GB/s"


HEADER = ("", "ms", "share", "reached", "alone, ms", "swept, ms", "least, ms")


def rows_of(whole: float, parts: Mapping[str, Part], rates: Rates, name: str) -> list[list[str]]:
    """Of the table; the last one is of the whole, `name`."""
    rows = []
    for each, part in sorted(parts.items(), key=lambda item: -item[1].seconds):
        reached = f"{part.operations / part.seconds / 1e9:,.0f} GFLOP/s" if part.operations else ""
        reached = reached or f"{part.bytes / part.seconds / 1e9:.1f} GB/s"
        bounds = (f"{bound * 1e3:.0f}" for bound in (part.alone, part.swept, rates.least(part)))
        rows.append([each, *shown(part.seconds, whole), reached, *bounds])
    rest = whole - sum(part.seconds for part in parts.values())  # of two passes: it may be below 0
    rows.append(["interpreter", *shown(rest, whole), *[""] * 4])
    rows.append([name, f"{whole * 1e3:.0f}", "", "", *(f"{x * 1e3:.0f}" for x in bounds_of(parts, rates))])
    return rows


def bounds_of(parts: Mapping[str, Part], rates: Rates) -> tuple[float, float, float]:
    """Seconds of all operators: each alone, so with swept caches, and at these rates."""
    alone, swept = (sum(getattr(part, which) for part in parts.values()) for which in ("alone", "swept"))
    return alone, swept, sum(map(rates.least, parts.values()))


def speeds_of(amount: float, whole: float, parts: Mapping[str, Part], rates: Rates) -> list[float]:
    """How much is done in a second: as it is, and what each bound would allow."""
    return [amount / seconds for seconds in (whole, *bounds_of(parts, rates))]


def told(what: str, speeds: Sequence[float]) -> str:
    """A line of `speeds_of`."""
    bounds = zip(("the operators alone", "with swept caches", "at these rates"), speeds[1:], strict=True)
    return f"{what}: {speeds[0]:,.0f}; " + "; ".join(f"{name}: {bound:,.0f}" for name, bound in bounds)


def shown(seconds: float, whole: float) -> tuple[str, str]:
    """Milliseconds and share."""
    return f"{seconds * 1e3:.0f}", f"{seconds / whole:.0%}"
