"""The systems that are measured: which adapter, in which environment, and how its model is wired."""

from __future__ import annotations

from typing import NamedTuple

from .environments import RECIPES

TASKS = ("train", "translate")


class System(NamedTuple):
    """`module` is the adapter's file; `environment` is None for the one that `run.py` runs in."""

    module: str
    wiring: str
    environment: str | None = None
    variant: str = ""
    tasks: tuple[str, ...] = TASKS
    model_is_ours: bool = False

    @property
    def version(self) -> str:
        return "" if self.environment is None else RECIPES[self.environment].version


SYSTEMS = {
    "ours": System("ours", "Pre-LN"),
    "ours-float32": System("ours", "Pre-LN", variant="float32"),
    "ours-int8": System("ours", "Pre-LN", variant="int8", tasks=("translate",)),
    "plain": System("plain", "Pre-LN"),
    "opennmt": System("opennmt", "Pre-LN", "opennmt"),
    "eole": System("eole", "Pre-LN", "eole"),
    "joeynmt": System("joeynmt", "Pre-LN", "joeynmt"),
    "huggingface": System("huggingface", "Post-LN", "huggingface"),
    "ctranslate2": System(
        "ctranslate2", "Pre-LN", "ctranslate2", "float32", tasks=("translate",), model_is_ours=True
    ),
    "ctranslate2-int8": System(
        "ctranslate2", "Pre-LN", "ctranslate2", "int8", tasks=("translate",), model_is_ours=True
    ),
}
