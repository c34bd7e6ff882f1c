"""The top eigenvalue against explicit matrices, and the rates that a curvature allows against descent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from transformer import PLACEMENTS
from transformer.analysis.curvature import (
    adam_scale,
    hessian_product,
    largest_rate,
    scaled,
    top_eigenvalue,
)
from transformer.analysis.finding import as_json, as_text, new_figure, save_figure
from transformer.analysis.setting import Arm, Batch, arms, build, mean_loss, random_batches
from transformer.analysis.sharpness import Sharpness, check_fold, moments_of
from transformer.analysis.steps import descend
from transformer.core.errors import CheckpointError, ConfigError
from transformer.model.config import ModelConfig
from transformer.training.config import TrainConfig
from transformer.training.optimizers import make_optimizer
from transformer.training.states import save_training

TINY = {"d_model": 4, "heads": 2, "d_ff": 4, "encoder_layers": 1, "decoder_layers": 1}


def symmetric(values: Sequence[float]) -> Tensor:
    """A matrix with these eigenvalues, in float64."""
    torch.manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize(
    "values",
    [
        [float(v) for v in range(1, 21)],
        [7.0, *([1e-3] * 40)],
        [3.0, *([0.0] * 30), -50.0],  # a larger negative one
        [-1.0, -2.0, -3.0],  # only negative ones
        [5.0, -5.0, 1.0],
        [2.0],
    ],
)
def test_the_top_eigenvalue_is_the_algebraically_largest(values: list[float]) -> None:
    matrix = symmetric(values)
    start = torch.randn(len(values), dtype=torch.float64)
    found = top_eigenvalue(lambda v: matrix @ v, start, 40, 1e-6)
    assert found.settled
    assert found.value == pytest.approx(max(values), rel=1e-5)


def test_a_value_that_is_not_near_an_eigenvalue_is_not_settled() -> None:
    matrix = symmetric([float(v) for v in range(1, 101)])
    found = top_eigenvalue(lambda v: matrix @ v, torch.randn(100, dtype=torch.float64), 3, 1e-6)
    assert not found.settled
    assert found.iterations == 3
    assert found.value < 100


def test_a_bulk_near_zero_does_not_hide_a_small_overlap() -> None:
    """Power iteration would settle on the bulk: the start is almost orthogonal to the top vector."""
    diagonal = torch.full((1000,), 0.01, dtype=torch.float64)
    diagonal[0] = 8.0
    start = torch.ones(1000, dtype=torch.float64)
    start[0] = 1e-4
    assert top_eigenvalue(lambda v: diagonal * v, start, 20, 1e-3).value == pytest.approx(8.0)


def test_a_quadratic_has_its_own_matrix_for_a_hessian() -> None:
    matrix = symmetric([4.0, 1.0, -2.0])
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    product = hessian_product(0.5 * w @ matrix @ w, [w])
    vector = torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(product(vector), matrix @ vector)


def test_preconditioning_gives_the_eigenvalues_of_p_inverse_times_h() -> None:
    matrix, p = symmetric([4.0, 1.0, 0.5]), torch.tensor([0.1, 2.0, 5.0], dtype=torch.float64)
    product = scaled(lambda v: matrix @ v, p.rsqrt())
    found = top_eigenvalue(product, torch.randn(3, dtype=torch.float64), 10, 1e-9)
    expected = torch.linalg.eigvals(matrix / p[:, None]).real.max().item()
    assert found.value == pytest.approx(expected)


@pytest.mark.parametrize("placement", [pytest.param("post", marks=pytest.mark.slow), "reversible"])
def test_the_hessian_of_a_model_is_that_of_autograd_entry_by_entry(placement: str) -> None:
    """An explicit Hessian of all parameters, from torch's own function of a flat vector."""
    config = ModelConfig.model_validate({**TINY, "placement": placement})
    batch = random_batches(1, 2, 4, 8, seed=1)[0]
    model = build(Arm("tiny", config), (8, 8), 1).double()
    source, target_in, target_out = batch
    shapes = {name: p.shape for name, p in model.named_parameters()}

    check_fold(model, batch, "tiny")

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([math.prod(shape) for shape in shapes.values()])
        values = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        logits = functional_call(model, values, (source, target_in))
        log_p = F.log_softmax(logits, -1).gather(-1, target_out[..., None]).squeeze(-1)
        real = target_out != 0
        return -(log_p * real).sum() / real.sum()

    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        at = torch.cat([p.detach().flatten() for p in parameters])
        explicit = torch.autograd.functional.hessian(loss, at)
        product = hessian_product(mean_loss(model, batch), parameters)
        vector = torch.randn_like(at)
        torch.testing.assert_close(product(vector), explicit @ vector, rtol=1e-6, atol=1e-9)
        found = top_eigenvalue(product, torch.randn_like(at), 100, 1e-6)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(explicit)[-1].item(), rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_descent_on_a_quadratic_diverges_above_the_largest_rate_and_not_below(momentum: float) -> None:
    """M <- b m + (1 - b) g, w <- w - lr m on curvature 3, until it is large."""

    def end(rate: float) -> float:
        w, m = 1.0, 0.0
        for _ in range(4000):
            m = momentum * m + (1 - momentum) * 3 * w
            w -= rate * m
            if abs(w) > 1e6:
                break
        return abs(w)

    edge = largest_rate(3.0, momentum)
    assert end(0.98 * edge) < 1e-3
    assert end(1.02 * edge) > 1e3


