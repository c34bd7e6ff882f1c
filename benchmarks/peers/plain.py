"""The loop one would write around `torch.nn.Transformer`: float32, all logits, torch's own loss and Adam.

Pre-LN with a final norm in both stacks, one matrix for all embeddings, sinusoidal positions, batches by
length. Translation keeps no cache: `nn.Transformer` has none, so every step runs the whole prefix. Sixteen
steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import shapes, text
from .meter import Task, adapter, translated


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
        self.dropout = nn.Dropout(shapes.DROPOUT)
        angles = torch.arange(shapes.LONGEST + 2)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        self.positions: Tensor
        self.register_buffer("positions", torch.stack((angles.sin(), angles.cos()), -1).flatten(1))

    def embed(self, ids: Tensor) -> Tensor:
        embedded = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(embedded + self.positions[: ids.shape[1]])  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        mask = source == shapes.PAD
        return self.transformer.encoder(self.embed(source), src_key_padding_mask=mask)  # type: ignore[no-any-return]

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return self.transformer.decoder(  # type: ignore[no-any-return]
            self.embed(target), memory, causal, memory_key_padding_mask=mask, tgt_is_causal=True
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        hidden = self.decode(target, self.encode(source), source == shapes.PAD)
        return F.linear(hidden, self.embedding.weight)


def tensor(rows: list[list[int]]) -> Tensor:
    return torch.tensor(text.padded(rows, shapes.PAD))


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
    with meter.training():
        for batch in text.buckets(text.pairs(task.data)):
            source = tensor([[*s, shapes.EOS] for s, _ in batch])
            target = tensor([[shapes.BOS, *t, shapes.EOS] for _, t in batch])
            wanted = target[:, 1:]
            meter.count(int((wanted != shapes.PAD).sum()), wanted.numel())
            optimizer.zero_grad()
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


def search(network: Plain, batch: list[list[int]], beam: int) -> list[list[int]]:
    """Beam search of a fixed length, by the sum of log-probabilities."""
    source = tensor([[*ids, shapes.EOS] for ids in batch])
    memory = network.encode(source).repeat_interleave(beam, 0)
    mask = (source == shapes.PAD).repeat_interleave(beam, 0)
    found = torch.full((len(memory), 1), shapes.BOS)
    scores = torch.zeros(len(batch), beam)
    scores[:, 1:] = -torch.inf  # all hypotheses are one at first
    first = torch.arange(len(batch))[:, None] * beam
    for _ in range(shapes.TARGET_LENGTH):
        hidden = network.decode(found, memory, mask)[:, -1]
        log_probs = F.linear(hidden, network.embedding.weight).log_softmax(-1)
        log_probs[:, : len(shapes.CONTROLS)] = -torch.inf  # EOS among them: the length is forced
        totals = (scores.view(-1, 1) + log_probs).view(len(batch), -1)
        scores, places = totals.topk(beam)
        rows = (first + places // log_probs.shape[1]).flatten()
        tokens = (places % log_probs.shape[1]).view(-1, 1)
        found = torch.cat([found[rows], tokens], 1)
    best: list[list[int]] = found[::beam, 1:].tolist()
    return best


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    network = Plain(task.sizes)
    network.load_state_dict(torch.load(task.model / "model.pt", weights_only=True))
    network.eval()
    batches = text.test_batches(task.data)
    with torch.inference_mode():
        return translated(
            lambda beam: [ids for batch in batches for ids in search(network, batch, beam)],
            lambda beam: search(network, batches[0], beam),
            sum(map(len, batches)),
        )


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)
