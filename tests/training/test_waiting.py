"""An update waits for no number of the device: that is for the log, the probe and the validation to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transformer import NORMS, PLACEMENTS
from transformer.data.batching import Batch, collate
from transformer.training.optimizers import OPTIMIZERS

READS = {"adafactor"}  # torch's own reads the norm of each parameter
FAST = {"pre", "hyper", "reversible", "rms"}  # the others, which take half a second each, are slow tests


@pytest.fixture
def batch() -> Batch:
    return collate([([5, 6, 7], [7, 6, 5]), ([4, 5], [5, 4]), ([9], [9])], [0, 1, 2])


@pytest.fixture
def numberless(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose tensors have no numbers: who asks for one gets an error. It has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.float32)
    generator = SimpleNamespace(get_rng_state=lambda _: torch.zeros(()), set_rng_state=lambda *_: None)
    monkeypatch.setattr(torch, "get_device_module", lambda _: generator)
    return "meta"


def updated(workshop: Any, batch: Batch, device: str, flags: dict[str, Any], **options: Any) -> Any:
    model = workshop.model(allow_unsound=True, **flags).to(device)
    trainer = workshop.trainer(model=model, probe_every=0, **options)
    trainer.step([batch])
    return trainer


def cases() -> Iterator[Any]:
    for kind, registry in (("placement", PLACEMENTS), ("norm", NORMS)):
        for name in registry:
            yield pytest.param({kind: name}, id=name, marks=[] if name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("flags", list(cases()))
def test_no_placement_and_no_norm_waits(
    flags: dict[str, Any], workshop: Any, batch: Batch, numberless: str
) -> None:
    updated(workshop, batch, numberless, flags, optimizer="sgd")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_but_torchs_adafactor_waits(
    name: str, workshop: Any, batch: Batch, numberless: str
) -> None:
    with pytest.raises(RuntimeError, match="item") if name in READS else nullcontext():
        updated(workshop, batch, numberless, {}, optimizer=name)


def test_of_several_micro_batches_the_log_is_the_first_to_wait(
    workshop: Any, batch: Batch, numberless: str
) -> None:
    trainer = updated(workshop, batch, numberless, {}, optimizer="sgd", clip=1.0)
    trainer.step([batch, batch])
    with pytest.raises(NotImplementedError, match="meta"):
        trainer.window.read()
