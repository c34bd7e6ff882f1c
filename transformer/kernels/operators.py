"""Operators in C (operators.c) on torch's tensors, for searches on a CPU.

They work on one thread, and only within `at_work`: whoever calls a model otherwise gets torch's operators,
with gradients. Each has a readable twin in torch that computes the same to rounding: `attend` in
modules/attention.py, `_log_softmax` in decoding/next_token.py, `best_sums` in decoding/ranking.py, `rounded`
in modules/int8.py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .building import library

_LANES = 8  # numbers of a vector in operators.c
_FEW_THREADS = 2  # of torch; with so many its operators are not faster than these
_work = threading.local()


class _Strides(ctypes.Structure):
    _fields_ = (("sentence", c_int64), ("head", c_int64), ("column", c_int64))


@cache
def _compiled() -> Mapping[str, Any]:
    """The library's functions by name, with their types; none where there is no library."""
    if (found := library()) is None:
        return {}
    tensors = [c_void_p, POINTER(_Strides)] * 4
    types: dict[str, tuple[Any, list[Any]]] = {
        "log_softmax": (None, [c_void_p, *[c_int64] * 2]),
        "rounded": (None, [c_void_p, *[c_int64] * 3, *[c_void_p] * 2]),
        "best_sums": (c_int64, [*[c_void_p] * 2, *[c_int64] * 4, *[c_void_p] * 3]),
        "attend": (None, [*tensors, *[c_int64] * 5, c_float, *[c_void_p] * 3]),
    }
    functions = {name: found[name] for name in types}  # asked for once: each asking makes another
    for name, function in functions.items():
        function.restype, function.argtypes = types[name]
    return functions if _are_right(functions) else {}


def _are_right(functions: Mapping[str, Any]) -> bool:
    """A trial, since a compiler may take its liberties: exponentials, and NaN where there is one."""
    x = torch.linspace(-9, 9, 19).repeat(3, 1)
    x[1, 2] = torch.nan
    expected, (addends, sums) = x.log_softmax(-1), torch.zeros(2, 3, dtype=torch.float64)
    rows, columns = torch.zeros(2, 3, dtype=torch.int64)
    functions["log_softmax"](x.data_ptr(), *x.shape)
    missing = functions["best_sums"](
        *(x.data_ptr(), addends.data_ptr(), 3, 1, 19, 1),
        *(sums.data_ptr(), rows.data_ptr(), columns.data_ptr()),
    )
    return bool(missing) and torch.allclose(x, expected, rtol=0, atol=1e-5, equal_nan=True)


def prepare() -> None:
    """Compile and load, which takes a second or two the first time on a machine."""
    _compiled()


@contextmanager
def at_work() -> Iterator[None]:
    """For this thread, where there are such operators, and torch has few threads for its own."""
    before = getattr(_work, "operators", {})
    _work.operators = _compiled() if torch.get_num_threads() <= _FEW_THREADS else {}
    try:
        yield
    finally:
        _work.operators = before


def has(operator: str) -> bool:
    """Is this within `at_work`, and is there such an operator?"""
    return operator in getattr(_work, "operators", ())


def can_attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> bool:
    """float32, vectors that are contiguous and whole, and a mask that is one for all heads."""
    return (
        has("attend")
        and len(query) == len(keys)
        and query.dtype == keys.dtype == values.dtype == torch.float32
        and query.shape[3] % _LANES == 0
        and query.stride(3) == keys.stride(3) == values.stride(3) == 1
        and (mask is None or _is_for_all_heads(mask, (len(query), query.shape[2], keys.shape[2])))
    )


def _is_for_all_heads(mask: Tensor, shape: tuple[int, int, int]) -> bool:
    """(B or 1, 1, T or 1, S), S contiguous."""
    sentences, heads, length, columns = mask.shape
    fits = sentences in (1, shape[0]) and heads == 1 and length in (1, shape[1]) and columns == shape[2]
    return fits and mask.dtype == torch.bool and mask.stride(3) == 1


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V. (B, H, T, K), (B, H, S, K) twice, (B or 1, 1, T or 1, S) -> (B, H, T, K).

    Columns that a query does not see are not looked at. One that sees none gets 0.
    """
    sentences, heads, length, width = query.shape
    columns = keys.shape[2]
    assert keys.shape == values.shape
    out = query.new_empty(sentences, length, heads, width)
    weights = query.new_empty(columns + _LANES)
    seen = torch.empty(length * (1 + columns), dtype=torch.int64)
    _work.operators["attend"](
        *_located(query),
        *_located(keys),
        *_located(values),
        *((None, None) if mask is None else _located(mask)),
        *(sentences, heads, length, columns, width, width**-0.5),
        *(weights.data_ptr(), seen.data_ptr(), out.data_ptr()),
    )
    return out.transpose(1, 2)


def _located(x: Tensor) -> tuple[int, _Strides]:
    """Where a tensor begins, and its strides; a dimension of 1 is each of the others'."""
    strides = (0 if size == 1 else stride for size, stride in zip(x.shape[:3], x.stride(), strict=False))
    return x.data_ptr(), _Strides(*strides)


def log_softmax_(x: Tensor) -> Tensor:
    """`x.log_softmax(-1)` of contiguous float32 (R, N), in its place."""
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    _work.operators["log_softmax"](x.data_ptr(), *x.shape)
    return x


def best_sums(values: Tensor, addends: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """`decoding.ranking.best_sums` of contiguous float32; None where one is NaN."""
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    groups, width = addends.shape
    addends = addends.contiguous()
    sums = addends.new_empty(groups, k)
    rows, columns = (torch.empty(groups, k, dtype=torch.int64) for _ in range(2))
    missing = _work.operators["best_sums"](
        *(values.data_ptr(), addends.data_ptr(), groups, width, values.shape[1], k),
        *(sums.data_ptr(), rows.data_ptr(), columns.data_ptr()),
    )
    return None if missing else (sums, rows, columns)


def rounded(x: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    """float32 (R, N) -> whole numbers from -127 to 127, and their scales (R, 1) in float32.

    The whole numbers are int8, or with `zero` 128 uint8 of which it is to be taken away. The scale of a row
    that is not finite is not finite.
    """
    assert x.dtype == torch.float32
    x = x.contiguous()
    whole = torch.empty(x.shape, dtype=torch.uint8 if zero else torch.int8)
    scales = x.new_empty(len(x), 1)
    _work.operators["rounded"](x.data_ptr(), *x.shape, zero, whole.data_ptr(), scales.data_ptr())
    return whole, scales
