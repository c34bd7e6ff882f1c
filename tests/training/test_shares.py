"""What a rank does with its share of a batch, seen in one process; the ranks together: test_ranks.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import ONCE, extras, plan

import transformer.training.launch as launch
from transformer import Transformer
from transformer.data.batching import Batch, BatchStream, Share, collate, no_pairs
from transformer.data.encoded import EncodedCorpus
from transformer.training.config import TrainConfig
from transformer.training.launch import (
    job_of,
    know_torchrun,
    launched,
    own_device,
    restarted,
    speaks,
    torchrun_is_gone,
)
from transformer.training.layouts import Whole, refusals
from transformer.training.passes import Passes
from transformer.training.ranks import Ranks

V = 24
SHAPE = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}


class Second(Ranks):
    """The second of two ranks, the other of which has nothing."""

    rank, size = 1, 2


def some() -> Batch:
    return collate([([4, 5, 6], [7, 8]), ([9], [10, 11, 12])], [0, 1])


def gradients(passes: Passes, batch: Batch) -> dict[str, Any]:
    passes.model.zero_grad(set_to_none=True)
    passes.run([batch], update=3)
    return {name: p.grad for name, p in passes.model.named_parameters()}


# What is computed anew passes a layer as the first time did: by `make test` each second one, each plainly.
@pytest.mark.parametrize(
    ("placement", "norm", "checkpointed"),
    [
        pytest.param(*pair, checkpointed, marks=pytest.mark.slow if checkpointed and i % 2 else [])
        for i, pair in enumerate(ONCE)
        for checkpointed in (False, True)
    ],
)
@pytest.mark.filterwarnings(r"ignore:var\(\)")  # as open_ranks does
def test_a_share_of_no_rows_has_the_gradients_of_all_parameters_and_they_are_zero(
    placement: str, norm: str, checkpointed: bool
) -> None:
    """DDP waits for each parameter's gradient, so a rank without rows must make those that others make."""
    model = Transformer(
        V, V, placement=placement, norm=plan(norm), **extras(placement, norm), **SHAPE, seed=1
    )
    passes = Passes(model, torch.float32, 0.1, 1, False, checkpointed)
    made = {name for name, gradient in gradients(passes, some()).items() if gradient is not None}
    passes.layout.ranks.total = lambda number: 5  # type: ignore[method-assign]
    try:
        none = gradients(passes, no_pairs())
    finally:
        del passes.layout.ranks.total  # type: ignore[method-assign]
    assert {name for name, gradient in none.items() if gradient is not None} == made
    assert all(not gradient.any() for gradient in none.values() if gradient is not None)


