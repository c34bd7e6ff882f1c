"""A study file: which runs are made, and which questions they answer.

    name: warmup
    base: ../multi30k_arms.yaml          # as `extends:`, seen from the study file
    axes: {model.placement: [post, pre], train.warmup: [0, 300]}
    seeds: [1, 2, 3]

The runs are every arm with every combination of the axes and every seed, less what `skip` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..core.configuration import Int, NonNegative, Positive, Section, Text
from ..core.errors import ConfigError, Problem
from ..core.loading import Override, load, parse_override
from ..core.registry import nearest
from .metrics import LR_RANGE, known_metric

ARM = "arm"  # the key under which questions and tables find an arm's label
DEPTH = "depth"  # stands for both depths
DEPTHS = ("model.encoder_layers", "model.decoder_layers")
RESERVED = ("seed", "run_dir", ARM)
RATE = "train.lr"


def _plain(value: Any) -> Any:
    """A value as YAML 1.2 reads it: `1e-3` is a number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9.]*e[-+]?[0-9]+", value, re.IGNORECASE):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _some(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values:
        raise ValueError("needs at least 1 value")
    return values


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(f"{name!r} cannot name a directory: use letters, digits, `-`, `_` and `.`")
    return name


Value = Annotated[Any, BeforeValidator(_plain)]
Values = dict[Text, Value]
Metric = Annotated[Text, AfterValidator(known_metric)]


class Arm(Section):
    """A bundle of options under one name."""

    label: Text = Field(description="its name in tables and figures")
    set: Values = Field({}, description="options: model.placement: pre")


class Contrast(Section):
    """Two choices among the runs."""

    this: Values = Field(description="as a question's")
    that: Values = Field(description="as a question's")


class Question(Section):
    """`this` compared with `that`: two choices among the runs, in one metric.

    With `against`, what this has more than that is compared with what against.this has more than its that.
    """

    ask: Text = Field(description="the question in words")
    claim: Text = Field("", description="who claims what")
    this: Values = Field(description="the runs that the claim is about: {model.placement: pre}")
    that: Values = Field(description="the runs that they are compared with")
    expect: Literal["better", "worse", "no worse", "no better", "same", "differs"] = Field(
        description="what the claim says of `this`, seen from `that`"
    )
    margin: NonNegative = Field(0.0, description="a smaller difference counts as none")
    over: Literal["each", "best"] = Field(
        "best", description="compare each with the best of the other axes, or in each of their settings"
    )
    metric: Metric | None = Field(None, description="measure by this (default: the study's metric)")
    against: Contrast | None = Field(
        None, description="compare the difference of this and that with this one"
    )

    @property
    def sides(self) -> list[tuple[str, Values]]:
        """Every choice that it makes, with its place."""
        own = [("this", self.this), ("that", self.that)]
        other = self.against
        return own + ([("against.this", other.this), ("against.that", other.that)] if other else [])

    def conflicts(self) -> Iterator[Problem]:
        if self.expect in ("no worse", "no better", "same") and not self.margin:
            message = f"{self.expect!r} is shown by an interval within the margin, and there is none"
            yield Problem("margin", message, hint="say which difference counts as none: margin: 0.02")


