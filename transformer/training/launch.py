"""What torchrun tells a process: is it one of several, which device is its own, has it been here before?"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ..core.errors import ConfigError


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Has torchrun, or what speaks its language, started this process as one of several?"""
    return "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Has torchrun started this process anew after a failure?"""
    return "RANK" in environment and int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Does torchrun look after this process, and start all anew when one ends with another code than 0?"""
    return "TORCHELASTIC_RESTART_COUNT" in environment


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Is it this process that tells what all processes of its machine find?"""
    return not launched(environment) or environment.get("LOCAL_RANK", "0") == "0"


def own_device(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """`auto` and `cuda` of one of several processes: the device of its own; else the name itself."""
    if not launched(environment) or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    processes, there = int(environment.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > there:
        raise ConfigError(
            f"{processes} processes on a machine with {there} CUDA devices;"
            f" give --nproc-per-node {there}, or --device cpu"
        )
    return f"cuda:{environment.get('LOCAL_RANK', '0')}"
