"""The plain loop's model, translated with a cache that is written by hand; translation only.

Keys and values of the memory are computed once and shared by a sentence's beams; each step runs one token,
adds its keys and values to those of its row, and rows are reordered by `index_select`. The attention is
torch's. float32; the variant bf16 has all weights in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import shapes
from .meter import Task, adapter
from .plain import Plain, load, measured, model, tensor


def heads(x: Tensor, number: int) -> Tensor:
    """(R, T, D) -> (R, H, T, K)."""
    return x.view(*x.shape[:2], number, -1).transpose(1, 2)


class Cached:
    """The steps of a batch: B sentences, R = B x beam rows, S places in the source."""

    def __init__(self, network: Plain, batch: list[list[int]], beam: int) -> None:
        self.network, self.sentences = network, len(batch)
        self.layers: Any = network.transformer.decoder.layers
        source = tensor([[*ids, shapes.EOS] for ids in batch])
        memory = network.encode(source)
        self.seen = (source != shapes.PAD)[:, None, None]  # (B, 1, 1, S)
        self.memory: list[tuple[Tensor, Tensor]] = []  # of each layer: keys and values (B, H, S, K)
        self.own: list[tuple[Tensor, Tensor]] = []  # (R, H, t, K)
        for layer in self.layers:
            cross, width = layer.multihead_attn, memory.shape[-1]
            both = F.linear(memory, cross.in_proj_weight[width:], cross.in_proj_bias[width:])
            keys, values = both.chunk(2, -1)
            self.memory.append((heads(keys, cross.num_heads), heads(values, cross.num_heads)))
            none = memory.new_empty(len(batch) * beam, cross.num_heads, 0, cross.head_dim)
            self.own.append((none, none))

    def __call__(self, found: Tensor, rows: Tensor) -> Tensor:
        x = self.network.embed(found[:, -1:], found.shape[1] - 1)  # (R, 1, D)
        for i, layer in enumerate(self.layers):
            x = x + self.attend(i, layer.self_attn, layer.norm1(x), rows)
            x = x + self.attend_to_memory(i, layer.multihead_attn, layer.norm2(x))
            x = x + layer.linear2(layer.linear1(layer.norm3(x)).relu())
        norm: Any = self.network.transformer.decoder.norm
        return self.network.project(norm(x[:, 0])).float()

    def attend(self, i: int, attention: nn.MultiheadAttention, x: Tensor, rows: Tensor) -> Tensor:
        all_three = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (heads(part, attention.num_heads) for part in all_three.chunk(3, -1))
        keys, values = (past.index_select(0, rows) for past in self.own[i])
        keys, values = torch.cat((keys, key), 2), torch.cat((values, value), 2)
        self.own[i] = keys, values
        found = F.scaled_dot_product_attention(query, keys, values)
        return attention.out_proj(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def attend_to_memory(self, i: int, attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
        """A sentence's beams are so many queries of one memory: it is neither repeated nor reordered."""
        width = x.shape[-1]
        query = F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        query = heads(query.view(self.sentences, -1, width), attention.num_heads)
        keys, values = self.memory[i]
        found = F.scaled_dot_product_attention(query, keys, values, self.seen)
        return attention.out_proj(found.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def translate(task: Task) -> dict[str, Any]:
    return measured(task, load(task).to(torch.bfloat16 if task.variant == "bf16" else torch.float32), Cached)


if __name__ == "__main__":
    adapter(model=model, translate=translate)