class Study(Section):
    """A grid of runs and the questions that it answers."""

    set_by_flag = False

    name: Annotated[Text, AfterValidator(_file_name)] = Field(description="names runs/studies/NAME")
    title: Text = Field("", description="a heading for the report")
    base: Text = Field(description="the configuration that all runs share, seen from the study file")
    axes: dict[Text, Annotated[list[Value], Field(min_length=1)]] = Field(
        {}, description="option -> its values; `depth` stands for both stacks' layers"
    )
    arms: tuple[Arm, ...] = Field((), description="bundles of options, each run with every setting")
    skip: tuple[Values, ...] = Field((), description="settings that are not run")
    budget: Values = Field({}, description="options that all runs have beside those of base")
    seeds: Annotated[tuple[Int, ...], AfterValidator(_some)] = Field((1, 2, 3), description="of the runs")
    metric: Metric = Field("valid_loss", description="what decides: valid_loss, valid_bleu, test.NAME.bleu")
    target: Positive | None = Field(None, description="a validation loss; who reaches it in fewer updates?")
    questions: tuple[Question, ...] = Field((), description="what the study is to answer")

    def settings(self) -> Iterator[Values]:
        """The values of every setting: an arm with one value of each axis; seeds apart."""
        arms: Sequence[Values] = [{ARM: arm.label, **arm.set} for arm in self.arms] or [{}]
        for arm, values in product(arms, product(*self.axes.values())):
            setting = {**arm, **dict(zip(self.axes, values, strict=True))}
            if not any(matches(setting, skipped) for skipped in self.skip):
                yield setting

    def conflicts(self) -> Iterator[Problem]:
        yield from self._key_problems()
        yield from self._value_problems()
        if self.metric == "updates_to_target" and self.target is None:
            yield Problem(
                "metric", "updates_to_target needs a target", hint="set target to a validation loss"
            )
        if self.metric == LR_RANGE:
            yield Problem("metric", f"{LR_RANGE} is no run's: it is for questions", hint="valid_loss")
        settings = list(self.settings())
        if not settings:
            yield Problem("skip", "no run is left", hint="skip fewer settings")
        for number, skipped in enumerate(self.skip):
            yield from self._unknown(f"skip.{number}", skipped)
        for number, question in enumerate(self.questions):
            yield from self._question_problems(f"questions.{number}", question, settings)

    def _key_problems(self) -> Iterator[Problem]:
        """Options that are set in two places, or that the study itself sets."""
        placed: list[tuple[str, str]] = []  # option, place
        for place, key in (
            *(("axes", key) for key in self.axes),
            *((f"arms.{number}.set", key) for number, arm in enumerate(self.arms) for key in arm.set),
            *(("budget", key) for key in self.budget),
        ):
            if key in RESERVED:
                hint = "list the seeds under `seeds`" if key == "seed" else "a study sets it itself"
                yield Problem(f"{place}.{key}", "cannot be set here", hint=hint)
            for option in DEPTHS if key == DEPTH else (key,):
                for other, there in placed:
                    arms_apart = place != there and place.startswith("arms.") and there.startswith("arms.")
                    if _overlap(option, other) and not arms_apart:
                        by = "" if option == other else f", by {other}"
                        message = f"{option} is set in {there.partition('.')[0]} as well{by}"
                        yield Problem(f"{place}.{key}", message)
                        break
                placed.append((option, place))

    def _value_problems(self) -> Iterator[Problem]:
        for key, values in self.axes.items():
            yield from _twice(f"axes.{key}", values)
        yield from _twice("arms", [arm.label for arm in self.arms])
        yield from _twice("seeds", self.seeds)

    def _unknown(self, path: str, chosen: Values) -> Iterator[Problem]:
        """Keys and values by which a setting is named and that no setting has."""
        known: dict[str, list[Any]] = {key: list(values) for key, values in self.axes.items()}
        for arm in self.arms:
            for key, value in {ARM: arm.label, **arm.set}.items():
                known.setdefault(key, []).append(value)
        for key, value in chosen.items():
            if key not in known:
                guess = nearest(key, known)
                hint = f"did you mean {guess!r}?" if guess else f"known here: {', '.join(known) or 'nothing'}"
                yield Problem(f"{path}.{key}", "neither an axis nor set by an arm", hint=hint)
            elif value not in known[key]:
                guess = nearest(str(value), map(str, known[key]))
                values = ", ".join(dict.fromkeys(map(str, known[key])))
                hint = f"did you mean {guess!r}? " if guess else ""
                message = f"{value!r} is none of its values"
                yield Problem(f"{path}.{key}", message, hint=f"{hint}one of {values}")

    def _question_problems(self, path: str, question: Question, settings: list[Values]) -> Iterator[Problem]:
        unknown = [p for name, side in question.sides for p in self._unknown(f"{path}.{name}", side)]
        yield from unknown
        if unknown:
            return
        sides = {name: [s for s in settings if matches(s, chosen)] for name, chosen in question.sides}
        for name in (name for name, held in sides.items() if not held):
            yield Problem(f"{path}.{name}", "no run is like this", hint="look at axes and skip")
        if any(setting in sides["that"] for setting in sides["this"]):
            yield Problem(path, "this and that have runs in common", hint="name a key in which they differ")
        named = {*question.this, *question.that}
        free = [key for key in ([ARM] if self.arms else []) + list(self.axes) if key not in named]
        these, those = (
            [[setting[key] for key in free] for setting in sides[name]] for name in ("this", "that")
        )
        if question.over == "each" and these and those and not any(rest in those for rest in these):
            message = f"this and that never have the same {', '.join(free)}: there is nothing to compare"
            yield Problem(path, message, hint="name them in this and that, skip less, or say over: best")
        if question.metric in ("updates_to_target", LR_RANGE) and self.target is None:
            yield Problem(f"{path}.metric", f"{question.metric} needs the study's target")
        if question.against and (question.over == "each" or question.metric == LR_RANGE):
            yield Problem(f"{path}.against", f"not with over: each, nor with {LR_RANGE}")
        own = (question.this, question.that)
        if question.against and (question.against.this, question.against.that) in (own, own[::-1]):
            yield Problem(f"{path}.against", "this is the question's own difference", hint="name another one")
        if question.metric == LR_RANGE and not self._same_rates(sides, named):
            message = f"{LR_RANGE} is over the rates of the axis {RATE}, the same ones for both sides"
            yield Problem(
                f"{path}.metric", message, hint="give it two, skip none, name none in this and that"
            )

    def _same_rates(self, sides: Mapping[str, list[Values]], named: set[str]) -> bool:
        """Has every setting of both sides at least two rates, and all of them?"""
        if RATE in named or len(self.axes.get(RATE, ())) < 2:
            return False
        held = [setting for settings in sides.values() for setting in settings]
        return all({**setting, RATE: rate} in held for setting in held for rate in self.axes[RATE])


def matches(setting: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Has the setting every value that is chosen?"""
    return all(key in setting and setting[key] == value for key, value in chosen.items())


def load_study(file: str | Path, overrides: Sequence[str | Override] = (), base: str | None = None) -> Study:
    """Read a study file; `overrides` are options of all runs, and `base` stands in for the file's.

    Raises ConfigError with every problem found.
    """
    laid = [
        Override(("budget", ".".join(item.path)), item.value, item.source)
        for item in (_read(item) for item in overrides)
    ]
    study = load(Study, file, laid)
    beside = os.path.normpath(os.path.join(os.path.dirname(os.fspath(file)), study.base))
    return study.model_copy(update={"base": beside if base is None else base})


def _read(item: str | Override) -> Override:
    problems: list[Problem] = []
    override = parse_override(item, problems) if isinstance(item, str) else item
    if override is None:
        raise ConfigError(problems)
    return override


def _overlap(option: str, other: str) -> bool:
    """Is one of two dotted options the other, or a part of it?"""
    short, long = sorted((option, other), key=len)
    return f"{long}.".startswith(f"{short}.")


def _twice(path: str, values: Sequence[Any]) -> Iterator[Problem]:
    repeated = [value for number, value in enumerate(values) if value in values[:number]]
    yield from (Problem(path, f"{value!r} stands here twice") for value in repeated)
