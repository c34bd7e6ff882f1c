"""How to translate: the `decode` section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor

from ..core.configuration import (
    Count,
    CountOrZero,
    Float,
    Int,
    NonNegative,
    Positive,
    Section,
    choice,
)
from ..core.errors import Problem
from ..core.registry import Registry
from ..core.seeding import derive_seed
from ..modules.precision import InferencePrecision
from .beam import beam_search
from .hypothesis import Hypothesis
from .limits import Limits
from .next_token import NextToken
from .penalties import LENGTH_PENALTIES
from .walks import Sampling, greedy_search, sample

# (model, source (B, S), limits, each sentence's number, options) -> each sentence's hypotheses, best first
Search: TypeAlias = (
    "Callable[[NextToken, Tensor, Sequence[Limits], Sequence[int], DecodeConfig], list[list[Hypothesis]]]"
)
SEARCHES: Registry[Search] = Registry("search")
MOST_HYPOTHESES = 1_000  # of a line: more fill the memory and find nothing that these do not


class DecodeConfig(Section):
    """Options of translation. The only home of these defaults."""

    search: choice(SEARCHES) = Field(default="beam", description="how a translation is found")  # type: ignore[valid-type]
    beam: Annotated[Count, Field(le=MOST_HYPOTHESES)] = Field(
        default=5, description="hypotheses kept at each step of beam search; 1 is greedy search"
    )
    n_best: Annotated[Count, Field(le=MOST_HYPOTHESES)] = Field(
        default=1, description="translations returned for a line; in sampling, draws for a line"
    )
    length_penalty: choice(LENGTH_PENALTIES) = Field(  # type: ignore[valid-type]
        default="average", description="how length enters the score that ranks translations"
    )
    # The bounds keep every penalty a finite number: 100,000^10 = 1e50.
    alpha: Annotated[Float, Field(ge=0, le=10)] = Field(
        default=1.0, description="strength of the length penalty; 0 switches it off"
    )
    min_length: CountOrZero = Field(default=0, description="fewest subwords of a translation")
    max_length: Annotated[Count, Field(le=100_000)] = Field(
        default=512, description="most subwords of a translation, whatever the source's length"
    )
    max_length_ratio: NonNegative = Field(
        default=2.0, description="a in: at most a * source subwords + b subwords of translation"
    )
    max_length_extra: CountOrZero = Field(
        default=20, description="b in: at most a * source subwords + b subwords"
    )
    max_source_length: Annotated[Count, Field(le=100_000)] = Field(
        default=512,
        description="a longer source line is translated from its first so many subwords, and reported",
    )
    temperature: Positive = Field(default=1.0, description="sampling: below 1 sharpens the distribution")
    top_k: CountOrZero = Field(
        default=0, description="sampling: draw among the k likeliest subwords (0: all)"
    )
    top_p: Annotated[Float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="sampling: draw among the likeliest subwords that together hold this probability",
    )
    seed: Int = Field(default=1, description="sampling: the same seed draws the same translations")
    batch_tokens: Annotated[Count, Field(le=10_000_000)] = Field(
        default=8192, description="source subwords of a batch, padding included, times hypotheses per line"
    )
    chunk_lines: Annotated[Count, Field(le=1_000_000)] = Field(
        default=2000, description="lines read ahead and sorted by length; 1 answers each line at once"
    )
    precision: InferencePrecision = Field(
        default="float32", description="number format of matrix products; int8 on a CPU only"
    )

    def conflicts(self) -> Iterator[Problem]:
        if self.search == "beam" and self.n_best > self.beam:
            message = f"n_best = {self.n_best} is more than beam = {self.beam}"
            yield Problem("n_best", message, hint=f"set beam to {self.n_best} or more")
        if self.search == "greedy" and self.n_best > 1:
            message = f"greedy search finds one translation, not {self.n_best}"
            yield Problem("n_best", message, hint="use search: beam or search: sampling")
        if self.min_length > self.max_length:
            message = f"min_length = {self.min_length} is more than max_length = {self.max_length}"
            yield Problem("min_length", message)
        if self.search != "sampling":
            for name, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
                if getattr(self, name) != neutral:
                    message = f"{name} has no effect on search: {self.search}"
                    yield Problem(name, message, hint="use search: sampling")

    @property
    def rows_per_line(self) -> int:
        """Hypotheses under way for one line."""
        return {"beam": self.beam, "sampling": self.n_best}.get(str(self.search), 1)

    def longest(self, source_length: int) -> int:
        """Most subwords of the translation of `source_length` subwords; at least one."""
        scaled = int(min(self.max_length_ratio * source_length, self.max_length))  # the product may be inf
        return max(min(scaled + self.max_length_extra, self.max_length), 1)


@SEARCHES.register(
    "beam", title="Beam search", note="The likeliest translation found, under the length penalty."
)
def _beam(
    model: NextToken, source: Tensor, limits: Sequence[Limits], numbers: Sequence[int], config: DecodeConfig
) -> list[list[Hypothesis]]:
    penalty, alpha = str(config.length_penalty), config.alpha
    if config.beam == 1:  # the same by definition, and it has fewer things to keep in order
        return greedy_search(model, source, limits, length_penalty=penalty, alpha=alpha)
    return beam_search(
        model,
        source,
        limits,
        beam=config.beam,
        n_best=config.n_best,
        length_penalty=penalty,
        alpha=alpha,
    )


@SEARCHES.register("greedy", title="Greedy search", note="The likeliest subword at each step.")
def _greedy(
    model: NextToken, source: Tensor, limits: Sequence[Limits], numbers: Sequence[int], config: DecodeConfig
) -> list[list[Hypothesis]]:
    penalty = str(config.length_penalty)
    return greedy_search(model, source, limits, length_penalty=penalty, alpha=config.alpha)


@SEARCHES.register(
    "sampling",
    title="Sampling",
    equation="y_t ~ p(y_t | y_<t, x)^(1 / temperature), within top_k and top_p",
    note="Seeded by (seed, line number, draw): batches do not change what is drawn.",
)
def _sampling(
    model: NextToken, source: Tensor, limits: Sequence[Limits], numbers: Sequence[int], config: DecodeConfig
) -> list[list[Hypothesis]]:
    return sample(
        model,
        source,
        limits,
        [[derive_seed(config.seed, number, draw) for draw in range(config.n_best)] for number in numbers],
        Sampling(config.temperature, config.top_k, config.top_p),
        length_penalty=str(config.length_penalty),
        alpha=config.alpha,
    )
