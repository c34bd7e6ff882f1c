"""What the flags of `probe` say: seeds, plans, and which of the `--set` are the probe's own."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError, Problem
from ..core.loading import Override, parse_override
from ..core.plans import Plan

OPTION = "probe"  # the section that `--set probe.x=y` speaks of


def split_overrides(overrides: Sequence[str | Override]) -> tuple[list[str | Override], list[str | Override]]:
    """`--set probe.x=y` as options of the probe, and what is of the configuration."""
    own: list[str | Override] = []
    others: list[str | Override] = []
    problems: list[Problem] = []
    for item in overrides:
        override = parse_override(item, problems) if isinstance(item, str) else item
        if override is not None and override.path[0] == OPTION and len(override.path) > 1:
            own.append(Override(override.path[1:], override.value, override.source))
        else:
            others.append(item)
    if problems:
        raise ConfigError(problems)
    return own, others


def seeds_of(text: str) -> list[int]:
    """`3` is 1, 2, 3; `4,7` is 4 and 7."""
    numbers = [number_of("--seeds", part) for part in items_of(text)]
    if not numbers or (len(numbers) == 1 and "," not in text and numbers[0] < 1):
        raise ConfigError(f"--seeds {text}: give how many (3), or which (1,2,5)")
    return list(range(1, numbers[0] + 1)) if "," not in text else list(dict.fromkeys(numbers))


def plans_of(flag: str, text: str) -> list[Plan]:
    """Names, or plans as a flag writes them: `{encoder: post, decoder: pre}`."""
    problems: list[Problem] = []
    overrides = [parse_override(f"{flag}={item}", problems) for item in items_of(text)]
    if problems:
        raise ConfigError(problems)
    return [override.value for override in overrides if override is not None]


def items_of(text: str) -> list[str]:
    """Items between commas, but for those within the braces of a plan."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]


def number_of(flag: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{flag}: {text!r} is not a whole number")
    return int(text)
