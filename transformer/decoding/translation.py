"""What a translator returns: plain data that becomes one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "blank", "truncated", "failed"]


@dataclass(frozen=True)
class TextHypothesis:
    """A translation as text and as subwords, its log p (EOS included), and log p under the length penalty."""

    text: str
    score: float
    log_probability: float
    tokens: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "score": self.score,
            "log_probability": self.log_probability,
            "tokens": list(self.tokens),
        }


@dataclass(frozen=True)
class Translation:
    """One line of input and its translations, best first.

    `status`: `ok`; `blank`, where there is nothing to translate and the text is empty; `truncated`, where
    only the first `source_tokens` subwords were translated; `failed`, where the model gives no text any
    probability. `number` counts lines from 0.
    """

    number: int
    source: str
    hypotheses: tuple[TextHypothesis, ...]
    status: Status
    source_tokens: int

    @property
    def text(self) -> str:
        """The best translation, on one line; empty where there is none."""
        return self.hypotheses[0].text if self.hypotheses else ""

    @property
    def warning(self) -> str | None:
        """What to tell the user about this line, which stderr counts from 1."""
        if self.status == "truncated":
            return (
                f"line {self.number + 1}: too long; only its first {self.source_tokens} subwords"
                " are translated (decode.max_source_length)"
            )
        if self.status == "failed":
            return f"line {self.number + 1}: the model finds no translation within the limits; left empty"
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "source": self.source,
            "text": self.text,
            "status": self.status,
            "source_tokens": self.source_tokens,
            "hypotheses": [hypothesis.to_dict() for hypothesis in self.hypotheses],
        }


@dataclass(frozen=True)
class Score:
    """How probable the model finds a given translation.

    `token_log_probabilities` has a number for each of `tokens`, then one for EOS; `log_probability` is their
    sum, `score` the sum under the length penalty. `status`: `ok`; `blank`, where the source is;
    `truncated`, where the model saw only its first `source_tokens` subwords. `number` counts from 0.
    """

    number: int
    source: str
    target: str
    score: float
    log_probability: float
    tokens: tuple[str, ...]
    token_log_probabilities: tuple[float, ...]
    status: Status
    source_tokens: int

    @property
    def warning(self) -> str | None:
        """What to tell the user about this line, which stderr counts from 1."""
        if self.status == "truncated":
            return (
                f"line {self.number + 1}: the source is too long; the target is scored against its first"
                f" {self.source_tokens} subwords (decode.max_source_length)"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "source": self.source,
            "target": self.target,
            "status": self.status,
            "source_tokens": self.source_tokens,
            "score": self.score,
            "log_probability": self.log_probability,
            "tokens": list(self.tokens),
            "token_log_probabilities": list(self.token_log_probabilities),
        }
