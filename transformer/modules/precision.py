"""The number format of matrix products: what the user asked for, or what the hardware is fast at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bf16"]
InferencePrecision = Literal["auto", "float32", "bf16", "int8"]


def fast_bf16(device: torch.device) -> bool:
    """Does the hardware multiply bf16 matrices faster than float32 ones?

    True on CUDA devices of compute capability 8 and on CPUs that report AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        reports = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name)() for name in reports if hasattr(torch.cpu, name))
    return False


def resolve_precision(precision: InferencePrecision, device: torch.device) -> torch.dtype:
    """`auto` -> bfloat16 where the hardware is fast at it, else float32."""
    if precision == "int8":
        return torch.int8
    if precision == "bf16" or (precision == "auto" and fast_bf16(device)):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast matrix products to `dtype`; weights, the residual stream and norms stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)
