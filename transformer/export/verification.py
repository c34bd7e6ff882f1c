"""Does an export do what the model does? Both are asked about the same lines.

Three questions. Teacher-forced log p of every subword: the parallel pass. Greedy search: the pass step by
step, with its caches; ties apart, each chosen subword has to be the one our model finds likeliest. Beam
search and BLEU: what a user gets. The first two have a tolerance, the third is reported, since the beam
searches themselves differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from ..core.errors import DataError
from ..core.special import BOS, EOS
from ..decoding.config import DecodeConfig
from ..decoding.engine import Engine, Models, Request
from ..decoding.hypothesis import Hypothesis
from ..decoding.limits import Constraints, Limits
from ..decoding.translator import LineTranslator, Subwords
from ..evaluation.metrics import corpus_metrics
from ..model.transformer import Transformer

T = TypeVar("T")

# Of one subword's log p. Float32 rounds below 1e-4; a factor that was forgotten shows in the first digit.
TOLERANCE = 1e-3
ROWS = 16


@dataclass(frozen=True)
class Agreement:
    """What two engines say about the same lines.

    `log_p` is the largest difference of a subword's log p; `greedy_same` counts lines that greedy search
    translates alike, and `greedy_loss` is the largest log p that one of the engine's choices gives away.
    """

    lines: int
    subwords: int
    log_p: float
    greedy_same: int
    greedy_loss: float

    @property
    def holds(self) -> bool:
        """Written so that what is not a number does not hold. Two log p are compared in a choice."""
        return self.log_p <= TOLERANCE and self.greedy_loss <= 2 * TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.lines:,} lines, {self.subwords:,} subwords: log p differs by {self.log_p:.1e} at most;"
            f" greedy search: {self.greedy_same:,} lines alike, choices at most {self.greedy_loss:.1e} worse"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outputs:
    """Translations of the same lines by the run and by exports of it, by name.

    `same` counts the lines that an export translates as the run does; `bleu`, the run's first, needs a
    reference.
    """

    lines: int
    search: str
    same: dict[str, int]
    bleu: dict[str, float] | None
    signature: str | None

    def __str__(self) -> str:
        alike = ", ".join(f"{name} {count:,}" for name, count in self.same.items())
        text = f"{self.search}: of {self.lines:,} lines as the run has them: {alike}"
        if self.bleu is None:
            return text
        scores = ", ".join(f"{name} {score:.2f}" for name, score in self.bleu.items())
        return f"{text}\nBLEU: {scores}   {self.signature}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Lines:
    """Lines as both engines get them, and the targets to score: the references, or what our search finds."""

    def __init__(
        self,
        model: Transformer,
        tokenizers: tuple[Subwords, Subwords],
        sources: Sequence[str],
        references: Sequence[str] | None,
        decode: DecodeConfig,
        positions: int,
    ) -> None:
        self.model, self.tokenizers = model, tokenizers
        longest = min(decode.max_source_length, positions - 1)
        # Sources and references that are too long are cut for these comparisons.
        config = {"max_source_length": longest, "max_length": min(decode.max_length, positions - 1)}
        self.decode = decode.model_copy(update=config)
        self.ours = Models([model], "float32")
        encoded = [ids[:longest] for ids in tokenizers[0].encode_batch(list(sources))]
        kept = [i for i, ids in enumerate(encoded) if ids]
        if not kept:
            raise DataError("no line has a subword to verify with; give other lines: --lines FILE")
        self.requests = [Request(i, encoded[i], self._limits(encoded[i])) for i in kept]
        self.sources, self.references = list(sources), None if references is None else list(references)
        self.greedy = self._greedy(self.ours)
        if references is None:
            self.targets = [h.tokens for h in self.greedy]
        else:
            written = tokenizers[1].encode_batch([references[i] for i in kept])
            self.targets = [tuple(ids[: self.decode.max_length]) for ids in written]

    def agreement(self, engine: Engine) -> Agreement:
        pairs = [
            (request.source, target) for request, target in zip(self.requests, self.targets, strict=True)
        ]
        ours, theirs = (self._log_probs(each, pairs) for each in (self.ours, engine))
        found = self._greedy(engine)
        losses = [self._loss(r, h) for r, h in zip(self.requests, found, strict=True)]
        same = sum(a.tokens == b.tokens for a, b in zip(self.greedy, found, strict=True))
        difference = (ours - theirs).abs().max().item() if len(ours) == len(theirs) else torch.nan
        return Agreement(len(pairs), len(ours), difference, same, max(losses))

    def translations(self, engine: Engine) -> list[str]:
        """All lines as `decode` says."""
        translator = LineTranslator(engine, *self.tokenizers, self.decode)
        return [translation.text for translation in translator.translate(self.sources)]

    def outputs(self, translations: Mapping[str, Sequence[str]]) -> Outputs:
        """The run's translations beside those of its exports."""
        run = self.translations(self.ours)
        same = {name: sum(map(str.__eq__, run, texts)) for name, texts in translations.items()}
        beam = f"beam search, beam {self.decode.beam}" if self.decode.search == "beam" else "greedy search"
        bleu, signature = None, None
        if self.references is not None:
            by_all = {"run": run, **translations}
            metrics = {name: corpus_metrics(by_all[name], self.references, ter=False) for name in by_all}
            bleu = {name: each.bleu for name, each in metrics.items()}
            signature = metrics["run"].signatures["bleu"]
        return Outputs(len(self.sources), beam, same, bleu, signature)

    def _limits(self, source: list[int]) -> Limits:
        return Limits(min(self.decode.longest(len(source)), self.decode.max_length))

    def _greedy(self, engine: Engine) -> list[Hypothesis]:
        config = DecodeConfig(search="greedy")
        found: list[Hypothesis] = []
        with engine.working():
            for batch in _batches(self.requests):
                answers = engine.search(batch, config)
                found += [
                    answer[0] if answer else Hypothesis((), -torch.inf, -torch.inf) for answer in answers
                ]
        return found

    def _log_probs(
        self, engine: Engine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> torch.Tensor:
        with engine.working():
            rows = [row for batch in _batches(pairs) for row in engine.token_log_probs(batch)]
        return torch.tensor([value for row in rows for value in row], dtype=torch.float64)

    def _loss(self, request: Request, found: Hypothesis) -> float:
        """How much likelier, by our model, the likeliest subword was than the chosen one, at worst."""
        device = self.ours.device
        source = torch.tensor([[*request.source, EOS]], device=device)
        inputs = torch.tensor([[BOS, *found.tokens]], device=device)
        with self.ours.working():
            log_probs = self.model(source, inputs).float().log_softmax(-1)[0]
            allowed = Constraints([request.limits], log_probs.shape[1], device)
            for column in range(len(log_probs)):
                allowed.apply(log_probs[column : column + 1], column)
            chosen = log_probs.gather(1, torch.tensor([[*found.tokens, EOS]], device=device).T).squeeze(1)
            return float((log_probs.amax(1) - chosen).max())


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ROWS] for start in range(0, len(items), ROWS))
