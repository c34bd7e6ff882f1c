"""Where attention looks, and how sharply: logits, entropies, lengths of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from ..core.signature import Doc
from ..core.special import PAD
from ..model.transformer import Transformer
from ..modules.attention import MultiHeadAttention
from ..modules.masks import causal_mask
from ..modules.placements import Placement
from .finding import Finding, by_seed, look
from .registry import PROBES, Probe, Say
from .setting import Arm, Batch, build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTENTIONS = ("encoder self", "decoder self", "cross")
Key: TypeAlias = tuple[str, int]  # which attention, layer from 1


@dataclass(frozen=True)
class Heads:
    """One attention module, a number for each of its H heads.

    `logit`: the largest q k / sqrt(K) of a real query and a key it may see. `entropy`: - sum p ln p in nats,
    mean over real queries. `share`: the same divided by ln n, n the keys that the query sees, mean over those
    that see more than one; 1 is uniform. `query`, `key`: mean length ||q||, ||k|| over real tokens, after
    their norms where there are such. `tokens`: how many queries, queries that see more than one key, and keys
    these are means over.
    """

    logit: Tensor
    entropy: Tensor
    share: Tensor
    query: Tensor
    key: Tensor
    tokens: tuple[int, int, int]


STATISTICS = ("logit", "entropy", "share", "query", "key")


def head_statistics(query: Tensor, key: Tensor, visible: Tensor, real: Tensor, known: Tensor) -> Heads:
    """Of query (B, H, T, K) and key (B, H, S, K).

    `visible` (B or 1, 1, T or 1, S): may the query see the key? `real` (B, T) and `known` (B, S) are False at
    padding, of queries and of keys.
    """
    logits = query @ key.mT / math.sqrt(query.shape[-1])  # (B, H, T, S)
    visible = visible.expand(len(query), 1, *logits.shape[-2:])
    logits = logits.masked_fill(~visible, -math.inf)
    weights = logits.softmax(-1)
    entropy = torch.special.entr(weights).sum(-1)  # (B, H, T)
    keys = visible.sum(-1).to(entropy.dtype)  # (B, 1, T)
    asked, choosing, held = real[:, None], real[:, None] & (keys > 1), known[:, None]
    return Heads(
        logits.masked_fill(~asked[..., None], -math.inf).amax((0, 2, 3)),
        _over(entropy, asked),
        _over(entropy / keys.clamp(min=2).log(), choosing),
        _over(torch.linalg.vector_norm(query, dim=-1), asked),
        _over(torch.linalg.vector_norm(key, dim=-1), held),
        (int(asked.sum()), int(choosing.sum()), int(held.sum())),
    )


def together(parts: Sequence[Heads]) -> Heads:
    """Of batches, or of seeds on the same ones: means over all tokens, and the largest of the logits."""
    queries, choosing, keys = zip(*(part.tokens for part in parts), strict=True)

    def over(name: str, counts: Sequence[int]) -> Tensor:
        total = torch.stack([getattr(part, name) * n for part, n in zip(parts, counts, strict=True)]).sum(0)
        return total / max(sum(counts), 1)

    return Heads(
        torch.stack([part.logit for part in parts]).amax(0),
        over("entropy", queries),
        over("share", choosing),
        over("query", queries),
        over("key", keys),
        (sum(queries), sum(choosing), sum(keys)),
    )


def _over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over batch and tokens: (B, H, L), (B, 1, L) -> (H)."""
    return (values * counted).sum((0, 2)) / counted.sum().clamp(min=1)