def test_without_momentum_it_is_two_and_with_nine_tenths_thirty_eight() -> None:
    assert largest_rate(1.0) == 2
    assert largest_rate(1.0, 0.9) == pytest.approx(38)
    assert largest_rate(-1.0) == math.inf


def test_adams_scale_after_one_update_is_that_of_the_gradient() -> None:
    """V / (1 - b2) = g^2 after one update: P = |g| + eps."""
    config = ModelConfig.model_validate(TINY)
    batch = random_batches(1, 2, 4, 8, seed=1)[0]
    model = build(Arm("tiny", config), (8, 8), 1)
    optimizer = make_optimizer(model, TrainConfig.model_validate({"optimizer": "adam", "epsilon": 1e-6}))
    mean_loss(model, batch).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    found = adam_scale(optimizer, list(model.parameters()))
    torch.testing.assert_close(found, (gradients.abs() + 1e-6).rsqrt(), rtol=1e-3, atol=1e-3)


def test_a_placement_whose_plain_fold_is_another_function_is_refused() -> None:
    arm = Arm("odd", ModelConfig.model_validate(TINY))
    model = build(arm, (8, 8), 1)
    for placement, _ in model.sites():
        placement.__dict__["climb"] = lambda stream, connections, tokens: stream  # leaves all branches out
    with pytest.raises(ConfigError, match="odd: sharpness needs second derivatives"):
        check_fold(model, random_batches(1, 2, 4, 8, seed=1)[0], "odd")


@pytest.fixture
def batches() -> list[Batch]:
    return random_batches(2, 3, 6, 20, seed=1)


def test_every_placement_has_a_sharpness(batches: list[Batch]) -> None:
    base = ModelConfig.model_validate({**TINY, "d_model": 8})
    finding = Sharpness(updates=1, iterations=3).run(
        arms(base, list(PLACEMENTS)), batches, (20, 20), [1], lambda text: None
    )
    assert len(finding.rows) == 2 * len(PLACEMENTS)
    assert all(math.isfinite(row[3]) for row in finding.rows)
    assert all(row[5] is None or math.isfinite(row[5]) for row in finding.rows)


def test_the_table_has_both_updates_and_the_rates_they_allow(batches: list[Batch]) -> None:
    base = ModelConfig.model_validate(TINY)
    finding = Sharpness(updates=3, iterations=40).run(
        arms(base, ["pre"]), batches, (20, 20), [1, 2, 3], lambda text: None
    )
    first, second = finding.rows
    assert (first[1], second[1]) == (0, 3)
    assert first[5:] == [None, None]
    assert second[4] == pytest.approx(2 / second[3])
    assert second[6] == pytest.approx(38 / second[5])


def test_a_norm_with_a_backward_pass_of_its_own_is_refused_with_the_reason(batches: list[Batch]) -> None:
    base = ModelConfig.model_validate(TINY)
    chosen = arms(base, ["pre"], [{"encoder": "power", "decoder": "layer"}])
    with pytest.raises(ConfigError, match="pre: no product with the Hessian: "):
        Sharpness(updates=0).run(chosen, batches, (20, 20), [1], lambda text: None)


