"""Hugging Face transformers: MarianMTModel in a loop as its users write it, and `generate`.

Post-LN, the only one Marian has; one matrix for all embeddings; batches by length. The loss is ours to make:
Marian's own has no label smoothing, which its Trainer adds on the logits just so. float32; the variant bf16
puts `torch.autocast` around forward and loss, and around all of the translation, so that weights are cast
once. Generation is forced to 16 new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel

from . import shapes, text
from .meter import Task, adapter, filled, translated
from .plain import autocast, tensor
from .same_work import attention


def new(shape: shapes.Shape) -> Any:
    torch.manual_seed(1)
    config = MarianConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.d_model,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.d_ff,
        decoder_ffn_dim=shape.d_ff,
        activation_function="relu",
        dropout=shapes.DROPOUT,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_position_embeddings=128,
        scale_embedding=True,
        pad_token_id=shapes.PAD,
        bos_token_id=shapes.BOS,
        eos_token_id=shapes.EOS,
        forced_eos_token_id=None,
        decoder_start_token_id=shapes.BOS,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
    )
    return MarianMTModel(config)


def train(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    meter = task.meter()
    network = new(task.sizes).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), shapes.LEARNING_RATE, shapes.BETAS, shapes.EPSILON, weight_decay=0.0
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
                output = network(
                    input_ids=source,
                    attention_mask=(source != shapes.PAD).long(),
                    decoder_input_ids=target[:, :-1],
                    use_cache=False,
                )
                loss = loss_of(output.logits.flatten(0, 1), wanted.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), shapes.CLIP)
            meter.loss(loss.item())
            optimizer.step()
            rate.step()
    return meter.result()


def model(task: Task) -> None:
    new(task.sizes).save_pretrained(task.model)


def translate(task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    network = MarianMTModel.from_pretrained(task.model).eval()
    batches = text.test_batches(task.data)
    length = shapes.STEPS

    def search(batch: list[list[int]], beam: int) -> list[list[int]]:
        source = tensor([[*ids, shapes.EOS] for ids in batch])
        with torch.inference_mode():
            found = network.generate(
                input_ids=source,
                attention_mask=(source != shapes.PAD).long(),
                num_beams=beam,
                do_sample=False,
                min_new_tokens=length,
                max_new_tokens=length,
                suppress_tokens=[shapes.PAD, shapes.UNK, shapes.BOS],
            )
        rows: list[list[int]] = found[:, 1:].tolist()
        if any(shapes.EOS in row for row in rows):
            raise RuntimeError("an EOS came before the forced length")
        return rows

    with autocast(task):
        return translated(
            lambda beam: [ids for batch in batches for ids in search(batch, beam)],
            lambda beam: search(batches[0], beam),
            sum(map(len, batches)),
        )


if __name__ == "__main__":
    adapter(model=model, train=train, translate=translate)
