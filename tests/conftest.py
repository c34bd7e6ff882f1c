"""One thread, float32 and a fixed seed for every test; whatever a test changes is put back."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read at torch's import: the cores are other tests' too

import torch

torch.set_num_threads(1)
# What a test starts by a fork server has torch imported, once for all, and is of this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
multiprocessing.set_forkserver_preload(["transformer.cli.train", "torch.utils.tensorboard"])


@pytest.fixture(autouse=True)
def fixed_environment() -> Iterator[None]:
    """Seed torch before each test and restore the default dtype after it."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
