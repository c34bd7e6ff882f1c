"""Every legal value of the `decode` section is one that decoding can compute with."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from transformer.decoding import LENGTH_PENALTIES, DecodeConfig, Sampling
from transformer.decoding.penalties import penalty_table

POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
COUNTS = st.one_of(st.integers(0, 50), st.integers(0, 2**63 - 1))
LOG_PROBS = torch.tensor(
    [[-0.5, -1.5, -2.0, -1.5], [-math.inf, -30.0, -30.0, -math.inf], [0.0, -math.inf, -800.0, -1e-9]]
)


def legal(**options: Any) -> DecodeConfig | None:
    try:
        return DecodeConfig(**options)
    except ValidationError:
        return None


@settings(max_examples=50, deadline=None)
@given(
    penalty=st.sampled_from(list(LENGTH_PENALTIES)),
    alpha=st.floats(),
    max_length=st.one_of(st.integers(1, 300), st.sampled_from([100_000, 2**63 - 1])),
    ratio=st.floats(),
    extra=COUNTS,
    source_length=st.integers(0, 10**6),
)
@example("average", 10.0, 100_000, 1e308, 0, 512)
@example("wu", 1000.0, 512, 2.0, 20, 512)
def test_every_legal_length_has_a_finite_penalty(
    penalty: str, alpha: float, max_length: int, ratio: float, extra: int, source_length: int
) -> None:
    config = legal(
        length_penalty=penalty,
        alpha=alpha,
        max_length=max_length,
        max_length_ratio=ratio,
        max_length_extra=extra,
    )
    if config is None:
        return
    longest = config.longest(source_length)
    assert 1 <= longest <= max_length
    if not math.isinf(ratio * source_length):
        assert longest == max(1, min(max_length, int(ratio * source_length) + extra))
    table = penalty_table(penalty, config.alpha, longest + 1)[1:]
    assert table == sorted(table)
    assert 0 < table[0] <= table[-1] < math.inf


@settings(max_examples=25, deadline=None)
@given(temperature=POSITIVE, top_k=COUNTS, top_p=st.floats(0, 1, exclude_min=True))
@example(1e-310, 0, 1.0)
@example(5e-324, 2, 5e-324)
@example(sys.float_info.max, 0, 1.0)
def test_every_legal_temperature_gives_a_distribution(temperature: float, top_k: int, top_p: float) -> None:
    config = DecodeConfig(search="sampling", temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = Sampling(config.temperature, config.top_k, config.top_p).distribution(LOG_PROBS)
    assert drawn.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert bool((drawn >= 0).all())
    assert not drawn[LOG_PROBS.isneginf()].any()
    assert bool((drawn[:, [0, 1, 0]].diagonal() > 0).all()), "the likeliest token can be drawn"


def test_a_temperature_near_zero_is_the_likeliest_token_or_tokens() -> None:
    drawn = Sampling(temperature=1e-310).distribution(LOG_PROBS)
    assert drawn.tolist() == [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("option", [{"alpha": 10.1}, {"max_length": 100_001}])
def test_what_could_overflow_a_penalty_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="less than or equal"):
        DecodeConfig(**option)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"n_best": 6}, "n_best"),
        ({"search": "greedy", "n_best": 2}, "n_best"),
        ({"min_length": 9, "max_length": 8}, "min_length"),
        ({"top_k": 5}, "top_k"),
        ({"search": "bean"}, "beam"),
        ({"alpha": -1}, "alpha"),
        ({"beam": 0}, "beam"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": 0}, "temperature"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        DecodeConfig(**options)


def test_every_option_is_described() -> None:
    assert all(field.description for field in DecodeConfig.model_fields.values())
