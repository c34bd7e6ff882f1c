"""The `data` section: where the text is and how it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..core.configuration import Count, PathText, Positive, Probability, Section, Text
from ..core.errors import Problem
from ..core.filenames import LONGEST, LONGEST_BYTES, fitting, same_file, unfit
from .corpus import DEMO, DEMO_LANGUAGES
from .tokenizer import TokenizerConfig


def _one_or_more(value: Any) -> Any:
    if isinstance(value, str | bool):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Prefixes = Annotated[tuple[Text, ...], BeforeValidator(_one_or_more), Field(min_length=1)]


class DataConfig(Section):
    """Where the text is and how it is cut. A prefix `p` means the files `p.en[.gz]` and `p.de[.gz]`."""

    source: Text = Field(default="en", description="language to translate from: the ending of its files")
    target: Text = Field(default="de", description="language to translate into: the ending of its files")
    train: Prefixes = Field(
        default=(DEMO,), description="prefix of the training text, or a list; `demo` is the embedded corpus"
    )
    valid: Text = Field(default=DEMO, description="prefix of the validation text")
    test: dict[Text, Text] = Field(
        default_factory=dict,
        description="name -> prefix of each test set scored at the end of training; a name is that of a file",
    )
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="how text becomes subwords")
    max_length: Count = Field(
        default=256, description="longest side in tokens, the end mark included; longer pairs are left out"
    )
    max_ratio: Positive | None = Field(
        default=9.0,
        description="largest ratio of the two lengths in tokens, end marks included; null = no limit",
    )
    drop_copies: bool = Field(default=False, description="leave out pairs whose target repeats the source")
    max_unknown: Probability = Field(
        default=0.01, description="largest share of unknown tokens in either side of the training text"
    )
    cache: PathText = Field(
        default=".cache", description="directory that keeps tokenizers and encoded text from run to run"
    )

    def conflicts(self) -> Iterator[Problem]:
        yield from self._unfit_names()
        if self.source == self.target:
            yield Problem("target", f"source and target are both {self.source!r}")
        uses_demo = [key for key, prefix in self._prefixes() if prefix == DEMO]
        if uses_demo and {self.source, self.target} != set(DEMO_LANGUAGES):
            message = f"demo ({', '.join(uses_demo)}) has en and de, not {self.source} and {self.target}"
            yield Problem(uses_demo[0], message, hint="give the prefixes of your own text, or use en and de")
        if DEMO not in self.train and self.valid == DEMO and "valid" not in self.model_fields_set:
            yield Problem("valid", "train is your own text, so valid needs the prefix of held-out text too")

    def _unfit_names(self) -> Iterator[Problem]:
        """Names that cannot be those of files, and of two that would be one file the second."""
        before: dict[str, str] = {}
        for name in self.test:
            printable = len(name) <= LONGEST and name.isprintable()
            key, shown = f"test.{name}" if printable else "test", repr(name[:LONGEST])
            if reason := unfit(name):
                message = f"{shown} cannot name a test set, whose translations are a file: {reason}"
                better, limits = fitting(name), f"{LONGEST} characters and {LONGEST_BYTES} bytes"
                hint = f"call it {better!r}" if not unfit(better) else f"choose a name of up to {limits}"
                yield Problem(key, message, hint=hint)
            elif (other := before.setdefault(same_file(name), name)) != name:
                message = f"{shown} and {other!r} would be one file where upper and lower case are the same"
                yield Problem(key, message, hint="choose names that differ in more")

    def _prefixes(self) -> Iterator[tuple[str, str]]:
        yield from (("train", prefix) for prefix in self.train)
        yield "valid", self.valid
        yield from ((f"test.{name}", prefix) for name, prefix in self.test.items())
