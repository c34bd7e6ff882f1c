"""Encoder-decoder Transformers for translation in which the place and the kind of the norm are flags."""

from .model.transformer import ModelConfig as ModelConfig
from .model.transformer import Transformer as Transformer
from .modules.norms import NORMS as NORMS
from .modules.placements import PLACEMENTS as PLACEMENTS

__version__ = "0.1.0"