def test_ranks_draw_other_dropout_masks_and_the_first_those_of_one_process() -> None:
    model = Transformer(V, V, **SHAPE, dropout=0.3, seed=1)
    alone = gradients(Passes(model, torch.float32, 0.1, 1), some())
    ranks = [Second(), Second()]
    ranks[0].rank = 0
    both = [
        gradients(Passes(model, torch.float32, 0.1, 1, False, False, Whole(model, 0.1, each)), some())
        for each in ranks
    ]
    torch.testing.assert_close(both[0], alone, rtol=0, atol=0)
    assert any(not torch.equal(both[1][name], alone[name]) for name in alone)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_the_batch_and_differ_by_a_row_at_most(size: int) -> None:
    corpus = EncodedCorpus.of([([4] * (1 + i % 5), [5] * (1 + i % 7)) for i in range(40)])
    streams = [BatchStream(corpus, 60, 1, share=Share(rank, size)) for rank in range(size)]
    whole = list(BatchStream(corpus, 60, 1).epoch(2))
    for batch, *shares in zip(whole, *(stream.epoch(2) for stream in streams), strict=True):
        assert sorted(i for share in shares for i in share.indices.tolist()) == sorted(batch.indices.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len(shares[0]) == max(map(len, shares)), "the first rank, which probes, always has a row"
        assert sum(share.target_tokens for share in shares) == batch.target_tokens
        assert [stream.batches_in(2) for stream in streams] == [len(whole)] * size


def words(config: TrainConfig, **flags: Any) -> str:
    return " ".join(map(str, refusals(Transformer(V, V, **{**SHAPE, **flags}), config, 2)))


def test_what_several_processes_cannot_do_is_refused_with_the_reason() -> None:
    batch = {"norm": {"encoder": "batch", "decoder": "layer"}}
    assert words(TrainConfig()) == words(TrainConfig(), **batch) == words(TrainConfig(parallel="fsdp")) == ""
    assert words(TrainConfig(compile=True)) == ""
    assert "batch statistics" in words(TrainConfig(compile=True), **batch)
    assert "train.compile" in words(TrainConfig(compile=True, parallel="fsdp"))
    assert "muon looks at whole matrices" in words(TrainConfig(optimizer="muon", parallel="fsdp"))
    assert "model.placement" in words(TrainConfig(parallel="fsdp"), placement="reversible")


def test_the_environment_of_torchrun_is_read() -> None:
    first = {"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}
    assert [launched(each) for each in ({}, {"RANK": "0", "WORLD_SIZE": "1"}, first)] == [False, False, True]
    assert [speaks(each) for each in ({}, first, {**first, "LOCAL_RANK": "1"})] == [True, True, False]
    again = {**first, "TORCHELASTIC_RESTART_COUNT": "2"}
    assert [restarted(each) for each in ({}, first, again)] == [False, False, True]
    assert [own_device("cpu", first), own_device("auto", {})] == ["cpu", "auto"]


TORCHRUN = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}


def test_a_torchrun_is_known_by_the_directory_that_it_makes_for_itself() -> None:
    def of(folder: str, attempt: int = 0, rank: int = 0) -> str:
        return job_of(
            {**TORCHRUN, "TORCHELASTIC_ERROR_FILE": f"{folder}/attempt_{attempt}/{rank}/error.json"}
        )

    assert of("/tmp/e_1/none_a") == of("/tmp/e_1/none_a", 12, 3) == "/tmp/e_1/none_a"
    assert len({of("/tmp/e_1/none_a"), of("/tmp/e_1/none_b"), of("/tmp/attempt_0/none_a")}) == 3
    assert of("/a\nb\udc80").splitlines() == ["/a\\nb\\udc80"]


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Give this process another parent. Its own is one that there is, whatever runs the tests."""
    monkeypatch.setattr(launch, "_known", {})
    with subprocess.Popen(["sleep", "600"]) as asleep:
        monkeypatch.setattr(os, "getppid", lambda: asleep.pid)
        yield lambda number: monkeypatch.setattr(os, "getppid", lambda: number)
        asleep.kill()


def test_a_torchrun_that_makes_none_is_its_process(parent: Callable[[int], None]) -> None:
    environment = {**TORCHRUN, "TORCHELASTIC_ERROR_FILE": os.devnull}
    here = job_of(environment)
    assert here == job_of({**environment, "TORCHELASTIC_RESTART_COUNT": "1", "RANK": "1"})
    assert here.startswith(f"none process {os.getppid()} of ")
    assert (
        job_of({**environment, "TORCHELASTIC_RUN_ID": "a\nb\udcff"})
        .splitlines()[0]
        .startswith("a\\nb\\udcff")
    )
    assert job_of({"RANK": "1", "WORLD_SIZE": "2"}) == ""
    parent(os.getpid())
    assert job_of(environment) not in ("", here)
    parent(0)
    assert job_of(environment) == "", "any torchrun outside of a container has that number"


def test_torchrun_is_gone_when_another_process_looks_after_this_one(
    parent: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    know_torchrun()
    assert not torchrun_is_gone()
    parent(1)
    assert torchrun_is_gone()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("file", ["", "/tmp/e_1/none_a/attempt_0/0/error.json"])
def test_a_script_between_torchrun_and_a_process_is_not_the_torchrun(
    file: str, parent: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the script's variables afterwards, and whatever started torchrun."""
    environment = {**TORCHRUN, "TORCHELASTIC_ERROR_FILE": file}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}) as script:
        while b"TORCHELASTIC" not in Path(f"/proc/{script.pid}/environ").read_bytes():
            time.sleep(0.01)  # it is just becoming what it is
        parent(script.pid)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert know_torchrun() == [script.pid, os.getpid()]
        monkeypatch.setattr(Path, "read_bytes", lambda _: b"")
        assert not torchrun_is_gone()
        monkeypatch.setattr(launch, "_stat", lambda _: ["S", "1"])
        assert torchrun_is_gone()
        monkeypatch.setattr(launch, "_stat", lambda _: os.stat("x" * 300))
        assert not torchrun_is_gone(), "it cannot be told"
        script.kill()
