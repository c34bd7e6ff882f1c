"""The loop one would write around `torch.nn.Transformer`: all logits, torch's own loss and Adam.

Pre-LN with a final norm in both stacks, one matrix for all embeddings, sinusoidal positions, batches by
length. Translation keeps no cache: `nn.Transformer` has none, so every step runs the whole prefix; with one
that is written by hand it is `plain-cached`. float32; the variant bf16 puts `torch.autocast` around forward
and loss, and around all of the translation, so that weights are cast once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import shapes, text
from .meter import Task, adapter, filled, translated
from .same_work import attention

# (all tokens so far (R, t), the row each continues (R)) -> logits of the next (R, V); R is sentences x beam
Step: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Plain(nn.Module):
    """Embedding, positions, `nn.Transformer`, the embedding's matrix again."""

    def __init__(self, shape: shapes.Shape) -> None:
        super().__init__()
        width = shape.d_model
        self.embedding = nn.Embedding(shape.vocabulary, width, padding_idx=shapes.PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.transformer = nn.Transformer(
            width,
            shape.heads,
            shape.layers,
            shape.layers,
            shape.d_ff,
            shapes.DROPOUT,
            batch_first=True,
            norm_first=True,
        )
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            layer.dropout.p = layer.self_attn.dropout = 0.0  # of the hidden layer, of attention's weights
            if hasattr(layer, "multihead_attn"):
                layer.multihead_attn.dropout = 0.0
        self.dropout = nn.Dropout(shapes.DROPOUT)
        angles = torch.arange(shapes.LONGEST + 2)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        self.positions: Tensor
        self.register_buffer("positions", torch.stack((angles.sin(), angles.cos()), -1).flatten(1))

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        embedded = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(embedded + self.positions[start : start + ids.shape[1]])  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        mask = source == shapes.PAD
        return self.transformer.encoder(self.embed(source), src_key_padding_mask=mask)  # type: ignore[no-any-return]

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return self.transformer.decoder(  # type: ignore[no-any-return]
            self.embed(target), memory, causal, memory_key_padding_mask=mask, tgt_is_causal=True
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.project(self.decode(target, self.encode(source), source == shapes.PAD))

    def project(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)


def tensor(rows: list[list[int]]) -> Tensor:
    return torch.tensor(text.padded(rows, shapes.PAD))


def autocast(task: Task) -> torch.autocast:
    """bf16 products where the variant asks for them."""
    return torch.autocast("cpu", torch.bfloat16, enabled=task.variant == "bf16")


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    torch.manual_seed(1)
    meter = task.meter()
    network = Plain(task.sizes).train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=shapes.LEARNING_RATE, betas=shapes.BETAS, eps=shapes.EPSILON
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1, (update + 1) / shapes.WARMUP))
    loss_of = nn.CrossEntropyLoss(ignore_index=shapes.PAD, label_smoothing=shapes.LABEL_SMOOTHING)
    with meter.training(), attention(task):
        for batch in text.buckets(text.pairs(task.data)):
            source = tensor([[*s, shapes.EOS] for s, _ in batch])
            target = tensor([[shapes.BOS, *t, shapes.EOS] for _, t in batch])
            wanted = target[:, 1:]
            meter.count(filled(source, shapes.PAD), filled(wanted, shapes.PAD))
            optimizer.zero_grad()
            with autocast(task):
                logits = network(source, target[:, :-1])
                loss = loss_of(logits.flatten(0, 1), wanted.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), shapes.CLIP)
            meter.loss(loss.item())
            optimizer.step()
            rate.step()
    return meter.result()


def model(task: Task) -> None:
    torch.manual_seed(1)
    torch.save(Plain(task.sizes).state_dict(), task.model / "model.pt")


def search(step: Step, sentences: int, beam: int) -> list[list[int]]:
    """Beam search of a fixed length, by the sum of log-probabilities."""
    first = torch.arange(sentences)[:, None] * beam
    found, rows = torch.full((sentences * beam, 1), shapes.BOS), torch.arange(sentences * beam)
    scores = torch.zeros(sentences, beam)
    scores[:, 1:] = -torch.inf  # all hypotheses are one at first
    for _ in range(shapes.STEPS):
        log_probs = step(found, rows).log_softmax(-1)
        log_probs[:, : len(shapes.CONTROLS)] = -torch.inf  # EOS among them: the length is forced
        totals = (scores.view(-1, 1) + log_probs).view(sentences, -1)
        scores, places = totals.topk(beam)
        rows = (first + places // log_probs.shape[1]).flatten()
        tokens = (places % log_probs.shape[1]).view(-1, 1)
        found = torch.cat([found[rows], tokens], 1)
    best: list[list[int]] = found[::beam, 1:].tolist()
    return best


def whole_prefix(network: Plain, batch: list[list[int]], beam: int) -> Step:
    """Without a cache."""
    source = tensor([[*ids, shapes.EOS] for ids in batch])
    memory = network.encode(source).repeat_interleave(beam, 0)
    mask = (source == shapes.PAD).repeat_interleave(beam, 0)
    return lambda found, _: network.project(network.decode(found, memory, mask)[:, -1])


def load(task: Task) -> Plain:
    network = Plain(task.sizes)
    network.load_state_dict(torch.load(task.model / "model.pt", weights_only=True))
    return network.eval()


def measured(
    task: Task, network: Plain, begin: Callable[[Plain, list[list[int]], int], Step]
) -> dict[str, Any]:
    """Translation of the test set; `begin` encodes a batch and returns its steps."""
    torch.set_num_threads(task.threads)
    batches = text.test_batches(task.data)

    def found(batch: list[list[int]], beam: int) -> list[list[int]]:
        return search(begin(network, batch, beam), len(batch), beam)

    with torch.inference_mode():
        return translated(
            lambda beam: [ids for batch in batches for ids in found(batch, beam)],
            lambda beam: found(batches[0], beam),
            sum(map(len, batches)),
        )


def translate(task: Task) -> dict[str, Any]:
    with autocast(task):
        return measured(task, load(task), whole_prefix)


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)
