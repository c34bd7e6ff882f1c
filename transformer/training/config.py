"""The `train` section: how the model is trained, and when training ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from ..core.configuration import (
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Probability,
    Section,
    choice,
)
from ..core.cpus import MOST_THREADS
from ..core.errors import Problem
from .optimizers import OPTIMIZERS
from .schedules import SCHEDULES

DEFAULT_UPDATES = 20_000


# What may change when a run goes on: its limits, and what is written when. The number of threads is among
# them, and whether the model is compiled, although both can change the last bits of a sum (and compiled,
# dropout draws other numbers): a run may move to another machine.
CHANGEABLE = (
    *("updates", "epochs", "minutes", "patience"),
    *("log_every", "probe_every", "save_every", "keep", "threads", "compile"),
    *("checkpoint_activations", "parallel"),
)


class TrainConfig(Section):
    """Section `train`. Without any of updates, epochs and minutes a run has 20,000 updates."""

    optimizer: choice(OPTIMIZERS) = Field("adam", description="which update rule")  # type: ignore[valid-type]
    lr: Positive = Field(5e-4, description="peak learning rate, reached at the end of the warm-up")
    betas: tuple[Probability, Probability] = Field(
        (0.9, 0.98), description="decay of Adam's first and second moment (adam, adamw, radam, muon's AdamW)"
    )
    epsilon: Positive = Field(
        1e-9, description="added to Adam's denominator (adam, adamw, radam, muon's AdamW)"
    )
    weight_decay: NonNegative = Field(
        0.0,
        description="on weight matrices only; decoupled in adamw, adafactor and muon,"
        " an L2 term in adam, radam and sgd",
    )
    momentum: Probability | None = Field(
        None, description="of sgd (null: 0, plain descent) and muon (null: 0.95)"
    )

    schedule: choice(SCHEDULES) = Field(  # type: ignore[valid-type]
        "inverse_sqrt", description="how the rate falls after the warm-up"
    )
    warmup: CountOrZero = Field(4000, description="updates of linear warm-up; 0 starts at the peak")
    warmup_init_lr: NonNegative = Field(0.0, description="where the warm-up's ramp starts (before update 1)")
    timescale: Count = Field(
        4000, description="inverse_sqrt_decoupled: updates at the peak before the decay; at least the warm-up"
    )
    drops: tuple[Positive, ...] = Field(
        (0.5, 0.75), description="step: after which updates the rate drops; below 1: a share of the run"
    )
    factor: Probability = Field(0.1, description="step and plateau: what a drop multiplies the rate by", gt=0)
    plateau_patience: Count = Field(3, description="plateau: validations without a new best before a drop")
    floor: NonNegative = Field(
        0.0, description="no decay takes the rate below this; linear and cosine end near it"
    )

    label_smoothing: Probability = Field(
        0.1, description="share of the target's probability spread evenly over the whole vocabulary"
    )
    clip: NonNegative = Field(1.0, description="largest global gradient norm; 0 = no clipping")
    batch_tokens: Count = Field(
        4096, description="tokens of one micro-batch, padding counted; several processes share it"
    )
    accumulate: Count = Field(
        1, description="micro-batches of one update; an epoch's last update may have fewer"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="of matrix products; auto: bf16 where the hardware is fast at it"
    )
    threads: Annotated[CountOrZero, Field(le=MOST_THREADS)] = Field(
        0, description="CPU threads; 0 leaves torch's choice"
    )
    compile: StrictBool = Field(
        False,
        description="torch.compile of the model's forward, with a bounded number of graphs, which the log"
        " counts; for GPUs: on two CPU cores in bf16 it ran at 0.65 to 0.74 times the speed",
    )
    checkpoint_activations: StrictBool = Field(
        False,
        description="keep only the stream between layers for the backward pass, which makes the rest again:"
        " less memory, more time, the same gradients",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes (torchrun): ddp keeps all weights in each, fsdp a slice of them",
    )

    updates: Count | None = Field(None, description="stop after this many updates")
    epochs: Count | None = Field(None, description="stop after this many passes over the training data")
    minutes: Positive | None = Field(
        None, description="stop after this long, validation and resumed parts counted"
    )

    validate_every: Count = Field(
        500, description="updates between validations; there is one at the end as well"
    )
    validate_bleu: StrictBool = Field(True, description="translate the validation set and measure BLEU")
    metric: Literal["bleu", "loss"] = Field(
        "bleu", description="of validation: decides the best checkpoint, early stopping and plateau"
    )
    patience: CountOrZero = Field(
        0, description="stop after this many validations without a new best; 0 = off"
    )
    average: CountOrZero = Field(
        5,
        description="at the end, average this many last validated weights, and keep that if it is better;"
        " 0 = off",
    )
    keep: CountOrZero = Field(0, description="validated weights left on disk, if more than `average`")
    save_every: CountOrZero = Field(0, description="updates between saves; each validation saves as well")
    log_every: Count = Field(50, description="updates between lines in the log")
    probe_every: CountOrZero = Field(
        100, description="updates between probes of every layer (the first update is one); 0 = off"
    )

    stall_updates: CountOrZero = Field(
        1000,
        description="diverged when the loss stays at or above the unigram level for this many updates, not"
        " before twice the warm-up; 0 = do not check",
    )
    stall_level: Positive = Field(
        0.95, description="share of the unigram entropy above which a training nll counts as stalled"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_a_limit(cls, data: Any) -> Any:
        """Training ends: without any limit the default one is written into the configuration."""
        if not isinstance(data, dict) or any(key in data for key in ("updates", "epochs", "minutes")):
            return data
        return {**data, "updates": DEFAULT_UPDATES}

    def conflicts(self) -> Iterator[Problem]:
        kind = SCHEDULES[self.schedule]
        known = self.updates is not None or self.epochs is not None
        if not known and self.minutes is None:
            yield Problem("updates", "no limit is left", hint="give one of updates, epochs and minutes")
        if self.warmup_init_lr > self.lr:
            message = f"warmup_init_lr {self.warmup_init_lr:g} is above lr {self.lr:g}; warm-up must not fall"
            yield Problem("warmup_init_lr", message)
        if self.floor > self.lr:
            yield Problem("floor", f"floor {self.floor:g} is above lr {self.lr:g}")
        if kind.needs_horizon and not known:
            message = f"schedule {self.schedule} needs the number of updates"
            yield Problem("schedule", message, hint="give updates or epochs beside minutes")
        if "drops" in kind.options and not known and any(drop < 1 for drop in self.drops):
            message = "a share of the run needs the number of updates"
            yield Problem("drops", message, hint="give updates or epochs, or write the drops as updates")
        if "timescale" in kind.options and self.timescale < self.warmup:
            message = f"timescale {self.timescale} is below warmup {self.warmup}: the peak is never reached"
            yield Problem("timescale", message, hint="raise timescale to the warm-up at least")
        if kind.needs_horizon and self.updates is not None and self.warmup >= self.updates:
            message = f"warmup {self.warmup} leaves no update of {self.updates} for the {self.schedule} decay"
            yield Problem("warmup", message)
        if self.compile and self.checkpoint_activations:
            message = "a compiler makes its own plan of what to keep for the backward pass"
            yield Problem("checkpoint_activations", message, hint="set one of it and compile to false")
        if self.metric == "bleu" and not self.validate_bleu:
            message = "metric is bleu, but validate_bleu is off"
            yield Problem("metric", message, hint="set metric: loss or validate_bleu: true")

    @property
    def depends_on_end(self) -> bool:
        """Does the rate at an update depend on which update is the last?"""
        kind = SCHEDULES[self.schedule]
        shares = "drops" in kind.options and any(drop < 1 for drop in self.drops)
        return kind.needs_horizon or shares

    def fixed(self) -> dict[str, object]:
        """All but `CHANGEABLE`: what a resumed run must have in common with the run it goes on with."""
        values = self.model_dump(mode="json", exclude=set(CHANGEABLE))
        return {f"train.{name}": value for name, value in values.items()}

    def changeable(self) -> dict[str, object]:
        """The values of `CHANGEABLE`."""
        values = self.model_dump(mode="json", include=set(CHANGEABLE))
        return {f"train.{name}": value for name, value in values.items()}

    def unused_options(self) -> list[str]:
        """Options that differ from their default and that the chosen schedule or optimizer does not read."""
        optimizer, schedule = OPTIMIZERS[self.optimizer], SCHEDULES[self.schedule]
        unread = {
            key: f"optimizer {self.optimizer}"
            for key in ("betas", "epsilon", "momentum")
            if key not in optimizer.options
        }
        for key in ("timescale", "drops", "factor", "plateau_patience", "floor"):
            if key not in schedule.options:
                unread[key] = f"schedule {self.schedule}"
        return [
            f"train.{key} has no effect with {what}"
            for key, what in unread.items()
            if getattr(self, key) != type(self).model_fields[key].default
        ] + [
            f"train.warmup {self.warmup} is longer than the run's {limit} updates: the peak is not reached"
            for limit in (self.updates,)
            if limit is not None and self.warmup > limit
        ]
