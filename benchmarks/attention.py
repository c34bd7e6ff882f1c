"""Time attention's forward and backward on this CPU: torch's kernel beside the plain products.

    python benchmarks/attention.py

Prints milliseconds (median of 15, forward and backward) and the ratio; `transformer/modules/attention.py`
chooses the plain products for bf16 gradients on a CPU because of the last column.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from transformer.modules.attention import attend
from transformer.modules.dropout import Dropout

SHAPES = [(256, 4, 16, 32), (128, 4, 32, 64), (32, 8, 64, 64), (16, 8, 128, 64)]  # B, H, T, K


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'B, H, T, K':>18} {'kernel ms':>10} {'plain ms':>10} {'ratio':>6}")
    off = Dropout(0.0)
    for shape in SHAPES:
        leaves = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        mask = torch.rand(shape[0], 1, 1, shape[2]) > 0.2
        mask[..., 0] = True
        times: dict[str, list[float]] = {"kernel": [], "plain": []}
        for _ in range(16):
            for name in times:
                start = time.perf_counter()
                if name == "kernel":
                    out = F.scaled_dot_product_attention(*leaves, mask)
                else:
                    out = attend(*leaves, mask, False, off)
                out.sum().backward()
                times[name].append(1e3 * (time.perf_counter() - start))
        kernel, plain = (statistics.median(times[name][1:]) for name in ("kernel", "plain"))
        print(f"{shape!s:>18} {kernel:10.2f} {plain:10.2f} {kernel / plain:6.1f}")


if __name__ == "__main__":
    main()
