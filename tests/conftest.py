"""One thread, float32 and a fixed seed for every test; whatever a test changes is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_environment() -> Iterator[None]:
    """Seed torch before each test and restore the default dtype after it."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
