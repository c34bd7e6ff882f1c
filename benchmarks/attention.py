"""Time attention's forward and backward on this CPU: torch's kernel beside the plain products.

    python benchmarks/attention.py

Prints milliseconds (median of 15, forward and backward), the ratio, and which of both is taken
(`transformer/modules/attention.py`): what is faster, but for the memory of many scores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import torch

from transformer.modules import attention
from transformer.modules.dropout import Dropout
from transformer.training.memory import keep_freed_memory

SHAPES = [
    (372, 8, 11, 64),
    (255, 8, 16, 64),
    (128, 4, 32, 64),
    (64, 8, 64, 64),
    (16, 8, 128, 64),
]  # B, H, T, K


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'B, H, T, K':>18} {'format':>9} {'kernel ms':>10} {'plain ms':>9} {'ratio':>6}  taken")
    off = Dropout(0.0)
    written_out = partial(patch.object, attention, "_faster_written_out")
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            leaves = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
            mask = torch.rand(shape[0], 1, 1, shape[2]) > 0.2
            mask[..., 0] = True
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(16):
                for plain, took in times.items():
                    start = time.perf_counter()
                    with written_out(return_value=plain):
                        attention.attend(*leaves, mask, False, off).sum().backward()
                    took.append(1e3 * (time.perf_counter() - start))
            kernel, plain = (statistics.median(took[1:]) for took in times.values())
            taken = "plain" if attention._faster_written_out(*leaves[:2]) else "kernel"
            name = str(dtype).removeprefix("torch.")
            print(f"{shape!s:>18} {name:>9} {kernel:10.2f} {plain:9.2f} {kernel / plain:6.1f}  {taken}")


if __name__ == "__main__":
    main()
