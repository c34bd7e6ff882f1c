"""Measure a model while it trains: loss, perplexity, BLEU, sample translations; and test sets at the end.

Nothing here leaves a trace: training mode, gradient mode and random generators are as before, so that a run
is bit-identical with validation on or off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.errors import DataError
from ..data.corpus import too_long_to_score
from ..decoding.config import DecodeConfig
from ..decoding.translation import Translation
from ..decoding.translator import Subwords, Translator
from ..model.transformer import Transformer
from ..modules.precision import Precision, autocast, resolve_precision
from ..training.loss import sequence_loss
from .metrics import corpus_metrics

B = TypeVar("B", bound="ScoredBatch")
TextPair = tuple[str, str]


class ScoredBatch(Protocol):
    """What a loss needs of a batch: ids (B, S), (B, T), (B, T) and the number of target tokens."""

    @property
    def source(self) -> Tensor: ...
    @property
    def target_in(self) -> Tensor: ...
    @property
    def target_out(self) -> Tensor: ...
    @property
    def target_tokens(self) -> int: ...
    def to(self: B, device: torch.device) -> B: ...


class LineTranslator(Protocol):
    """What scoring needs of a translator: a translation per line, in order."""

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]: ...


@dataclass(frozen=True)
class Sample:
    """A validation sentence and what the model makes of it."""

    source: str
    reference: str
    hypothesis: str


@contextmanager
def untouched(model: Transformer, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards every module's mode and torch's generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training


def loss_of(
    model: Transformer,
    batches: Iterable[ScoredBatch],
    label_smoothing: float = 0.0,
    precision: Precision = "float32",
    device: torch.device | None = None,
) -> dict[str, float]:
    """`loss`, `nll` (both per target token, in nats) and `perplexity` = exp(nll), which knows no smoothing.

    Sums over all batches are divided once, so the way the corpus is cut into batches does not matter.
    Raises DataError when there is no target token.
    """
    device = model.output_weight.device if device is None else device
    dtype = resolve_precision(precision, device)
    sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    tokens = 0
    with untouched(model, device):
        for batch in batches:
            batch = batch.to(device)
            with autocast(device, dtype):
                hidden = model.hidden(batch.source, batch.target_in)
                losses = sequence_loss(hidden, model.output_weight, batch.target_out, label_smoothing)
            sums += torch.stack(losses)
            tokens += batch.target_tokens
    if not tokens:
        raise DataError("the validation set holds no target tokens; check data.valid and the length filter")
    loss, nll = (sums / tokens).tolist()
    return {"loss": loss, "nll": nll, "perplexity": math.exp(nll) if nll < 700 else math.inf}


class Validator:
    """model -> {loss, nll, perplexity}, and {bleu, chrf} of translated text; the callable a Trainer is given.

    `batches` is gone through anew each time, so it is a list or another iterable that can be. `pairs` are the
    validation sentences as text, source and untouched reference; with `bleu` on, `sentences` of them (all, if
    None), evenly spaced, are translated. `samples` of these are kept for the log: `sample_text()`.

    A model whose loss is not finite is not asked to translate.
    """

    def __init__(
        self,
        batches: Iterable[ScoredBatch],
        pairs: Sequence[TextPair],
        source_tokenizer: Subwords,
        target_tokenizer: Subwords,
        decode: DecodeConfig | None = None,
        *,
        label_smoothing: float = 0.0,
        precision: Precision = "float32",
        bleu: bool = True,
        sentences: int | None = None,
        samples: int = 3,
    ) -> None:
        self.batches = batches
        self.pairs = _evenly_spaced(pairs, len(pairs) if sentences is None else sentences)
        self.tokenizers = source_tokenizer, target_tokenizer
        self.decode = DecodeConfig() if decode is None else decode
        self.label_smoothing, self.precision = label_smoothing, precision
        self.bleu = bleu
        self.samples: list[Sample] = []
        self._samples = samples
        if bleu and not self.pairs:
            raise DataError("BLEU of the validation set needs its sentences, and there are none")

    def __call__(self, model: Transformer) -> dict[str, float]:
        measured = loss_of(model, self.batches, self.label_smoothing, self.precision)
        if not math.isfinite(measured["loss"]):
            return measured
        kept = _evenly_spaced(self.pairs, self._samples)
        asked = self.pairs if self.bleu else kept
        device = model.output_weight.device
        with untouched(model, device):
            translator = Translator([model], *self.tokenizers, self.decode, device)
            hypotheses = [translation.text for translation in translator.translate(s for s, _ in asked)]
        by_pair = dict(zip(asked, hypotheses, strict=True))
        self.samples = [Sample(*pair, by_pair[pair]) for pair in kept]
        if self.bleu:
            scores = corpus_metrics(hypotheses, [reference for _, reference in asked], ter=False)
            measured |= {"bleu": scores.bleu, "chrf": scores.chrf}
        return measured

    def sample_text(self) -> str:
        """The last validation's samples as Markdown, which TensorBoard renders."""
        return "\n\n".join(
            f"**source** {s.source}  \n**reference** {s.reference}  \n**translation** {s.hypothesis}"
            for s in self.samples
        )


def score_test_sets(
    translator: LineTranslator,
    tests: Mapping[str, Sequence[TextPair]],
    keep: Callable[[str, Sequence[str], Sequence[str]], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """{name: {bleu, chrf, ter, sentences, signature, warnings?}} of each set's (source, reference) pairs.

    `keep(name, translations, references)` is called for each set. Raises DataError naming the set that is
    empty.
    """
    results = {}
    for name, pairs in tests.items():
        if not pairs:
            raise DataError(f"test set {name!r} holds no sentences")
        hypotheses = [t.text for t in translator.translate(source for source, _ in pairs)]
        references = [reference for _, reference in pairs]
        if keep is not None:
            keep(name, hypotheses, references)
        too_long = too_long_to_score(references)
        metrics = corpus_metrics(hypotheses, references, ter=not too_long)
        results[name] = metrics.to_dict()
        warnings = list(metrics.warnings)
        if too_long:
            warnings.append(f"without TER: {too_long}")
        if warnings:
            results[name]["warnings"] = warnings
    return results


def _evenly_spaced(pairs: Sequence[TextPair], count: int) -> list[TextPair]:
    """`count` of the pairs (all, if fewer), spread over the whole set."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]
