"""The systems that are measured: which adapter, in which environment, and how its model is wired."""

from __future__ import annotations

from typing import NamedTuple

from .environments import RECIPES

TASKS = ("train", "translate")


class System(NamedTuple):
    """`module` is the adapter's file; `environment` is None for the one that `run.py` runs in.

    `weights`: the system whose model it translates with, where that is not its own.
    """

    module: str
    wiring: str
    environment: str | None = None
    variant: str = ""
    tasks: tuple[str, ...] = TASKS
    model_is_ours: bool = False
    weights: str = ""

    @property
    def version(self) -> str:
        return "" if self.environment is None else RECIPES[self.environment].version


SYSTEMS = {
    "ours": System("ours", "Pre-LN"),
    "ours-float32": System("ours", "Pre-LN", variant="float32", weights="ours"),
    "ours-int8": System("ours", "Pre-LN", variant="int8", tasks=("translate",), weights="ours"),
    "plain": System("plain", "Pre-LN"),
    "plain-bf16": System("plain", "Pre-LN", variant="bf16", weights="plain"),
    "plain-cached": System("cached", "Pre-LN", tasks=("translate",), weights="plain"),
    "plain-cached-bf16": System("cached", "Pre-LN", None, "bf16", tasks=("translate",), weights="plain"),
    "opennmt": System("opennmt", "Pre-LN", "opennmt"),
    "opennmt-int8": System("opennmt", "Pre-LN", "opennmt", "int8", tasks=("translate",), weights="opennmt"),
    "eole": System("eole", "Pre-LN", "eole"),
    "eole-bf16": System("eole", "Pre-LN", "eole", "bf16", weights="eole"),
    "joeynmt": System("joeynmt", "Pre-LN", "joeynmt"),
    "huggingface": System("huggingface", "Post-LN", "huggingface"),
    "huggingface-bf16": System("huggingface", "Post-LN", "huggingface", "bf16", weights="huggingface"),
    **{
        name: System("ctranslate2", "Pre-LN", "ctranslate2", kind, ("translate",), True, weights)
        for name, kind, weights in (
            ("ctranslate2", "float32", ""),
            ("ctranslate2-bf16", "bfloat16", "ctranslate2"),
            ("ctranslate2-int8", "int8", ""),
            ("ctranslate2-int8-bf16", "int8_bfloat16", "ctranslate2-int8"),
        )
    },
}
