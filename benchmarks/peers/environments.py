"""The environment of each peer: what is installed, in which order, and the only place of their versions.

An environment lies in .cache/peers/NAME and is made again when its recipe here changes. Torch comes first and
alone, at the version all systems share; what a peer asks of torch and what a CPU has no use for is left out
by installing the peer itself without its dependencies, and those it imports by name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "peers"
TORCH = "torch==2.13.0"
ERROR = re.compile(r"ERROR:|[\w.]*(Error|Exception)\b")


class Unusable(Exception):
    """A system cannot be run, and why, in one line."""


class Recipe(NamedTuple):
    """What pip is given: `alone` is installed without its dependencies, `needs` stand in for those."""

    alone: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    torch: bool = True

    @property
    def steps(self) -> list[list[str]]:
        torch = [TORCH] if self.torch else []
        steps = [torch, [*torch, *self.needs], ["--no-deps", *self.alone]]
        return [step for step, wanted in zip(steps, (torch, self.needs, self.alone), strict=True) if wanted]

    @property
    def version(self) -> str:
        return " ".join((self.alone or self.needs)[0].split("=="))


RECIPES = {
    "opennmt": Recipe(
        alone=("OpenNMT-py==3.5.1",),  # it asks for a torch before 2.3
        needs=(
            "numpy==2.4.6",
            "configargparse==1.9.0",
            "pyyaml==6.0.3",
            "ctranslate2==4.8.5",
            "pyonmttok==1.38.1",
            "sacrebleu==2.6.0",
            "sentencepiece==0.2.3",
            "six==1.17.0",
            "tensorboard==2.21.0",
            "rapidfuzz==3.14.6",
            "pyahocorasick==2.3.1",
            "spacy==3.8.18",
            "fasttext-wheel==0.9.2",
        ),
    ),
    "eole": Recipe(needs=("eole==0.6.4", "aiohttp==3.14.5")),  # it imports aiohttp and does not ask for it
    "joeynmt": Recipe(needs=("joeynmt==2.3.0", "importlib_metadata==10.2.0")),  # so here
    "huggingface": Recipe(needs=("transformers==5.23.0",)),
    "ctranslate2": Recipe(needs=("ctranslate2==4.8.5",), torch=False),
}


def python_of(directory: Path) -> Path:
    return directory / ("Scripts" if os.name == "nt" else "bin") / "python"


def environment(name: str | None) -> Path:
    """The Python of a peer's environment, made if need be; without a name, this one. Raises Unusable."""
    if name is None:
        return Path(sys.executable)
    recipe, directory = RECIPES[name], CACHE / name
    python, stamp = python_of(directory), directory / "recipe.json"
    wanted = json.dumps([f"{sys.version_info.major}.{sys.version_info.minor}", *recipe.steps])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"{name}: making its environment", file=sys.stderr, flush=True)
    run([sys.executable, "-m", "venv", "--clear", str(directory)])
    for step in recipe.steps:
        run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
    if recipe.torch:
        run([str(python), "-c", f"import torch; assert torch.__version__.startswith('{TORCH[7:]}')"])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unusable(f"no environment: {reason(done.stderr)}")


def reason(text: str) -> str:
    """The last error that a program told, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1][:300]
