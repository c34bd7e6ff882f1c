"""What each process of a run in several does; a file of its own, so that it can be spawned."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from transformer.data.batching import Batch, BatchStream, Share
from transformer.data.encoded import EncodedCorpus
from transformer.model.transformer import Transformer
from transformer.training.config import TrainConfig
from transformer.training.logbook import Logbook, Mute
from transformer.training.loss import sequence_loss
from transformer.training.ranks import ALONE, RankLost, Ranks, open_ranks
from transformer.training.trainer import Trainer

VOCAB = 20
LOST = 41  # exit code of a rank that has found another one gone

# name -> (flags of the model, options of training)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pre": ({"placement": "pre"}, {}),
    "post, untied": ({"placement": "post", "tie_embeddings": "none"}, {"label_smoothing": 0.0}),
    "batch norm": ({"norm": {"encoder": "batch", "decoder": "layer"}}, {"accumulate": 2}),
    "power norm": ({"norm": {"encoder": "power", "decoder": "layer"}}, {"probe_every": 2}),
    "accumulate": ({"placement": "post"}, {"accumulate": 3, "optimizer": "adamw", "weight_decay": 0.1}),
    "few rows": ({}, {"batch_tokens": 14, "updates": 12, "probe_every": 1}),
    "checkpointed": ({}, {"checkpoint_activations": True}),
    "scalars": ({"norm": {"encoder": "frn", "decoder": "derf"}, "qk_norm": "l2"}, {"accumulate": 2}),
    "scalar gates": ({"placement": {"encoder": "rezero", "decoder": "fixup"}, "norm": "none"}, {}),
    "sgd": ({"norm": "rms", "fix_norm": True}, {"optimizer": "sgd", "lr": 0.1}),
}
SHARDED = ("pre", "batch norm", "accumulate", "few rows", "checkpointed", "scalars", "scalar gates", "sgd")


def corpus(pairs: int = 60) -> EncodedCorpus:
    draw = random.Random(5)

    def side() -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(draw.randint(1, 9))]

    return EncodedCorpus.of([(side(), side()) for _ in range(pairs)])


class Noting(BatchStream):
    """Writes down which pairs each batch has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.dealt: list[list[int]] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            self.dealt.append(batch.indices.tolist())
            yield batch


def validate(model: Transformer) -> Mapping[str, float]:
    batch = next(BatchStream(corpus(), 400, 1, shuffle=False).epoch(1))
    loss, _ = sequence_loss(
        model.hidden(batch.source, batch.target_in), model.output_weight, batch.target_out
    )
    return {"loss": loss.item() / batch.target_tokens}


def trainer_of(case: str, folder: Path, ranks: Ranks = ALONE, **more: Any) -> Trainer:
    flags, options = CASES[case]
    shape = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1}
    model = Transformer(VOCAB, VOCAB, **{**shape, "dropout": 0.0, "tie_embeddings": "all", **flags}).double()
    common = {"updates": 5, "warmup": 2, "lr": 3e-3, "metric": "loss", "validate_bleu": False}
    common |= {"precision": "float32", "batch_tokens": 90, "validate_every": 3, "log_every": 2, "average": 2}
    config = TrainConfig(**{**common, **options, **more})
    stream = Noting(corpus(), config.batch_tokens, 1, share=Share(ranks.rank, ranks.size))
    logbook = Logbook(folder, tensorboard=False, quiet=True) if ranks.chief else Mute(folder)
    return Trainer(model, stream, config, folder, validate, logbook=logbook, ranks=ranks)


def report(trainer: Trainer) -> dict[str, Any]:
    """What must be the same, however many processes there are, but for rounding; and this rank's pairs."""
    assert isinstance(trainer.stream, Noting)
    return {
        "weights": {name: tensor.clone() for name, tensor in trainer.layout.weights().items()},
        "progress": {
            key: value for key, value in trainer.progress.state_dict().items() if "seconds" not in key
        },
        "dealt": trainer.stream.dealt,
    }


def train(case: str, folder: Path, ranks: Ranks = ALONE, resume: bool = False, **more: Any) -> dict[str, Any]:
    trainer = trainer_of(case, folder, ranks, **more)
    if resume:
        trainer.resume()
    outcome = trainer.fit()
    return {**report(trainer), "status": outcome.status}


