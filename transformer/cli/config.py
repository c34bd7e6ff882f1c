"""The whole configuration: one section for each floor, and what must fit between them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from ..core.configuration import Int, Section, Text
from ..core.errors import Problem
from ..core.loading import Override
from ..core.plans import names, shown
from ..data.dataset import DataConfig
from ..decoding.config import DecodeConfig
from ..model.config import ModelConfig
from ..modules.embeddings import POSITIONS
from ..modules.norms import NORMS
from ..training.config import TrainConfig

RUNS = "runs"
LONGEST_NAME = 190  # of a run directory; file systems stop at 255


class Config(Section):
    """Everything that decides a run. YAML files hold differences from these defaults."""

    seed: Int = Field(
        1, description="initial weights, data order, dropout and subword sampling follow from it"
    )
    run_dir: Text | None = Field(
        None,
        description="where the run is written (default: runs/FILE-PLACEMENT and the flags that were given)",
    )
    data: DataConfig = Field(default_factory=DataConfig.defaults)
    model: ModelConfig = Field(default_factory=ModelConfig.defaults)
    train: TrainConfig = Field(default_factory=TrainConfig.defaults)
    decode: DecodeConfig = Field(default_factory=DecodeConfig.defaults)

    def conflicts(self) -> Iterator[Problem]:
        if self.model.joint_vocabulary and not self.data.tokenizer.joint:
            yield Problem(
                "model.tie_embeddings",
                f"{self.model.tie_embeddings} needs one vocabulary, but data.tokenizer.joint is false",
                hint="set data.tokenizer.joint=true, or tie only target_output",
            )
        if POSITIONS[self.model.positions].limited and self.data.max_length > self.model.max_length:
            message = f"{self.data.max_length} is more than model.max_length = {self.model.max_length},"
            message += f" the last of the {self.model.positions} positions"
            hint = f"set model.max_length={self.data.max_length}, or leave longer pairs out"
            yield Problem("data.max_length", message, hint=hint)
        for norm in names(self.model.norm) if self.train.checkpoint_activations else ():
            if NORMS[norm].span == "batch":
                message = (
                    f"it makes activations twice, and {norm}'s running statistics would count them twice"
                )
                yield Problem("train.checkpoint_activations", message, hint="set it to false")


def default_run_dir(file: Path, config: Config, overrides: Sequence[str | Override]) -> str:
    """`runs/multi30k-pre`; other flags follow, where given: `runs/multi30k-post-warmup0-seed2`."""
    parts = [file.stem, shown(config.model.placement)]
    flags = {item.path[-1]: item.value for item in overrides if isinstance(item, Override)}
    flags = {name: shown(config.model.norm) if name == "norm" else value for name, value in flags.items()}
    parts += [f"{name}{value}" for name, value in flags.items() if name not in ("placement", "run_dir")]
    return os.path.join(RUNS, "-".join(parts).replace(os.sep, "_")[:LONGEST_NAME])
