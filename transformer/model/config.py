"""What a model is: the `model` section, and what the notebook's flags build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..core.configuration import Count, CountOrZero, Positive, Probability, Section, choice
from ..core.errors import Problem
from ..modules.embeddings import POSITIONS
from ..modules.feedforward import ACTIVATIONS
from ..modules.norms import NORMS
from ..modules.placements import PLACEMENTS

Stack = Literal["encoder", "decoder"]
DEEPEST = 10_000  # layers; every one is built as an object, so a slip of the finger would fill the memory
Tying = Literal["none", "source_target", "target_output", "all"]


class ModelConfig(Section):
    """Shape of an encoder-decoder Transformer. The only home of these defaults."""

    placement: choice(PLACEMENTS) = Field("pre", description="where the norm sits")  # type: ignore[valid-type]
    decoder_placement: choice(PLACEMENTS) | None = Field(  # type: ignore[valid-type]
        None, description="another placement in the decoder (default: as `placement`)"
    )
    norm: choice(NORMS) = Field("layer", description="which norm")  # type: ignore[valid-type]
    decoder_norm: choice(NORMS) | None = Field(  # type: ignore[valid-type]
        None, description="another norm in the decoder (default: as `norm`)"
    )
    norm_eps: Positive = Field(1e-5, description="added to the variance inside the root")
    d_model: Count = Field(512, description="width of the residual stream; even, and a multiple of `heads`")
    heads: Count = Field(8, description="attention heads")
    d_ff: Count = Field(2048, description="width of the feed-forward's hidden layer")
    encoder_layers: CountOrZero = Field(6, le=DEEPEST, description="depth of the encoder")
    decoder_layers: Count = Field(6, le=DEEPEST, description="depth of the decoder")
    activation: choice(ACTIVATIONS) = Field("relu", description="of the feed-forward")  # type: ignore[valid-type]
    positions: choice(POSITIONS) = Field("sinusoidal", description="how positions enter")  # type: ignore[valid-type]
    max_length: Count = Field(1024, description="rows of the position table; a limit only if learned")
    tie_embeddings: Tying = Field(
        "target_output",
        description="which of source embedding, target embedding and output are one matrix",
    )
    dropout: Probability = Field(0.1, description="on each branch, before it is added")
    embedding_dropout: Probability | None = Field(None, description="on embeddings (default: as `dropout`)")
    attention_dropout: Probability = Field(0.0, description="on attention weights")
    activation_dropout: Probability = Field(0.0, description="on the feed-forward's hidden layer")

    def conflicts(self) -> Iterator[Problem]:
        if self.d_model % self.heads:
            yield Problem("heads", f"{self.heads} does not divide d_model = {self.d_model}")
        if self.d_model % 2:
            yield Problem("d_model", f"{self.d_model} is odd: sinusoids come in pairs")
        if POSITIONS[self.positions].limited and self.max_length < 2:
            message = f"{self.max_length} row of {self.positions} positions leaves no room for a word"
            yield Problem("max_length", message)

    def placement_of(self, stack: Stack) -> str:
        return str(self.decoder_placement or self.placement) if stack == "decoder" else str(self.placement)

    def norm_of(self, stack: Stack) -> str:
        return str(self.decoder_norm or self.norm) if stack == "decoder" else str(self.norm)

    @property
    def joint_vocabulary(self) -> bool:
        """Does the tying make source and target ids share one matrix?"""
        return self.tie_embeddings in ("source_target", "all")
