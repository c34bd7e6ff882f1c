"""Gradients through norms against closed forms, and the size of their Jacobians."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from transformer import NORMS, PLACEMENTS
from transformer.analysis.finding import new_figure
from transformer.analysis.norm_backward import Listener, NormBackward, gradients, jacobian_scale, named_norms
from transformer.analysis.setting import Arm, arms, build, mean_loss, random_batches
from transformer.analysis.steps import keep_activations
from transformer.model.config import ModelConfig
from transformer.modules.norms import Norm

D = 12
TINY = {"d_model": 8, "heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}


def passage(norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Of random tokens with a mean and a scale, and a random gradient; float64."""
    torch.manual_seed(3)
    x = (2 + 3 * torch.randn(7, D, dtype=torch.float64)).requires_grad_()
    g = 0.5 + torch.randn(7, D, dtype=torch.float64)
    (leaving,) = torch.autograd.grad(norm.double()(x), x, g)
    return x.detach(), g, leaving


def test_layer_norm_recentres_and_takes_the_square_of_the_projection_on_y() -> None:
    """DL/dx = (g - mean(g) - y mean(g y)) / sigma: mean 0, sigma^2 var = var(g) - mean(g y)^2."""
    x, g, leaving = passage(NORMS["layer_simple"](D, 1e-12))
    found = gradients((x, g, leaving))
    y = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    taken = (g * y).mean(-1).square().mean() / g.var(-1, correction=0).mean()
    assert found.taken == pytest.approx(taken.item(), rel=1e-6)
    assert found.taken > 0.01
    assert found.mean_out == pytest.approx(0, abs=1e-8)
    assert found.mean_in == pytest.approx((g.mean(-1).square().mean() / g.square().mean()).sqrt().item())
    assert found.variance_in == pytest.approx(g.var(-1, correction=0).mean().item())
    assert found.variance_out == pytest.approx(leaving.var(-1, correction=0).mean().item())


@pytest.mark.parametrize(
    ("detach", "centred", "takes"),
    [("both", False, False), ("mean", False, True), ("deviation", True, False)],
)
def test_the_mean_recentres_and_the_deviation_shrinks(detach: str, centred: bool, takes: bool) -> None:
    found = gradients(passage(NORMS["detach"](D, 1e-12, detach=detach)))
    assert (found.mean_out < 1e-8) == centred
    assert (found.taken > 1e-3) == takes
    if not takes:
        assert found.taken == pytest.approx(0, abs=1e-9)


def test_a_constant_gradient_is_all_mean() -> None:
    ones = torch.ones(4, D)
    found = gradients((torch.randn(4, D), ones + 0.0, torch.randn(4, D)))
    assert found.mean_in == pytest.approx(1)


@pytest.mark.parametrize("name", ["layer", "rms", "layer_simple", "prms", "group", "ada", "dyt", "detach"])
def test_the_jacobian_is_as_long_as_its_largest_singular_value(name: str) -> None:
    torch.manual_seed(2)
    norm = NORMS[name](D).double()
    for parameter in norm.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    x = 1 + 2 * torch.randn(5, D, dtype=torch.float64)
    found = jacobian_scale(norm, x, torch.randn_like(x), 500)
    for row, scale in zip(x, found, strict=True):
        explicit = torch.autograd.functional.jacobian(norm, row)
        expected = torch.linalg.matrix_norm(explicit, 2) * row.norm() / math.sqrt(D)
        assert scale.item() == pytest.approx(expected.item(), rel=1e-4)


