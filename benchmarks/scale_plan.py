"""What the plan for very large corpora in docs/scaling.md is computed from, measured on this machine.

    python benchmarks/scale_plan.py --encoded .cache/encoded/NAME --pairs 1000000 4000000

- Of an encoded corpus (a folder of `data.cache`): bytes and tokens of a pair.
- Of an epoch's order (`plan_epoch`) over pairs of random lengths, made as they are asked for: seconds until
  the first batch is known, and bytes by which that raised the peak, in a new process for each number.
- Of a micro-batch: milliseconds to collate it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

from transformer.data.batching import BatchStream, Share
from transformer.data.checksums import META
from transformer.data.encoded import SIDES, EncodedCorpus
from transformer.data.planning import Lengths, plan_epoch

BATCH_TOKENS = 32768


def encoded(folder: Path) -> dict[str, float]:
    """Bytes and tokens of a pair of an encoded corpus."""
    pairs = json.loads((folder / META).read_text())["pairs"]
    corpus = EncodedCorpus.open(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    lengths = zip(SIDES, corpus.lengths(0, pairs), strict=True)
    found = {f"{side}_tokens": float(each.mean()) for side, each in lengths}
    found |= {"pairs": float(pairs), "bytes": sum(sizes.values()) / pairs}
    found |= {name: size / pairs for name, size in sorted(sizes.items()) if name != META}
    return found


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Pairs:
    """As many pairs as one likes, of random lengths, 27 tokens in the mean, which are the same each time."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def lengths(self, start: int, stop: int) -> tuple[Lengths, Lengths]:
        draw = np.random.default_rng(start)
        source, target = np.minimum(draw.gamma(2.0, 13.0, (2, stop - start)) + 2, 250).astype(np.int32)
        return source, target


def order(pairs: int) -> dict[str, float]:
    """One epoch's order, up to its first batch."""
    Pairs(10).lengths(0, 10)
    before, start = peak(), time.perf_counter()
    plan = plan_epoch(Pairs(pairs), BATCH_TOKENS, 1, 1)
    plan[0]
    seconds = time.perf_counter() - start
    return {"pairs": pairs, "batches": len(plan), "seconds": seconds, "peak_bytes": peak() - before}


def collated(folder: Path) -> dict[str, float]:
    """Milliseconds to make one micro-batch, whole and as the share of one of 64 ranks; medians of 20."""
    corpus, found = EncodedCorpus.open(folder), {}
    for size in (1, 64):
        stream = BatchStream(corpus, BATCH_TOKENS, 1, share=Share(0, size))
        batches, times = stream.epoch(1), []
        for _ in range(20):
            start = time.perf_counter()
            next(batches, None)
            times.append(time.perf_counter() - start)
        found[f"share of {size}"] = 1000 * sorted(times)[10]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoded", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 4_000_000])
    arguments = parser.parse_args()
    if arguments.encoded is not None:
        print(json.dumps({"encoded": encoded(arguments.encoded)}))
        print(json.dumps({"collate_milliseconds": collated(arguments.encoded)}), flush=True)
    for pairs in arguments.pairs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps({"order": pool.apply(order, (pairs,))}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
