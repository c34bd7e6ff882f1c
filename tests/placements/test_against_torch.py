"""With copied weights, `post` and `pre` are torch.nn.Transformer's layers: float64, forward and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transformer import Transformer
from transformer.model.layers import DecoderLayer, EncoderLayer
from transformer.modules.attention import MultiHeadAttention
from transformer.modules.masks import causal_mask, padding_mask

D, H, F, B, S, T, V = 16, 4, 40, 3, 7, 5, 30
ACTIVATIONS = ["relu", "gelu"]


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@torch.no_grad()
def copy_layer(ours: EncoderLayer | DecoderLayer, theirs: nn.Module) -> None:
    copy_attention(ours.self_attention, theirs.self_attn)
    if isinstance(ours, DecoderLayer):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
    theirs.linear1.load_state_dict(ours.feedforward.hidden.state_dict())
    theirs.linear2.load_state_dict(ours.feedforward.output.state_dict())
    for i, (residual, _) in enumerate(ours.sites(), start=1):
        theirs.get_submodule(f"norm{i}").load_state_dict(residual.norm.state_dict())


def model_of(placement: str, activation: str) -> Transformer:
    torch.set_default_dtype(torch.float64)
    model = Transformer(
        V,
        V,
        placement=placement,
        d_model=D,
        heads=H,
        d_ff=F,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.0,
        activation=activation,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def compare(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_the_encoder_layer_is_torchs(placement: str, activation: str) -> None:
    model = model_of(placement, activation)
    ours = model.encoder.layers[0]
    theirs = nn.TransformerEncoderLayer(
        D, H, F, 0.0, activation, batch_first=True, norm_first=placement == "pre"
    )
    copy_layer(ours, theirs)
    tokens = torch.randint(4, V, (B, S))
    tokens[1, 4:] = 0
    x = torch.randn(B, S, D, requires_grad=True)
    mask = padding_mask(tokens)
    compare(ours(x, mask), theirs(x, src_key_padding_mask=tokens == 0), [x])

    weight = torch.randn(B, S, D)
    (ours(x, mask) * weight).sum().backward()
    (theirs(x, src_key_padding_mask=tokens == 0) * weight).sum().backward()
    torch.testing.assert_close(
        ours.feedforward.hidden.weight.grad, theirs.linear1.weight.grad, rtol=1e-9, atol=1e-9
    )
    joined = torch.cat([p.weight.grad for p in (ours.self_attention.query, ours.self_attention.key)])
    torch.testing.assert_close(joined, theirs.self_attn.in_proj_weight.grad[: 2 * D], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_the_decoder_layer_is_torchs(placement: str, activation: str) -> None:
    model = model_of(placement, activation)
    ours = model.decoder.layers[0]
    theirs = nn.TransformerDecoderLayer(
        D, H, F, 0.0, activation, batch_first=True, norm_first=placement == "pre"
    )
    copy_layer(ours, theirs)
    tokens = torch.randint(4, V, (B, S))
    tokens[2, 3:] = 0
    x, memory = torch.randn(B, T, D, requires_grad=True), torch.randn(B, S, D, requires_grad=True)
    expected = theirs(x, memory, tgt_mask=~causal_mask(T)[0, 0], memory_key_padding_mask=tokens == 0)
    compare(ours(x, memory, padding_mask(tokens), None, True, None), expected, [x, memory])


@pytest.mark.parametrize("placement", ["post", "pre"])
def test_the_whole_stacks_are_torchs_with_the_final_norm_where_the_placement_has_one(placement: str) -> None:
    model = model_of(placement, "relu")
    pre = placement == "pre"
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, H, F, 0.0, batch_first=True, norm_first=pre),
        2,
        nn.LayerNorm(D) if pre else None,
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(D, H, F, 0.0, batch_first=True, norm_first=pre),
        2,
        nn.LayerNorm(D) if pre else None,
    )
    for ours, theirs in ((model.encoder, encoder), (model.decoder, decoder)):
        for mine, other in zip(ours.layers, theirs.layers, strict=True):
            copy_layer(mine, other)
        if pre:
            theirs.norm.load_state_dict(ours.final_norm.state_dict())
    source, target = torch.randint(4, V, (B, S)), torch.randint(4, V, (B, T))
    source[0, 5:] = 0
    x, y = model.source_embedding(source), model.target_embedding(target)
    memory = encoder(x, src_key_padding_mask=source == 0)
    expected = decoder(y, memory, tgt_mask=~causal_mask(T)[0, 0], memory_key_padding_mask=source == 0)
    compare(model.hidden(source, target), expected, [model.source_embedding.tokens.weight])