def test_a_training_that_breaks_is_told_in_words(batches: list[Batch], tmp_path: Path) -> None:
    """At a rate of 1e30 the loss after one update is not finite; at 1e8 it may be, and H v not."""
    pytest.importorskip("matplotlib")
    base = ModelConfig.model_validate(TINY)
    finding = Sharpness(updates=2, lr=1e30, iterations=3).run(
        arms(base, ["pre", "post"]), batches, (20, 20), [1, 2], lambda text: None
    )
    assert [row[3:] for row in finding.rows[1::2]] == [[None] * 4] * 2
    assert "pre: loss or H v is not finite in 2 of 2 runs, after at most 2 updates at rate 1e+30" in as_text(
        finding
    )
    assert "nan" not in json.dumps(as_json(finding))
    save_figure(finding, tmp_path / "x.png")


def test_a_product_that_is_not_finite_has_no_eigenvalue() -> None:
    assert top_eigenvalue(lambda v: v * math.inf, torch.ones(3), 5, 1e-3) is None


def test_an_error_that_is_not_about_second_derivatives_stays_what_it_is(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("transformer.analysis.sharpness.hessian_product", full)
    with pytest.raises(torch.OutOfMemoryError):
        Sharpness(updates=0).run(
            arms(ModelConfig.model_validate(TINY)), batches, (20, 20), [1], lambda text: None
        )


def state_of_a_run(folder: Path, optimizer: str, batches: list[Batch]) -> Arm:
    """A model after two updates and its optimizer, as checkpoints/last holds them."""
    arm = Arm("run", ModelConfig.model_validate(TINY))
    model = build(arm, (20, 20), 1)
    config = TrainConfig.model_validate({"optimizer": optimizer, "betas": [0.8, 0.9], "weight_decay": 0.1})
    rule = make_optimizer(model, config)
    for _ in descend(model, batches, rule, [1e-3] * 2):
        pass
    save_training(folder / "last", model.state_dict(), {"optimizer": rule.state_dict()}, 2)
    return Arm("run", arm.config, folder / "last" / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_of_a_runs_last_checkpoint_adam_is_the_runs_own(
    optimizer: str, batches: list[Batch], tmp_path: Path
) -> None:
    arm = state_of_a_run(tmp_path, optimizer, batches)
    model = build(arm, (20, 20), 1)
    adam = moments_of(arm.weights, model, TrainConfig())
    assert adam is not None
    saved = torch.load(tmp_path / "last" / "trainer.pt", weights_only=True)["optimizer"]["state"]
    ours = sorted(s["exp_avg_sq"].sum().item() for s in adam.state.values())
    assert ours == pytest.approx(sorted(s["exp_avg_sq"].sum().item() for s in saved.values()))
    finding = Sharpness(updates=1, iterations=3).run([arm], batches, (20, 20), [1], lambda text: None)
    assert finding.rows[0][5] is not None
    assert finding.rows[0][6] == pytest.approx(18 / finding.rows[0][5])  # b1 of the run is 0.8
    assert "P is from the second moments that the run's optimizer had" in as_text(finding)


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "muon", "none"])
def test_a_run_without_an_adam_gets_a_fresh_one_and_a_sentence(
    optimizer: str, batches: list[Batch], tmp_path: Path
) -> None:
    arm = state_of_a_run(tmp_path, "adam" if optimizer == "none" else optimizer, batches)
    if optimizer == "none":  # other weights of the run than those of checkpoints/last
        (tmp_path / "last" / "trainer.pt").unlink()
    finding = Sharpness(updates=1, iterations=3).run([arm], batches, (20, 20), [1], lambda text: None)
    assert finding.rows[0][5:] == [None, None]
    assert "P is that of an Adam which begins at these weights" in as_text(finding)


def test_a_damaged_state_is_named(batches: list[Batch], tmp_path: Path) -> None:
    arm = state_of_a_run(tmp_path, "adam", batches)
    (tmp_path / "last" / "trainer.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: cut short or damaged"):
        Sharpness(updates=0).run([arm], batches, (20, 20), [1], lambda text: None)


def test_a_line_far_from_the_values_is_said_and_not_drawn(batches: list[Batch]) -> None:
    pytest.importorskip("matplotlib")
    base = ModelConfig.model_validate(TINY)
    finding = Sharpness(updates=1, lr=1e-6, iterations=5).run(
        arms(base, ["pre"]), batches, (20, 20), [1], lambda text: None
    )
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    axes = figure.axes[0]
    assert "2 / lr, lr = 1e-06: 2e+06, far above" in axes.get_title(loc="left")
    assert axes.get_ylim()[1] < 1e4
