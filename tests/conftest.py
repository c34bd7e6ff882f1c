"""One thread, float32 and a fixed seed for every test; whatever a test changes is put back."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read at torch's import: the cores are other tests' too
# What a test starts by a fork server has torch imported, once for all, and is of this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
multiprocessing.set_forkserver_preload(  # torch._dynamo: what every optimizer imports
    ["transformer.cli.train", "torch.utils.tensorboard", "torch._dynamo"]
)
gc.set_threshold(20_000, 20, 20)  # a search of all that was imported and collected takes a third of a second


def pytest_collection_finish() -> None:
    """What the tests hold together is no garbage."""
    gc.collect()
    gc.freeze()


# torch is imported by what tests: not by the process that only deals them out.
@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_environment(one_thread: None) -> Iterator[None]:
    """Seed torch before each test and restore the default dtype after it."""
    import torch

    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
