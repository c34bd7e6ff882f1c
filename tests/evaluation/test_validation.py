"""Validation: right numbers, and nothing left behind in the training run."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.core.errors import DataError
from transformer.core.special import BOS, EOS, PAD
from transformer.decoding.config import DecodeConfig
from transformer.evaluation.metrics import corpus_metrics
from transformer.evaluation.validation import Validator, loss_of, score_test_sets
from transformer.model.transformer import Transformer

VOCABULARY = 12
PAIRS = [("a b", "c d"), ("b c d", "a"), ("d", "b b c d e"), ("e f", "f e")]


@dataclass(frozen=True)
class Batch:
    source: Tensor
    target_in: Tensor
    target_out: Tensor
    target_tokens: int

    def to(self, device: torch.device) -> Batch:
        return replace(self, source=self.source.to(device))


class Letters:
    """A tokenizer of single letters: a = 4, b = 5, ..."""

    size = VOCABULARY

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[ord(word) - ord("a") + 4 for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [chr(i - 4 + ord("a")) for i in ids if i >= 4]


@dataclass(frozen=True)
class Said:
    text: str


class Parrot:
    def translate(self, lines: Sequence[str]) -> Iterator[Said]:
        yield from map(Said, lines)


def batch(pairs: Sequence[tuple[str, str]]) -> Batch:
    sides = [Letters().encode_batch([pair[side] for pair in pairs]) for side in (0, 1)]

    def padded(rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    source = padded([[*row, EOS] for row in sides[0]])
    target_out = padded([[*row, EOS] for row in sides[1]])
    return Batch(
        source, padded([[BOS, *row] for row in sides[1]]), target_out, int((target_out != PAD).sum())
    )


@pytest.fixture
def model() -> Transformer:
    return Transformer(
        VOCABULARY, VOCABULARY, d_model=16, heads=2, d_ff=32, encoder_layers=1, decoder_layers=1, dropout=0.5
    )


def validator(**options: object) -> Validator:
    arguments = {"decode": DecodeConfig(beam=1, max_length=8), **options}
    return Validator([batch(PAIRS[:2]), batch(PAIRS[2:])], PAIRS, Letters(), Letters(), **arguments)  # type: ignore[arg-type]


# Loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs_cross_entropy_over_all_target_tokens(model: Transformer, smoothing: float) -> None:
    model.double().eval()
    whole = batch(PAIRS)
    logits, targets = model(whole.source, whole.target_in).flatten(0, 1), whole.target_out.flatten()
    loss = F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=smoothing)
    nll = F.cross_entropy(logits, targets, ignore_index=PAD)
    measured = loss_of(model, [batch(PAIRS[:1]), batch(PAIRS[1:])], smoothing)
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert measured["nll"] == pytest.approx(nll.item(), rel=1e-9)
    assert measured["perplexity"] == pytest.approx(math.exp(nll.item()), rel=1e-9)


def test_loss_is_measured_without_dropout(model: Transformer) -> None:
    model.train()
    assert loss_of(model, [batch(PAIRS)]) == loss_of(model, [batch(PAIRS)])


def test_a_validation_set_without_tokens_is_refused(model: Transformer) -> None:
    with pytest.raises(DataError, match=r"data\.valid"):
        loss_of(model, [])


# Validator


def test_validator_scores_what_the_translator_says(model: Transformer) -> None:
    validate = validator(samples=len(PAIRS))
    measured = validate(model)
    scores = corpus_metrics([s.hypothesis for s in validate.samples], [reference for _, reference in PAIRS])
    assert set(measured) == {"loss", "nll", "perplexity", "bleu", "chrf"}
    assert (measured["bleu"], measured["chrf"]) == (scores.bleu, scores.chrf)


def test_without_bleu_only_the_samples_are_translated(model: Transformer) -> None:
    validate = validator(bleu=False, samples=2)
    assert set(validate(model)) == {"loss", "nll", "perplexity"}
    assert [(s.source, s.reference) for s in validate.samples] == [PAIRS[0], PAIRS[2]]
    assert validate.sample_text().count("**translation**") == 2


def test_a_subset_is_spread_over_the_set() -> None:
    assert validator(sentences=2).pairs == [PAIRS[0], PAIRS[2]]
    assert validator(sentences=99).pairs == PAIRS


def test_validation_leaves_modes_gradients_and_generators_alone(model: Transformer) -> None:
    model.train()
    model.encoder.eval()  # a part someone froze
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    validator()(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index,union-attr]


def test_modes_come_back_when_validation_fails(model: Transformer) -> None:
    def failing() -> Iterator[Batch]:
        yield batch(PAIRS)
        raise OSError("the disk is gone")

    model.train()
    with pytest.raises(OSError, match="disk"):
        loss_of(model, failing())
    assert model.training
    assert torch.is_grad_enabled()


def test_training_is_bit_identical_with_validation_on_or_off(model: Transformer) -> None:
    def trained(validated: bool) -> list[Tensor]:
        torch.manual_seed(3)
        learner = Transformer(VOCABULARY, VOCABULARY, model.config)
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
        data = batch(PAIRS)
        for _ in range(3):
            learner.train()
            logits = learner(data.source, data.target_in)
            F.cross_entropy(logits.flatten(0, 1), data.target_out.flatten(), ignore_index=PAD).backward()
            optimizer.step()
            optimizer.zero_grad()
            if validated:
                validator(decode=DecodeConfig(search="sampling", max_length=8))(learner)
        return list(learner.parameters())

    for one, other in zip(trained(True), trained(False), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_is_not_finite_is_measured_but_not_asked_to_translate(model: Transformer) -> None:
    with torch.no_grad():
        model.output_weight.fill_(math.nan)
    assert set(validator()(model)) == {"loss", "nll", "perplexity"}


def test_bleu_without_sentences_is_refused() -> None:
    with pytest.raises(DataError, match="sentences"):
        Validator([], [], Letters(), Letters())


# Test sets


def test_test_sets_are_scored_by_name() -> None:
    tests = {"same": [(line, line) for line, _ in PAIRS], "other": PAIRS}
    results = score_test_sets(Parrot(), tests)  # type: ignore[arg-type]
    assert list(results) == ["same", "other"]
    assert set(results["same"]) == {"bleu", "chrf", "ter", "sentences", "signature"}
    assert results["same"]["ter"] == 0
    assert results["other"]["sentences"] == len(PAIRS)
    assert results["other"]["chrf"] < results["same"]["chrf"]


def test_warnings_about_a_test_set_stand_in_its_result() -> None:
    (result,) = score_test_sets(Parrot(), {"tok": [("a &apos; b .", "a &apos; b .")]}).values()  # type: ignore[arg-type]
    assert len(result["warnings"]) == 2


def test_an_empty_test_set_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'test2016'"):
        score_test_sets(Parrot(), {"test2016": []})  # type: ignore[arg-type]
