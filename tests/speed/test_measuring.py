"""What of training and of translation counts: by a clock that only steps and translations move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transformer.core.errors import DataError
from transformer.data.batching import Batch, collate
from transformer.speed import training, translation
from transformer.speed.training import measure_training
from transformer.speed.translation import measure_translation
from transformer.training.passes import Observer


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(training, "time", hands)
    monkeypatch.setattr(translation, "time", hands)
    return hands


def batch(number: int) -> Batch:
    """Two pairs; targets of 3 and of 3 + `number` tokens, EOS counted: there is padding."""
    return collate([([5] * 6, [6] * 2), ([5] * 2, [6] * (2 + number))], [0, 1])


class Toy:
    """A trainer that does nothing: data takes 1 s, forward 2, loss 3, backward 5, the optimizer 7."""

    def __init__(self, clock: Hands, accumulate: int, batches: int = 5) -> None:
        self.clock, self.batches, self.steps = clock, batches, []
        self.device, self.model = torch.device("cpu"), SimpleNamespace(train=lambda: None)
        self.config, self.stream, self.observer = SimpleNamespace(accumulate=accumulate), self, Observer()

    def batches_in(self, epoch: int) -> int:
        return self.batches

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for place in range(start, self.batches):
            self.clock.now += 1
            yield batch(place + 1)

    def step(self, micro_batches: Sequence[Any]) -> None:
        self.steps.append([len(batch.target_out[0]) - 3 for batch in micro_batches])
        for one in micro_batches:
            with self.observer.forward(one):
                self.clock.now += 2
                self.observer.decoded()
                self.clock.now += 3
            self.clock.now += 5
        self.observer.gradients()
        self.clock.now += 7
        self.observer.updated()


def test_target_tokens_are_counted_without_padding_and_nothing_counts_but_the_rounds(clock: Hands) -> None:
    trainer = Toy(clock, accumulate=1)
    found = measure_training(trainer, updates=2, rounds=3, warm=1)  # type: ignore[arg-type]
    assert trainer.steps[:8] == [[1], [2], *[[3], [4]] * 3], "first, warm, and the same two in each round"
    tokens = (3 + 6) + (3 + 7)
    assert found.rounds == [tokens / (2 * 17)] * 3
    assert (found.updates, found.tokens_per_update) == (2, tokens / 2)
    assert found.padding == pytest.approx((1 - 2 * (7 + 3) / (4 * 7), 1 - tokens / (2 * 6 + 2 * 7)))


def test_an_update_takes_the_micro_batches_that_it_takes_in_a_run(clock: Hands) -> None:
    trainer = Toy(clock, accumulate=2)
    found = measure_training(trainer, updates=2, rounds=1, warm=1)  # type: ignore[arg-type]
    assert trainer.steps[:4] == [[1, 2], [3, 4], [5], [1, 2]], "an epoch's last takes what is left"
    tokens = (3 + 8) + (3 + 4) + (3 + 5)
    assert found.rounds == [tokens / (17 + 27)]
    assert (found.updates, len(found.batches), found.tokens_per_update) == (2, 3, tokens / 2)
    assert trainer.steps[4:] == [[1, 2], [3, 4]], "the parts are of whole updates, too"
    parts = {"data": 4, "forward": 8, "loss": 12, "backward": 20, "optimizer": 14}
    assert found.parts == pytest.approx({part: seconds / 58 for part, seconds in parts.items()})


class Lazy:
    """A translator that takes 100 s for the first text, and 2 s for each after it."""

    def __init__(self, clock: Hands) -> None:
        self.clock, self.texts, self.config = clock, 0, SimpleNamespace(beam=5)

    def translate(self, lines: Sequence[str]) -> Iterator[Any]:
        self.clock.now += 2 if self.texts else 100
        self.texts += 1
        for line in lines:
            words = line.split()
            found = [SimpleNamespace(tokens=[*words, "more"])] if words else []
            yield SimpleNamespace(source_tokens=len(words), hypotheses=found)


def test_the_round_that_warms_up_does_not_count_and_blank_lines_are_no_sentences(clock: Hands) -> None:
    translators = [Lazy(clock), Lazy(clock)]
    lines = ["one two three", " ", "one"]
    for found in measure_translation(translators, lines, rounds=3):  # type: ignore[arg-type]
        assert found.rounds == [1.0] * 3, "two sentences in two seconds"
        assert found.lines == [(4, 5), (2, 3)]
    assert [translator.texts for translator in translators] == [4, 4]


def test_nothing_but_blank_lines_is_an_error(clock: Hands) -> None:
    with pytest.raises(DataError, match="blank"):
        measure_translation([Lazy(clock)], ["", " "], rounds=1)  # type: ignore[list-item]
