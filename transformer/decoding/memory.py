"""What the search for one line may come to hold, against what the machine has: refused before it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from ..core.errors import ConfigError, Problem
from ..model.transformer import Transformer
from .config import DecodeConfig

_BYTES = 4  # of a float32; bf16 products are of parameters, the cache is float32
_LOGITS = 3  # tensors of a step that are as wide as the vocabulary


def refuse_too_much(
    models: Sequence[Transformer], config: DecodeConfig, source: int, target: int, device: torch.device
) -> None:
    """Raise ConfigError when one line alone, at its longest, takes more bytes than the device has at all.

    `source` and `target`: most subwords of a line and of its translation. A batch is never less than a line,
    so no size of batches helps. What is longer than most lines is not counted against all of them. An
    estimate from below (rows that change places take more): nothing that would work is refused.
    """
    longest = min(config.longest(source), target)
    needed = sum(one_line(model, config, longest) for model in models)
    if needed > (there := memory_of(device)):
        rows = config.rows_per_line
        message = (
            f"{rows:,} hypotheses of up to {longest:,} subwords each take {needed / 1e9:,.2g} GB for one"
            f" line, of {there / 1e9:,.2g} that there are"
        )
        name = "n_best" if config.search == "sampling" else "beam"
        hint = f"lower decode.{name}, decode.max_length or decode.max_length_ratio"
        raise ConfigError([Problem(f"decode.{name}", message, hint=hint)])


def one_line(model: Transformer, config: DecodeConfig, longest: int) -> int:
    """Bytes of the decoder's keys and values and of a step's logits, for all hypotheses of a line."""
    shape = model.config
    columns = min(longest, shape.attention_window or longest)
    cache = columns * shape.decoder_layers * 2 * shape.d_model
    return config.rows_per_line * (cache + _LOGITS * model.target_vocab) * _BYTES


def memory_of(device: torch.device) -> int:
    """Bytes that a device has, used or not: of a CPU those of the machine, or of this process's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize
    if sys.platform.startswith("linux"):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        there = there if limit == resource.RLIM_INFINITY else min(there, limit)
    return there