def projected(module: MultiHeadAttention, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of x (B, T, D) and keys of memory (B, S, D) as attention has them: in heads, and normed."""
    query = module.query(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
    key = module.key(memory).unflatten(-1, (module.heads, -1)).transpose(1, 2)
    query = query if module.query_norm is None else module.query_norm(query)
    return query, key if module.key_norm is None else module.key_norm(key)


@torch.no_grad()
def attention_of(model: Transformer, batches: Sequence[Batch]) -> dict[Key, Heads]:
    """Statistics of every attention of the model on the batches: encoder's, decoder's and cross apart."""
    real: dict[str, Tensor] = {}
    found: dict[Key, list[Heads]] = {}

    def listen(placement: Placement) -> Any:
        site = placement.site

        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            assert isinstance(module, MultiHeadAttention)
            x, memory = args[0], args[1] if len(args) > 1 else args[0]
            mask = args[2] if len(args) > 2 else kwargs.get("mask")
            if kwargs.get("causal"):
                mask = causal_mask(x.shape[1], device=x.device)
            known = real["encoder" if site.is_cross_attention else site.stack]
            visible = known[:, None, None, :] if mask is None else mask
            name = "cross" if site.is_cross_attention else f"{site.stack} self"
            query, key = projected(module, x, memory)
            of = head_statistics(query, key, visible, real[site.stack], known)
            found.setdefault((name, site.layer + 1), []).append(of)

        return hook

    hooks = [
        sublayer.register_forward_pre_hook(listen(placement), with_kwargs=True)
        for placement, sublayer in model.sites()
        if isinstance(sublayer, MultiHeadAttention)
    ]
    for source, target_in, target_out in batches:
        real |= {"encoder": source != PAD, "decoder": target_out != PAD}
        model.hidden(source, target_in)
    for hook in hooks:
        hook.remove()
    return {
        key: together(found[key]) for key in sorted(found, key=lambda key: (ATTENTIONS.index(key[0]), key[1]))
    }


@PROBES.register(
    "attention",
    title="Saturation of attention",
    equation="max q k / sqrt(K); - sum p ln p / ln(visible keys); ||q||, ||k||",
    note="An entropy near 0 with large logits is saturated attention, whose gradient vanishes.",
)
@final
class Attention(Probe):
    """Largest logit, entropy of the rows and lengths of queries and keys, of each attention.

    The entropy's share of ln n, n the keys a query sees, is 1 for uniform attention and 0 for one that looks
    at a single token. Mean over seeds; the largest logit is that of all seeds.
    """

    checkpoint = True

    def __init__(
        self, *, heads: Annotated[bool, Doc("one row of the table for each head, not each layer")] = False
    ) -> None:
        self.by_head = heads

    def run(
        self,
        arms: Sequence[Arm],
        batches: list[Batch],
        sizes: tuple[int, int],
        seeds: Sequence[int],
        say: Say,
    ) -> Finding:
        found: dict[str, dict[Key, Heads]] = {}
        records: list[dict[str, Any]] = []
        for arm in arms:
            runs = []
            for seed in seeds:
                runs.append(attention_of(build(arm, sizes, seed, batches[0]), batches))
                say(f"{arm.label}, seed {seed}: {len(runs[-1])} attentions")
            found[arm.label] = {key: together([run[key] for run in runs]) for key in runs[0]}
            places = ("arm", "attention", "layer", "head")
            tables = [_by_head(arm.label, run) for run in runs]
            records += by_seed((*places, *STATISTICS), len(places), tables)
        rows = [
            row
            for label, heads in found.items()
            for key in heads
            for row in self._rows(label, key, heads[key])
        ]
        return Finding(
            "attention",
            [
                *("arm", "attention", "layer", *(["head"] if self.by_head else [])),
                *("largest logit", "entropy", "share of ln n", "lowest head", "||q||", "||k||"),
            ],
            rows,
            ["arm", "attention", "largest logit", "share of ln n", "lowest head"],
            [row for label, heads in found.items() for row in _summary(label, heads)],
            [
                "Entropy in nats, mean over queries; share of ln n: 1 is uniform over the n visible keys, 0 a"
                " single one.",
                *_words(found),
            ],
            {
                "by_seed": records,
                "definition": " ".join((Heads.__doc__ or "").split()),
            },
            partial(_draw, found),
        )

    def _rows(self, label: str, key: Key, heads: Heads) -> list[list[Any]]:
        if self.by_head:
            return [
                [
                    *(label, *key, head + 1, heads.logit[head].item(), heads.entropy[head].item()),
                    *(heads.share[head].item(), heads.share[head].item()),
                    *(heads.query[head].item(), heads.key[head].item()),
                ]
                for head in range(len(heads.logit))
            ]
        middle = (t.mean().item() for t in (heads.entropy, heads.share))
        lengths = (t.mean().item() for t in (heads.query, heads.key))
        return [[label, *key, heads.logit.max().item(), *middle, heads.share.min().item(), *lengths]]


def _by_head(label: str, run: dict[Key, Heads]) -> list[list[Any]]:
    return [
        [label, *key, head + 1, *(getattr(heads, name)[head].item() for name in STATISTICS)]
        for key, heads in run.items()
        for head in range(len(heads.logit))
    ]


def _summary(label: str, heads: dict[Key, Heads]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name in ATTENTIONS:
        of = [values for (attention, _), values in heads.items() if attention == name]
        if of:
            logit = max(values.logit.max().item() for values in of)
            share = mean(values.share.mean().item() for values in of)
            rows.append([label, name, logit, share, min(values.share.min().item() for values in of)])
    return rows


def _words(found: dict[str, dict[Key, Heads]]) -> list[str]:
    words = []
    for label, heads in found.items():
        (name, layer), most = min(heads.items(), key=lambda item: item[1].share.min().item())
        words.append(
            f"{label}: the sharpest head is number {int(most.share.argmin()) + 1} of {name}, layer {layer}:"
            f" {most.share.min().item():.3f} of the largest entropy."
        )
    return words


def _draw(found: dict[str, dict[Key, Heads]], figure: Figure) -> None:
    figure.set_size_inches(11, 6)
    panels = figure.subplots(2, 3, sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(ATTENTIONS):
        for number, (label, heads) in enumerate(found.items()):
            of = [(layer, values) for (attention, layer), values in heads.items() if attention == name]
            layers = [layer for layer, _ in of]
            style = look(number)
            panels[0, column].plot(layers, [v.share.mean().item() for _, v in of], **style, label=label)
            panels[1, column].plot(layers, [v.logit.max().item() for _, v in of], **style)
            beside = 0.06 * (number - (len(found) - 1) / 2)
            for layer, values in of:
                places = [layer + beside] * len(values.share)
                panels[0, column].plot(places, values.share.tolist(), ".", color=style["color"], alpha=0.5)
        panels[0, column].set_title(name, loc="left")
        panels[1, column].set_xlabel("layer")
        panels[1, column].xaxis.get_major_locator().set_params(integer=True)
    panels[0, 0].set_ylim(0, 1.05)
    panels[0, 0].set_ylabel("entropy / ln(visible keys)\nline: mean, dots: heads")
    panels[1, 0].set_ylabel("largest logit")
    for axes in panels.flat:
        axes.grid(axis="y", alpha=0.25)
    panels[0, 0].legend(frameon=False)
