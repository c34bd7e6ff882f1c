"""From a trained model to text: caches, searches and the translator."""

from .beam import beam_search as beam_search
from .cache import DecoderCache as DecoderCache
from .config import SEARCHES as SEARCHES
from .config import DecodeConfig as DecodeConfig
from .hypothesis import Hypothesis as Hypothesis
from .limits import Limits as Limits
from .next_token import Ensemble as Ensemble
from .next_token import ModelNextToken as ModelNextToken
from .next_token import NextToken as NextToken
from .penalties import LENGTH_PENALTIES as LENGTH_PENALTIES
from .translation import Score as Score
from .translation import TextHypothesis as TextHypothesis
from .translation import Translation as Translation
from .translator import Translator as Translator
from .walks import Sampling as Sampling
from .walks import greedy_search as greedy_search
from .walks import sample as sample
