"""What is measured, and on what: arms of a comparison, batches, and models built for one."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, Problem
from ..core.explaining import explain_failures
from ..core.plans import Plan, names, shown
from ..core.registry import Registry
from ..core.seeding import derive_seed
from ..core.signature import options_of
from ..core.special import EOS, PAD
from ..data import batching
from ..data.dataset import DataConfig, prepare
from ..model.config import ModelConfig
from ..model.pairing import normless
from ..model.transformer import Transformer
from ..modules.norms import NORMS, Norm
from ..modules.placements import PLACEMENTS
from ..training.checkpoint import load_model_weights

# source (B, S), target_in (B, T), target_out (B, T): int64, right-padded with PAD.
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label like `post` or `pre rms 12+12`, and the model it stands for.

    With `weights`, a file of a run, it is the trained model; without, that of a seed's initial values.
    """

    label: str
    config: ModelConfig
    weights: Path | None = None

    @property
    def family(self) -> str:
        """The label without the depth: arms of a family differ in depth alone."""
        return self.label.removesuffix(f" {self.config.encoder_layers}+{self.config.decoder_layers}")


def arms(
    base: ModelConfig,
    placements: Sequence[Plan] = (),
    norms: Sequence[Plan] = (),
    depths: Sequence[int] = (),
) -> list[Arm]:
    """Every placement with every norm at every depth N = M; an empty list stands for what `base` has.

    Options of placements and norms go to the arms that have them, and where no norm was asked for, one
    without norms gets none. ConfigError with the problems of all arms.
    """
    given = base.model_dump(exclude_unset=True)
    built, problems = [], []
    for placement in placements or (base.placement,):
        for norm in norms or (None,):
            for depth in depths or (None,):
                values = {**given, "placement": placement}
                if norm is not None:
                    values["norm"] = norm
                elif normless(placement):
                    values.pop("norm", None)
                if depth is not None:
                    values["encoder_layers"] = values["decoder_layers"] = depth
                _keep_own_options(values, "placement", PLACEMENTS, [*placements, base.placement])
                _keep_own_options(values, "norm", NORMS, [*norms, base.norm])
                label = _label(values, len(norms) > 1, len(depths) > 1)
                config, refused = explain_failures(ModelConfig, values, lambda path: "")
                at = [Problem(f"{label}: model.{p.path}", p.message, p.source, p.hint) for p in refused]
                problems += at
                if config is not None:
                    built.append(Arm(label, config))
    if problems:
        raise ConfigError(problems)
    labels = [arm.label for arm in built]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"two arms are the same: {', '.join(labels)}; name each choice once")
    return built


def _keep_own_options(
    values: dict[str, Any], field: str, registry: Registry[Any], all_arms: list[Plan]
) -> None:
    """Leave out options that another arm's choice declares and this one's does not."""
    own, others = (
        {o for name in chosen if name in registry for o in options_of(registry[name]).model_fields}
        for chosen in (names(values.get(field)), [name for plan in all_arms for name in names(plan)])
    )
    options: Mapping[str, Any] = values.get(f"{field}_options", {})
    if options:
        values[f"{field}_options"] = {k: v for k, v in options.items() if k in own or k not in others}


def _label(values: Mapping[str, Any], with_norm: bool, with_depth: bool) -> str:
    parts = [shown(values["placement"])]
    parts += [shown(values.get("norm", "none"))] if with_norm else []
    parts += [f"{values['encoder_layers']}+{values['decoder_layers']}"] if with_depth else []
    return " ".join(parts)


def random_batches(count: int, sentences: int, length: int, vocabulary: int, seed: int) -> list[Batch]:
    """Batches of uniform tokens; sentences have length/2 to length tokens, the end mark included.

    A batch's first sentence has the full length, so that all batches have one shape.
    """
    draw = random.Random(derive_seed(seed, "random batches"))
    shortest = max(length // 2, 2)

    def sentence(place: int) -> list[int]:
        tokens = length if place == 0 else draw.randint(shortest, max(length, shortest))
        return [draw.randrange(EOS + 1, vocabulary) for _ in range(max(tokens, 2) - 1)]

    def batch() -> Batch:
        pairs = [(sentence(place), sentence(place)) for place in range(sentences)]
        return _as_batch(batching.collate(pairs, range(sentences)))

    return [batch() for _ in range(count)]


def real_batches(
    config: DataConfig,
    count: int,
    tokens: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
    tokenizer: Path | None = None,
) -> tuple[list[Batch], tuple[int, int]]:
    """The first `count` training batches of up to `tokens` tokens a side, and the sizes of the vocabularies.

    `tokenizer` is the directory of a run's. The text comes as in training, whole subwords alone; nothing but
    the data cache is written.
    """
    plain = {"sampling": 0.0} | ({} if tokenizer is None else {"path": str(tokenizer)})
    config = config.model_copy(update={"test": {}, "tokenizer": config.tokenizer.model_copy(update=plain)})
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(config, Path(folder), seed, say)
        sizes = prepared.source_tokenizer.size, prepared.target_tokenizer.size
        stream = prepared.stream(tokens)
        found: list[Batch] = []
        epoch = 0
        while len(found) < count:
            found += [
                _as_batch(b) for b, _ in zip(stream.epoch(epoch), range(count - len(found)), strict=False)
            ]
            epoch += 1
    return found, sizes


def _as_batch(batch: batching.Batch) -> Batch:
    return batch.source, batch.target_in, batch.target_out


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    source, target_in, target_out = batch
    return source.to(device), target_in.to(device), target_out.to(device)


def build(
    arm: Arm,
    sizes: tuple[int, int],
    seed: int,
    batch: Batch | None = None,
    device: torch.device | str | None = None,
) -> Transformer:
    """The arm's model without dropout, float32: with initial values of `seed`, or with the arm's weights.

    It is in evaluation mode, but for norms with statistics of the batch: before any training these take the
    batch's own, as the first update does. Placements whose initial values hang on a batch get them from
    `batch`, else from random tokens. The device is by default that of `batch`, else the CPU.
    """
    source, target_in, _ = batch or random_batches(1, 16, 24, min(sizes), seed)[0]
    model = Transformer(*sizes, arm.config, seed=seed)
    if arm.weights is not None:
        load_model_weights(arm.weights, model)
    model.to(source.device if device is None else device).eval()
    if arm.weights is None:
        model.calibrate(source, target_in, seed=seed)
        for module in model.modules():
            if isinstance(module, Norm) and module.span == "batch":
                module.train()
    return model


def mean_loss(model: Transformer, batch: Batch) -> Tensor:
    """Sum of -log p over the target tokens that are not padding, divided by their number; no smoothing.

    Twice differentiable, unlike the training's loss, from which it differs by rounding alone.
    """
    source, target_in, target_out = batch
    logits = model(source, target_in)
    return F.cross_entropy(logits.flatten(0, 1), target_out.flatten(), ignore_index=PAD)
