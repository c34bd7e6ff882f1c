"""Encoder-decoder Transformers for translation in which the place and the kind of the norm are flags.

What is named here is imported when it is asked for: some commands and processes need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model.transformer import ModelConfig as ModelConfig
    from .model.transformer import Transformer as Transformer
    from .modules.norms import NORMS as NORMS
    from .modules.placements import PLACEMENTS as PLACEMENTS

__version__ = "0.1.0"

_HOMES = {
    "ModelConfig": ".model.transformer",
    "NORMS": ".modules.norms",
    "PLACEMENTS": ".modules.placements",
    "Transformer": ".model.transformer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
