"""The encoder-decoder Transformer, with the place and the kind of its norms as flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError, Problem
from ..core.special import EOS, PAD
from ..modules.attention import DecoderCache
from ..modules.embeddings import POSITIONS, Embedding, UnitEmbedding, row_lengths, unit_rows
from ..modules.masks import padding_mask
from ..modules.packed import PackedProducts
from ..modules.placements import Placement
from .calibration import calibrate
from .config import ModelConfig
from .initialization import initialize
from .parts import Sublayer
from .stacks import Decoder, Encoder

__all__ = ["ModelConfig", "Transformer"]


class Transformer(nn.Module):
    """source (B, S), target_in (B, T) -> logits (B, T, V).

    `Transformer(8000, 8000, placement="post", norm="rms", d_model=256)` builds ModelConfig from the flags;
    a ModelConfig may be given instead. Initial values depend on (`seed`, parameter name) only.

    Raises ConfigError when both are given, the vocabularies cannot share a matrix the tying asks for, or the
    memory does not hold the model; pydantic's ValidationError for a flag that is unknown or out of range.
    Source: Vaswani et al. 2017, figure 1; the placements' own papers for everything about norms.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        config: ModelConfig | None = None,
        *,
        seed: int = 0,
        **flags: Any,
    ) -> None:
        super().__init__()
        if config is not None and flags:
            raise ConfigError("Transformer takes a ModelConfig or flags, not both")
        self.config = config = ModelConfig(**flags) if config is None else config
        self.packed: PackedProducts | None = None  # in a model made for inference
        for side, size in (("source", source_vocab), ("target", target_vocab)):
            if not isinstance(size, int) or size <= EOS:
                raise ConfigError(f"{side}_vocab is {size!r}: it needs a number above {EOS}, the special ids")
        if config.joint_vocabulary and source_vocab != target_vocab:
            sizes = f"{source_vocab} and {target_vocab} entries"
            message = f"{config.tie_embeddings!r} needs one vocabulary, got two of {sizes}"
            raise ConfigError([Problem("model.tie_embeddings", message, hint="use a joint tokenizer")])
        self.source_vocab, self.target_vocab = source_vocab, target_vocab
        try:
            self._build(config)
            initialize(self, seed)
        except (RuntimeError, MemoryError, OverflowError) as error:
            raise ConfigError([self._too_large(error)]) from error

    def _build(self, config: ModelConfig) -> None:
        table = UnitEmbedding if config.fix_norm else nn.Embedding
        source = table(self.source_vocab, config.d_model, padding_idx=PAD)
        joint = config.joint_vocabulary
        target = source if joint else table(self.target_vocab, config.d_model, padding_idx=PAD)
        self.source_embedding = self._embedding(source)
        self.target_embedding = self._embedding(target)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        tied = config.tie_embeddings in ("target_output", "all")
        self.output = None if tied else nn.Linear(config.d_model, self.target_vocab, bias=False)

    def _too_large(self, error: Exception) -> Problem:
        """Torch's refusal to allocate, with the sizes that were asked for."""
        c = self.config
        sizes = f"d_model = {c.d_model}, d_ff = {c.d_ff}, {c.encoder_layers} + {c.decoder_layers} layers"
        tables = f"vocabularies of {self.source_vocab} and {self.target_vocab}, max_length = {c.max_length}"
        reason = str(error).partition("\n")[0]
        return Problem("model", f"cannot be built with {sizes}, {tables}: {reason}", hint="ask for less")

    def _embedding(self, tokens: nn.Embedding) -> Embedding:
        config = self.config
        positions = POSITIONS[config.positions](config.max_length, config.d_model)
        return Embedding(tokens, positions)

    @property
    def output_table(self) -> Tensor:
        """(V, D): the parameter of the output projection, which may be the target embedding itself."""
        return self.target_embedding.tokens.weight if self.output is None else self.output.weight

    @property
    def output_weight(self) -> Tensor:
        """(V, D): what the output projects with; FixNorm takes the rows at length one."""
        return unit_rows(self.output_table) if self.config.fix_norm else self.output_table

    def encode(self, source: Tensor) -> Tensor:
        """Source ids (B, S), right-padded -> memory (B, S, D)."""
        embedded = self.source_embedding(source)
        return self.encoder(embedded, padding_mask(source), source != PAD)  # type: ignore[no-any-return]

    def decode(
        self, target_in: Tensor, memory: Tensor, source_mask: Tensor, cache: DecoderCache | None = None
    ) -> Tensor:
        """Target ids (B, T), memory (B, S, D), mask (B, 1, 1, S) -> hidden (B, T, D).

        With a cache, target_in holds only the columns that follow those the cache has already.
        """
        past = cache.length if cache else 0
        embedded = self.target_embedding(target_in, past)
        real = target_in != PAD
        return self.decoder(embedded, memory, source_mask, cache, past, real)  # type: ignore[no-any-return]

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden (..., D) -> logits (..., V)."""
        if self.packed is not None:
            return self.packed.by(self.output_table, lambda: self.output_weight)(hidden)
        logits = F.linear(hidden, self.output_table)
        if not self.config.fix_norm:
            return logits
        return (logits / row_lengths(self.output_table).T).to(logits.dtype)  # dearer: dividing the rows

    def hidden(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Source (B, S), target_in (B, T) -> hidden (B, T, D): what the loss projects."""
        return self.decode(target_in, self.encode(source), padding_mask(source))

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        return self.project(self.hidden(source, target_in))

    def sites(self) -> Iterator[tuple[Placement, Sublayer]]:
        """Each residual connection and the sublayer it wraps, encoder first, in order of execution."""
        yield from self.encoder.sites()
        yield from self.decoder.sites()

    def calibrate(self, source: Tensor, target_in: Tensor, *, seed: int = 0) -> int:
        """Set the initial values that hang on a batch, where the placement has such; how many sites have.

        Once, before training: source (B, S), target_in (B, T). Its dropout draws from `seed`.
        """
        return calibrate(self, source, target_in, seed)

    def parameter_count(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters())
