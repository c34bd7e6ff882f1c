"""What a run's model costs."""

from __future__ import annotations

from ..core.errors import UserError
from ..data.tokenizer import load_tokenizers
from ..model.config import ModelConfig
from ..model.cost import Cost, cost_of
from .cells import load_yaml
from .outcomes import Outcome


def cost_of_run(outcome: Outcome) -> Cost | None:
    """The cost of a run's model; None where its directory no longer says what it was."""
    directory = outcome.cell.run_dir
    try:
        source, target = load_tokenizers(directory / "tokenizer")
        return cost_of(ModelConfig.model_validate(load_yaml(outcome.cell)["model"]), source.size, target.size)
    except (OSError, KeyError, ValueError, UserError):
        return None
