"""The training loop: micro-batches to one update, and updates to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..model.transformer import Transformer
from ..modules.precision import resolve_precision
from .config import TrainConfig
from .divergence import Diverged, stop_broken, stop_if_lost, stop_if_not_finite, stop_if_stalled, together
from .forensics import examine
from .inspection import blame
from .interruption import Interrupted, Interruption
from .judging import Validate, measure, score_of
from .layouts import layout_of
from .limits import Limits, Stream, fixed_by, updates_of
from .logbook import Logbook
from .monitor import Monitor
from .optimizers import make_optimizer, set_learning_rate
from .passes import Observer, Passes, copied
from .progress import Outcome, Progress, Status, Stopwatch, Window
from .ranks import ALONE, Ranks
from .resuming import current, resume, rewind, save
from .schedules import make_schedule
from .shelf import Shelf

__all__ = ["Outcome", "TrainConfig", "Trainer"]


class Trainer:
    """Trains a model on a stream of batches until a limit, and keeps its run directory.

    `validate(model)` returns at least `loss`, and `bleu` when `config.metric` is bleu; the model is in
    evaluation mode and without gradients. `samples()` gives text for TensorBoard after a validation.
    `unigram_loss` is the entropy in nats of the training targets' token distribution
    (`divergence.stop_if_stalled`). `metadata` goes into the header of every weights file. `fixed` is what may
    not be different when the run is resumed. Each of several `ranks` has a trainer, and its share of every
    batch as its stream; all take the same steps, the first one decides, and it alone writes.
    In float32 on a CPU a run is a function of (seed, configuration, data): dropout draws from a generator
    that is seeded anew for each update, so a resumed run is the straight one bit for bit.
    """

    def __init__(
        self,
        model: Transformer,
        stream: Stream,
        config: TrainConfig,
        run_dir: Path,
        validate: Validate,
        *,
        seed: int = 1,
        unigram_loss: float | None = None,
        samples: Callable[[], str] | None = None,
        metadata: Mapping[str, str] | None = None,
        logbook: Logbook | None = None,
        fixed: Mapping[str, Any] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.stream, self.config, self.run_dir = model, stream, config, run_dir
        self.validator, self.samples, self.seed, self.unigram_loss = validate, samples, seed, unigram_loss
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = next(model.parameters()).device
        precision = resolve_precision(config.precision, self.device)
        self.ranks, self.layout = ranks, layout_of(model, config, ranks)
        ways = config.compile, config.checkpoint_activations, self.layout
        self.passes = Passes(model, precision, config.label_smoothing, seed, *ways)
        # Of several ranks the chief alone looks: it always has rows, and it alone writes down what it saw.
        self.monitor = Monitor(model, config.probe_every if self.layout.probed and ranks.chief else 0)
        self.observer: Observer = self.monitor  # of every update
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.limits = Limits(config, stream, ranks)
        self.total_updates = self.limits.total_updates()
        self.schedule = make_schedule(config, self.total_updates)
        self.optimizer = make_optimizer(model, config)
        self.shelf = Shelf(run_dir, config, metadata or {})
        self.logbook = Logbook(run_dir) if logbook is None else logbook
        self.logged = 0  # bytes of metrics.jsonl at the resumed update
        self.fixed = {**fixed_by(config, model, stream, seed), **(fixed or {})}
        self.progress, self.window, self.watch = Progress(), Window(self.device), Stopwatch()
        self.interruption = Interruption()  # of `fit`
        self.saved = -1  # update of checkpoints/last
        self.initial: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # until there is one

    # --- one update

    def step(self, micro_batches: Sequence[Any]) -> None:
        """Update once on the sum of the loss over target tokens / their number, over all micro-batches.

        The learning rate is set once the passes are through. Nothing here waits for the device: loss and
        gradient norm, as it was before clipping, go into `window`.
        """
        update = self.progress.update + 1
        observer = self.observer.at(update)
        tokens, loss, nll = self.passes.run(micro_batches, update, observer)
        norm = self.layout.number(get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        observer.gradients()
        set_learning_rate(self.optimizer, self.schedule.learning_rate(update))
        if self.config.clip:
            clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        self.optimizer.step()
        observer.updated()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.update, self.progress.target_tokens = update, self.progress.target_tokens + tokens
        self.window.add(update, tokens, loss, nll, norm, self.config.clip, self.passes.bad)

    # --- the run

    def fit(self, interruption: Interruption | None = None) -> Outcome:
        """Train until a limit, a signal or divergence, in an `interruption` of the caller's or its own."""
        with interruption or Interruption(ranks=self.ranks) as self.interruption:
            try:
                if reason := self._train():
                    return self._outcome("completed", reason)
                return self._interrupted(self.interruption.name)
            except Interrupted:
                return self._interrupted(self.interruption.heard(self.ranks))
            except Diverged as diverged:
                divergence = examine(self, diverged)
                return self._outcome("diverged", f"{diverged}; {divergence['words']}", divergence)
            finally:
                self.logbook.close()

    def _train(self) -> str:
        """Until a limit, which it names, or a signal; what is due after an update is one line each."""
        ranks, limits, interruption = self.ranks, self.limits, self.interruption
        updates = self._begin()
        while (
            not (reason := limits.reached(self.progress))
            and not interruption.heard(ranks)
            and self._step(updates)
        ):
            self._lap(training=True)
            if self.progress.update == 1 or self._due(self.config.log_every):
                self.log()
            if self._due(self.config.validate_every) and not interruption.heard(ranks):
                self.validate()
            if self._due(self.config.validate_every) or self._due(self.config.save_every):
                self.save()
        if self.saved != self.progress.update:
            self.save()
        if reason and not interruption.heard(ranks):
            self._finish()  # a signal stops this at once: resumed, the run ends again
        return "" if interruption.heard(ranks) else reason

    def log(self) -> None:
        """Read the window (the one synchronisation), write it down, stop if the run has diverged."""
        sums, progress, rate = self.window.read(), self.progress, self.optimizer.param_groups[0]["lr"]
        self._lap(training=True)
        means = self.window.means(sums)
        values = {"epoch": progress.epoch, **means, "learning_rate": rate, **progress.as_logged()}
        self.logbook.training(progress.update, values)
        for line in self.passes.news():
            self.logbook.remark(line)
        self._stop_if_broken(sums)
        if not self.limits.reached(progress):
            level, path = self.unigram_loss, self.logbook.metrics_path
            together(self.ranks, lambda: stop_if_stalled(means["nll"], level, progress, self.config, path))
        self.window.clear()

    def validate(self, final: bool = False) -> None:
        """Measure the model and keep its weights; `final` at the end of a run, where it may not be due.

        A validation that fails, or that a signal breaks off, loses nothing: the state is saved first, and
        `resume` begins with it. Before one that is final it was saved, when nothing of the end had been done.
        """
        progress = self.progress
        self._stop_if_broken(self.window.read())
        self._lap(training=True)
        weights = self.layout.weights()
        try:
            metrics = together(self.ranks, lambda: self._measured(self.layout.whole(weights)))
        except (Exception, Interrupted):
            if not final:
                self.save()
            raise
        score = self._judge(metrics)
        progress.judged(score, metrics)
        if self.schedule.observe(score[0]):
            self.logbook.say(f"update {progress.update:,}: validation stalls, the learning rate is lowered")
        self.ranks.decide(lambda: self.shelf.add(weights, progress, metrics, final))
        self._lap(training=False)

    def save(self) -> None:
        """Write all that `resume` needs to checkpoints/last, then remove weights no longer needed."""
        self._stop_if_broken(self.window.read())
        self._lap(training=True)
        save(self)
        self.ranks.decide(lambda: self.shelf.prune(self.progress))
        self._lap(training=False)

    def resume(self) -> None:
        """Take up the last good state, so that `fit` goes on from there. CheckpointError if there is none."""
        resume(self)

    def rewind(self, before: int) -> int:
        """Take up the state from which an update is run again; its update. Files stay."""
        self.window = Window(self.device)
        return rewind(self, before)

    # --- beginning and ends

    def _begin(self) -> Iterator[list[Any]]:
        progress = self.progress
        self.logbook.open(progress.update, self.total_updates, self.logged)
        for note in self.config.unused_options():
            self.logbook.say(f"note: {note}")
        if self.saved < 0 and self.ranks.size == 1:
            self.initial = copied(self.model), deepcopy(current(self))
        self.model.train()
        self.watch.start()
        if progress.validated < progress.update and self._due(self.config.validate_every):
            self.validate()
            self.save()
        return updates_of(self.stream, progress, self.config.accumulate)

    def _finish(self) -> None:
        """Log and validate what was not due; choose the run's model.

        checkpoints/last stays as it was before: with a higher limit, `resume` goes on as if this end had
        never been.
        """
        progress = self.progress
        if self.window.updates:
            self.log()
        path = self.logbook.metrics_path
        together(self.ranks, lambda: stop_if_lost(self.unigram_loss, progress, path))
        if progress.update and progress.validated < progress.update:
            self.validate(final=True)
        together(self.ranks, self._choose)

    def _choose(self) -> None:
        """The end on the chief: the best weights or their average become the run's model."""
        model = self.layout.whole()
        self.shelf.choose(model, self.progress, lambda: self._measured(model), self._judge)

    def _interrupted(self, name: str) -> Outcome:
        weights, update = self.layout.weights(), self.progress.update
        self.ranks.decide(lambda: self.shelf.publish_if_first(weights, self.progress))
        return self._outcome("interrupted", f"{name} after update {update:,}; --resume goes on")

    def _outcome(self, status: Status, reason: str, divergence: Mapping[str, Any] | None = None) -> Outcome:
        self.logbook.say(f"{status}: {reason}")
        return self.progress.outcome(status, reason, self.shelf.averaged, self.shelf.metrics, divergence)

    # --- parts

    def _step(self, updates: Iterator[list[Any]]) -> bool:
        """The next update, and a line of its probe; a batch that cannot be computed has diverged.
        False if a signal came between two of its micro-batches: then nothing of it is done.
        """
        progress = self.progress
        position, micro_batches = (progress.epoch, progress.batch), next(updates)
        try:
            with self.passes.breakable(micro_batches, lambda: self.interruption.name):
                self.step(micro_batches)
        except Interrupted:
            self.observer.clear()
            progress.epoch, progress.batch = position
            return False
        except (IndexError, RuntimeError) as error:
            rate = self.schedule.learning_rate(progress.update + 1)
            blame(error, micro_batches, self.model, progress, rate, self.ranks)
        if reading := self.monitor.read():
            self.logbook.probe(progress.update, reading)
        return True

    def _measured(self, model: Transformer) -> dict[str, float]:
        """What the validation says of a model; a signal breaks it off. On the chief alone."""
        with self.interruption.breaking():
            return measure(model, self.validator)

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.update % every == 0

    def _lap(self, training: bool) -> None:
        elapsed = self.watch.lap()
        self.progress.seconds += elapsed
        if training:
            self.progress.training_seconds += elapsed
            self.window.seconds += elapsed
        self.logbook.tick(self.progress.update)

    def _stop_if_broken(self, sums: Mapping[str, float]) -> None:
        if broken := int(sums["broken"]):
            stop_broken(broken, self.schedule.learning_rate(broken), self.window.means(sums)["loss"])

    def _judge(self, metrics: Mapping[str, float], averaged: int = 0) -> tuple[float, float]:
        """Write a validation down; the score it makes."""
        samples = "" if self.samples is None else self.samples()
        self.logbook.validation(self.progress.update, metrics, averaged, samples)
        stop_if_not_finite(metrics, self.progress.update, self.optimizer.param_groups[0]["lr"])
        return score_of(metrics, self.config.metric)