def test_of_a_centred_token_layer_norm_has_one() -> None:
    """||J||_2 = sqrt(D) / ||x - mean||, so the number is ||x|| / ||x - mean||: 1 for a token of mean 0."""
    x = 5 * torch.randn(6, D, dtype=torch.float64)
    start = torch.randn_like(x)
    norm = NORMS["layer"](D, 1e-12).double()
    away = x.norm(dim=-1) / (x - x.mean(-1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(jacobian_scale(norm, x, start, 5), away)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(jacobian_scale(norm, centred, start, 5), torch.ones(6, dtype=torch.float64))


def test_twice_the_identity_has_twice_the_length() -> None:
    x = torch.randn(3, D)
    expected = 2 * x.norm(dim=-1) / math.sqrt(D)
    torch.testing.assert_close(jacobian_scale(lambda rows: 2 * rows, x, torch.randn_like(x), 2), expected)


def test_what_leaves_is_what_passes_the_norm_and_not_the_stream_beside_it() -> None:
    """In Pre-LN the gradient of a norm's input has the stream's part too: the norm alone is run again."""
    config = ModelConfig.model_validate({**TINY, "placement": "pre"})
    batch = random_batches(1, 4, 6, 20, seed=1)[0]
    model = build(Arm("pre", config), (20, 20), 1)
    norm = model.decoder.layers[0].cross_residual.norm
    listener = Listener(norm)
    mean_loss(model, batch).backward()
    found = listener.stop()
    assert found is not None
    x, entering, leaving = found
    assert len(x) == int((batch[2] != 0).sum())  # padding is left out
    x = x.requires_grad_()
    (expected,) = torch.autograd.grad(norm(x), x, entering)
    torch.testing.assert_close(leaving, expected)


def test_the_hooks_change_no_gradient_and_go_away() -> None:
    config = ModelConfig.model_validate({**TINY, "placement": "reversible"})
    batch = random_batches(1, 4, 6, 20, seed=1)[0]
    plain, heard = (build(Arm("x", config), (20, 20), 1) for _ in range(2))
    mean_loss(plain, batch).backward()
    keep_activations(heard)
    listeners = [Listener(norm) for _, norm in named_norms(heard)]
    mean_loss(heard, batch).backward()
    for ours, theirs in zip(heard.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert all(listener.stop() is not None for listener in listeners)
    mean_loss(heard, batch).backward()
    assert all(len(listener.passages) == 1 for listener in listeners)


def test_every_placement_can_be_measured() -> None:
    base = ModelConfig.model_validate(TINY)
    batches = random_batches(1, 3, 6, 20, seed=1)
    finding = NormBackward(tokens=4, iterations=3).run(
        arms(base, list(PLACEMENTS)), batches, (20, 20), [1], lambda text: None
    )
    counted = {row[0]: row[1] for row in finding.summary}
    for arm in arms(base, list(PLACEMENTS)):
        model = build(arm, (20, 20), 1)
        silent = finding.facts["without_gradient"][arm.label]
        assert counted[arm.label] + len(silent) == len(list(named_norms(model))), arm.label
        assert not silent or arm.label == "hyper"  # whose connections start with zeros behind a norm
    assert counted["post"] == 5
    assert counted["pre"] == 7


def test_batches_count_by_their_tokens() -> None:
    """Of gradients, that is; which tokens the Jacobian's number is of is another draw."""
    pair = random_batches(2, 4, 6, 20, seed=1)
    joined = [tuple(torch.cat(sides) for sides in zip(*pair, strict=True))]
    base = ModelConfig.model_validate(TINY)
    found, expected, first = (
        NormBackward(tokens=2).run(arms(base, ["pre"]), batches, (20, 20), [1], lambda text: None)
        for batches in (pair, joined, pair[:1])
    )
    for row, same, other in zip(found.rows, expected.rows, first.rows, strict=True):
        assert row[2:7] == pytest.approx(same[2:7], rel=1e-3, abs=1e-5)
        assert row[2:7] != pytest.approx(other[2:7], rel=1e-3, abs=1e-5)


def test_a_learned_eps_is_read_without_a_warning() -> None:
    batches = random_batches(1, 3, 6, 20, seed=1)
    base = ModelConfig.model_validate({**TINY, "norm_options": {"learn_eps": True}, "norm": "frn"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NormBackward(tokens=2).run(arms(base, ["pre"]), batches, (20, 20), [1], lambda text: None)


def test_the_figure_counts_the_norms_of_each_stack_by_itself() -> None:
    """Post-LN's encoder has two norms and Pre-LN's three: the decoder's begin at 1 for both."""
    pytest.importorskip("matplotlib")
    chosen = arms(ModelConfig.model_validate(TINY), ["post", "pre"])
    batches = random_batches(1, 3, 6, 20, seed=1)
    finding = NormBackward(tokens=2, iterations=2).run(chosen, batches, (20, 20), [1], lambda text: None)
    figure = new_figure()
    assert finding.draw is not None
    finding.draw(figure)
    places = {
        axes.get_title(loc="left"): [
            list(line.get_xdata()) for line in axes.lines if line.get_label()[0] != "_"
        ]
        for axes in figure.axes
    }
    assert places["encoder: share of its variance taken away"] == [[1, 2], [1, 2, 3]]
    assert places["decoder: share of its variance taken away"] == [[1, 2, 3], [1, 2, 3, 4]]


def test_norms_over_sentences_have_no_numbers_of_a_token() -> None:
    batches = random_batches(1, 3, 6, 20, seed=1)
    base = ModelConfig.model_validate(TINY)
    finding = NormBackward().run(arms(base, ["pre"], ["instance"]), batches, (20, 20), [1], lambda t: None)
    assert len(finding.rows) == 7
    assert all(row[-2:] == [None, None] for row in finding.rows)


def test_layer_norm_in_a_model_recentres_and_detached_statistics_do_not() -> None:
    batches = random_batches(1, 6, 8, 20, seed=1)
    base = ModelConfig.model_validate({**TINY, "d_model": 32})
    chosen = arms(base, ["pre"], ["layer_simple", "detach"])
    finding = NormBackward().run(chosen, batches, (20, 20), [1], lambda text: None)
    for row in finding.rows:
        mean_out, taken, jacobian = row[3], row[6], row[7]
        if row[0] == chosen[0].label:
            assert mean_out < 1e-6
            assert taken > 0
            assert 0.95 < jacobian < 1.3
        else:
            assert mean_out > 1e-3
            assert abs(taken) < 1e-5
    assert f"{chosen[0].label}: 7 of 7 norms re-centre" in finding.words[-2]
    assert "7 take from its variance" in finding.words[-2]
    assert " 0 take from its variance" in finding.words[-1]


def test_eps_in_the_root_is_no_effect_of_the_norm() -> None:
    """Detached statistics give g / sqrt(var + eps): nothing is taken, however large eps is."""
    eps = 0.5
    passed = passage(NORMS["detach"](D, eps))
    assert gradients(passed, eps).taken == pytest.approx(0, abs=1e-9)
    assert gradients(passed).taken > 1e-3


def test_a_gradient_that_does_not_leave_has_no_mean() -> None:
    x = torch.randn(4, D)
    assert gradients((x, x + 1, torch.zeros(4, D))).mean_out == 0
