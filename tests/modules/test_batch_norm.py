"""BatchNorm: its running statistics, evaluation, batches too small, and several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from norm_passes import lengths_to_real, made, run
from norm_ranks import RUNS, Step, steps_of, work
from torch import multiprocessing, nn

from transformer import NORMS, Transformer

D = 4


def inputs(batch: int = 3, length: int = 5) -> torch.Tensor:
    return 3 * torch.randn(batch, length, D, dtype=torch.float64) + 2


def test_without_padding_it_is_torchs_in_training_and_evaluation() -> None:
    norm, theirs = made("batch", D, momentum=0.2).double(), nn.BatchNorm1d(D, 1e-3, 0.2).double()
    theirs.load_state_dict(norm.state_dict(), strict=False)
    for training in (True, True, True, False):
        x = inputs().requires_grad_()
        outputs = []
        for y in (run(norm.train(training), x), theirs.train(training)(x.mT).mT):
            outputs.append([y, *torch.autograd.grad(y.pow(3).sum(), [x])])
        torch.testing.assert_close(*outputs, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(norm.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)


def test_the_running_variance_is_unbiased_over_real_tokens_only() -> None:
    norm, x, real = made("batch", D, momentum=0.25).double(), inputs(), lengths_to_real([5, 2, 1], 5)
    run(norm, x, real)
    torch.testing.assert_close(norm.running_mean, 0.25 * x[real].mean(0))
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * x[real].var(0))


@pytest.mark.parametrize("lengths", [[1, 0, 0], [0, 0, 0]])
def test_a_batch_of_one_token_is_normed_by_running_statistics_and_does_not_move_them(
    lengths: list[int],
) -> None:
    norm, x, real = made("batch", D).double(), inputs(), lengths_to_real(lengths, 5)
    run(norm, inputs())
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    y = run(norm, x.requires_grad_(), real)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    torch.testing.assert_close(y, run(norm.eval(), x, real))


def test_evaluation_reads_running_statistics_of_each_token_alone_and_moves_nothing() -> None:
    norm = made("batch", D).double()
    for _ in range(3):
        run(norm, inputs())
    before, x = {name: value.clone() for name, value in norm.state_dict().items()}, inputs()
    y = run(norm.eval(), x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(run(norm, x[1:2, 3:4])[0, 0], y[1, 3])
    expected = (x - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
    torch.testing.assert_close(y, norm.weight * expected + norm.bias)


def test_a_variance_far_below_the_mean_is_not_lost_in_float32() -> None:
    norm, x = made("batch", D, eps=1e-8), torch.randn(20, 30, D) + 3000
    expected = made("batch", D, eps=1e-8).double()
    expected.load_state_dict(norm.state_dict())
    torch.testing.assert_close(run(norm, x).double(), run(expected, x.double()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("norm", [name for name in NORMS if NORMS[name].span == "batch"])
def test_a_decoder_refuses_norms_over_the_batch(norm: str) -> None:
    with pytest.raises(ValueError, match="decoder: in training its statistics tell a token of those that"):
        Transformer(19, 19, norm=norm, d_model=8, heads=2, d_ff=8, encoder_layers=1, decoder_layers=1)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX only")
def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    """Ranks have different numbers of tokens, in the last step the second has none."""
    ranks: list[list[Step]] = [[], []]
    for rank, rows, lengths in ((0, 3, [5, 2, 4]), (1, 2, [3, 1])):
        for step in range(5):
            real = lengths_to_real(lengths if step < 4 or rank == 0 else [0, 0], 5)
            ranks[rank].append((inputs(rows), real, torch.randn(rows, 5, D, dtype=torch.float64)))
        torch.save(ranks[rank], tmp_path / f"steps{rank}.pt")
    multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        work, (str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    results = [torch.load(tmp_path / f"results{rank}.pt", weights_only=True) for rank in range(2)]

    joined = [tuple(map(torch.cat, zip(*steps, strict=True))) for steps in zip(*ranks, strict=True)]
    for number, (name, options) in enumerate(RUNS):
        alone = steps_of(name, options, joined)  # type: ignore[arg-type]
        for step, one in enumerate(alone):
            first, second = (results[rank][number][step] for rank in range(2))
            for key, expected in one.items():
                if key in ("y", "dx"):
                    ours = torch.cat([first[key], second[key]])
                elif key in ("dweight", "dbias"):
                    ours = first[key] + second[key]
                else:
                    ours = first[key]
                    assert torch.equal(ours, second[key])
                torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11, msg=f"{name} {step} {key}")
