"""--device: what torch cannot compute on is one message with a hint, whatever class torch says it with."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from transformer.cli.bench import main as bench
from transformer.cli.runs import pick_device
from transformer.cli.train import main as train
from transformer.core.errors import ConfigError


def names() -> list[str]:
    """Every kind of device that torch lists where it is asked for one that is none."""
    with pytest.raises(RuntimeError) as caught:
        torch.device("abacus")
    listed = re.search(r"one of (.*) device type", str(caught.value))
    assert listed is not None
    return listed[1].split(", ")


ODD = ["", "abacus", "cpu:", "cuda:-1", "cuda:999", "cuda:99999999999999999999", "hpu:0", "a\0b", "\udcff"]


@pytest.mark.filterwarnings("ignore:'mkldnn' is no longer used")
@pytest.mark.parametrize("name", [*names(), *ODD])
def test_a_device_computes_or_is_refused_with_a_hint(name: str) -> None:
    try:
        assert torch.ones(2, device=pick_device(name)).sum().item() == 2
        return
    except ConfigError as error:
        told = str(error)
    assert re.fullmatch(rf"--device {re.escape(name)}: .+; use auto, cpu, cuda or cuda:0", told, re.DOTALL)
    assert "report a bug" not in told


@pytest.mark.parametrize("command", [train, lambda words: bench(["train", *words])], ids=["train", "bench"])
@pytest.mark.parametrize("name", ["hpu", "privateuseone"])
def test_a_backend_that_is_not_installed_is_no_traceback(
    name: str, command: Callable[[list[str]], int], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([config, "--device", name]) == 2
    assert f"--device {name}: No module named 'torch.{name}'; use auto" in capsys.readouterr().err


def test_a_device_whose_memory_is_full_is_not_taken_for_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(torch.OutOfMemoryError):
        pick_device("cpu")
