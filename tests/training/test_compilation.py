"""`train.compile`: the same training, compiled; how many graphs; what is told without a compiler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from transformer.core.errors import ConfigError
from transformer.training import compilation
from transformer.training.compilation import Compiled
from transformer.training.config import CHANGEABLE

COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)

# Of torch's own modules, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
# A layer, for tracing takes its time; and gradient descent: Adam would make steps of the rounding errors that
# are the gradients of the keys' biases.
SMALL = {"dropout": 0.0, "encoder_layers": 0}
DESCENT = {"optimizer": "sgd", "lr": 0.1}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and guarded as always, but run by torch's own kernels: no compiler."""
    monkeypatch.setattr(compilation, "Compiled", lambda model: Compiled(model, "eager"))


def trained(workshop: Any, name: str, **options: Any) -> Any:
    trainer = workshop.trainer(name, model=workshop.model(**SMALL), **DESCENT, **options)
    assert trainer.fit().status == "completed"
    return trainer


def log(trainer: Any) -> str:
    return str((trainer.run_dir / "log.txt").read_text())


@pytest.mark.usefixtures("traced")
def test_a_compiled_run_is_the_other_one_with_one_graph_and_the_same_names(workshop: Any) -> None:
    """Probed updates are not compiled: the hooks of a probe would not be run."""
    eager = trained(workshop, "eager", probe_every=3)
    compiled = trained(workshop, "compiled", probe_every=3, compile=True)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    torch.testing.assert_close(compiled.model.state_dict(), eager.model.state_dict(), rtol=1e-4, atol=1e-5)
    assert compiled.passes.compiled.graphs == 1
    assert log(compiled).count("compiled: graphs so far 1") == 1
    assert "compiled" not in log(eager)
    probes = [(run.run_dir / "metrics.jsonl").read_text().count("entropy") for run in (compiled, eager)]
    assert probes[0] == probes[1] > 0


@pytest.mark.usefixtures("traced")
def test_it_is_resumed_bit_for_bit_and_by_an_uncompiled_run_too(workshop: Any) -> None:
    straight = trained(workshop, "straight", compile=True, updates=7)
    trained(workshop, "cut", compile=True, updates=5)
    for compiled in (False, True):
        name, model = f"cut-{compiled}", workshop.model(**SMALL, seed=9)
        shutil.copytree(workshop.run_dir / "cut", workshop.run_dir / name)
        resumed = workshop.trainer(name, model=model, compile=compiled, updates=7, **DESCENT)
        resumed.resume()
        resumed.fit()
        exact = {"rtol": 0, "atol": 0} if compiled else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), **exact)
    assert "compile" in CHANGEABLE


def test_batches_of_any_shape_share_a_graph_but_for_sizes_of_one(workshop: Any) -> None:
    model = workshop.model(**SMALL)
    compiled = Compiled(model, "eager")
    seen = []
    for rows, source, target in ((3, 5, 4), (2, 7, 6), (9, 9, 9), (1, 5, 8), (1, 8, 3), (4, 4, 4)):
        ids = torch.randint(4, 14, (rows, source)), torch.randint(4, 14, (rows, target))
        torch.testing.assert_close(compiled(*ids), model.hidden(*ids), rtol=1e-4, atol=1e-5)
        seen.append(compiled.graphs)
    assert seen == [1, 1, 1, 2, 2, 2]
    assert list(compiled.news()) == ["compiled: graphs so far 2"]
    assert not list(compiled.news())


@pytest.mark.skipif(COMPILER is None, reason="torch.compile on a CPU needs a C++ compiler; there is none")
def test_compiled_gradients_are_the_model_s(workshop: Any) -> None:
    """With the compiler that training takes; a decoder layer alone, for it takes its time."""
    model = workshop.model(**SMALL)
    batch, found = workshop.batch(3), []
    for forward in (model.hidden, Compiled(model)):
        model.zero_grad()
        hidden = forward(batch.source, batch.target_in)
        hidden.square().sum().backward()
        found.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_no_compiler_is_told_before_anything_is_trained(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nonexistent"))
    with pytest.raises(
        ConfigError, match=r"train\.compile: torch\.compile failed.*compiler.*set it to false"
    ):
        workshop.trainer(compile=True)