def interrupted(case: str, folder: Path, ranks: Ranks, layout: str, by: int) -> dict[str, Any]:
    """A run whose first validation a signal to rank `by` alone breaks off, and which then goes on."""
    trainer, begun = trainer_of(case, folder, ranks, parallel=layout), folder / "validating"

    def send() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def long(model: Transformer) -> Mapping[str, float]:
        begun.touch()
        for _ in range(6000):
            time.sleep(0.01)  # a signal's handler runs between two of them
        return validate(model)

    trainer.validator = long
    if ranks.rank == by:
        threading.Thread(target=send, daemon=True).start()
    outcome, progress = trainer.fit(), trainer.progress
    assert (outcome.status, progress.update, progress.validated) == ("interrupted", 3, 0)
    assert "SIGTERM" in outcome.reason
    return train(case, folder, ranks, resume=True, parallel=layout)


def short(case: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A run in which memory fails the last rank in the last micro-batch of two updates.

    In the backward pass of the second, as if none of its size had gone well before; in the forward pass of
    the fourth.
    """
    trainer = trainer_of(case, folder, ranks)
    model, step, failed, passes = trainer.model, trainer.step, list[int](), list[int]()

    def stepping(batches: Any) -> None:
        passes.clear()
        if trainer.progress.update == 1:
            trainer.passes.fitting.largest = 0
        step(batches)

    def fail(update: int) -> None:
        if trainer.progress.update == update and len(passes) == trainer.config.accumulate:
            failed.append(update)
            raise torch.OutOfMemoryError("CUDA out of memory")

    def after(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if model.training and ranks.rank == ranks.size - 1:
            passes.append(len(output))
            fail(3)
            output.register_hook(lambda _: fail(1))

    trainer.step = stepping  # type: ignore[method-assign]
    model.encoder.register_forward_hook(after)
    outcome = trainer.fit()
    assert failed == [1, 3] * (ranks.rank == ranks.size - 1)
    assert trainer.passes.fitting.count == len(failed)
    return {**report(trainer), "status": outcome.status}


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a process on one machine."""
    sizes = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes, **there}


def work(
    rank: int, size: int, port: int, folder: str, names: tuple[str, ...], resumed: str, killed: bool
) -> None:
    """Train each case, in each layout that has it; go on with runs of one process; see a rank die.

    `resumed` names the case that the runs `resumed, LAYOUT` are of, and where they end, if not as it does.
    Without it the cases are all but the death.
    """
    os.environ.update(environment(rank, size, port))
    torch.set_num_threads(1)
    place = Path(folder)
    with open_ranks(torch.device("cpu")) as ranks:
        results = {f"{name}, ddp": train(name, place / f"{name}, ddp", ranks) for name in names}
        for name in (name for name in names if name in SHARDED):
            results[f"{name}, fsdp"] = train(name, place / f"{name}, fsdp", ranks, parallel="fsdp")
        if names and resumed:
            for layout, by in (("fsdp", 0), ("ddp", ranks.size - 1)):
                name = f"interrupted, {layout}"
                results[name] = interrupted("accumulate", place / name, ranks, layout, by)
            results["short, ddp"] = short("accumulate", place / "short", ranks)
        case, _, updates = resumed.partition(" ")
        more = {"updates": int(updates)} if updates else {}
        for layout in ("ddp", "fsdp"):
            directory = place / f"resumed, {layout}"
            if ranks.decide(directory.exists):
                results[directory.name] = train(case, directory, ranks, True, parallel=layout, **more)
        torch.save(results, place / f"results{rank}.pt")
        if killed:
            _die(rank, place, ranks)


def _die(rank: int, place: Path, ranks: Ranks) -> None:
    trainer = trainer_of("pre", place / "killed", ranks, updates=1000)
    if rank == 1:
        step = trainer.step

        def dying(batches: Any) -> None:
            if trainer.progress.update == 4:
                os.kill(os.getpid(), 9)
            step(batches)

        trainer.step = dying  # type: ignore[method-assign]
    try:
        trainer.fit()
    except RankLost as error:
        (place / f"lost{rank}").write_text(str(error))
        os._exit(LOST)


def wait(rank: int, port: int, folder: str) -> None:
    """Rank 0 prepares for longer than anybody waits; a signal, whose handler raises, ends the other one."""
    os.environ.update(environment(rank, 2, port))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_ranks(torch.device("cpu")) as ranks, ranks.chief_first():
            (Path(folder) / "preparing").touch()
            time.sleep(600)
    except KeyboardInterrupt:
        os._exit(LOST)
