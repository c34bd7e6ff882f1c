"""Do both ways of a lever find translations as good, and tell their probabilities right?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from benchmarks.lever_setting import Setting
from benchmarks.lever_translation import Lever
from transformer.core.special import BOS, EOS
from transformer.model.transformer import Transformer

# Of log p, relative: a search's own against that of float32 without a cache, and one search's best against
# the other's.
NEAR = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int8: 5e-2}
CHECKED = 32  # lines


@torch.no_grad()
def log_probability(model: Transformer, source: list[int], target: list[int]) -> float:
    """Log p(target, EOS | source): float32, no cache, no batch."""
    logits = model(torch.tensor([[*source, EOS]]), torch.tensor([[BOS, *target]]))[0]
    wanted = torch.tensor([*target, EOS])
    return logits.log_softmax(-1).gather(1, wanted[:, None]).sum().item()


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    training = model.training
    model.eval()
    yield
    model.train(training)


def check(lever: Lever, setting: Setting) -> None:
    """AssertionError unless both ways find translations as good, and tell their log p, to rounding."""
    means, bounds = [], []
    with lever.both():
        for task, switch in zip(lever.tasks(setting), (nullcontext, lever.off), strict=True):
            with switch():
                found = task.run(CHECKED)
            bound = NEAR[task.engine.dtype]  # type: ignore[attr-defined]
            told, exact = [], []
            for line, (source, _), length in zip(found, setting.pairs, task.lengths, strict=False):
                (best,) = line.hypotheses
                tokens = [int(piece) for piece in best.tokens]
                assert len(tokens) == length
                told.append(best.log_probability)
                with evaluating(setting.model):
                    exact.append(log_probability(setting.model, source, tokens))
            wrong = max(abs(one / other - 1) for one, other in zip(told, exact, strict=True))
            assert wrong <= bound, f"{lever.text}: log p is off by {wrong:.1e}, more than {bound:g}"
            means.append(sum(exact) / len(exact))
            bounds.append(bound)
    apart, bound = abs(means[1] / means[0] - 1), max(bounds)
    assert apart <= bound, f"{lever.text}: log p of the best differs by {apart:.1e}, more than {bound:g}"
