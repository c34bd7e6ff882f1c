"""A plain Transformer as a CTranslate2 model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.special import BOS, EOS, UNK
from ..modules.folded import Wiring
from .plain import Array, Linear, PlainAttention, PlainFeedForward, PlainNorm, PlainStack, PlainTransformer

INSTALL = 'pip install "prepost-transformer[ctranslate2]"'


def ctranslate2() -> ModuleType:
    """The library, or ConfigError: nothing but serving needs it, so it is imported where it is used."""
    try:
        import ctranslate2
    except ImportError:
        raise ConfigError(f"CTranslate2 is not installed; {INSTALL}") from None
    module: ModuleType = ctranslate2
    return module


def write_model(
    plain: PlainTransformer,
    source_vocabulary: Sequence[str],
    target_vocabulary: Sequence[str],
    directory: Path,
    quantization: str | None = None,
) -> None:
    """Write model.bin, config.json and vocabularies into a directory that exists.

    Sources are given without EOS, which the model's configuration adds.
    """
    spec = _spec(plain)
    spec.register_source_vocabulary(list(source_vocabulary))
    spec.register_target_vocabulary(list(target_vocabulary))
    spec.config.layer_norm_epsilon = plain.eps
    spec.config.add_source_eos = True
    names = {"unk_token": UNK, "bos_token": BOS, "eos_token": EOS, "decoder_start_token": BOS}
    for name, token in names.items():
        setattr(spec.config, name, target_vocabulary[token])
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(directory))


def _spec(plain: PlainTransformer) -> Any:
    """Every array in its place; a place left empty is an error in `validate`."""
    specs = ctranslate2().specs
    encoder = specs.transformer_spec.TransformerEncoderSpec(**_shape(plain, plain.encoder))
    outside = plain.decoder.wiring is Wiring.SANDWICH  # cross-attention's norms stand outside of it there
    decoder = specs.transformer_spec.TransformerDecoderSpec(
        **_shape(plain, plain.decoder), external_pre_post_encoder_layers=outside
    )
    _set_stack(encoder, encoder.embeddings[0], plain.encoder)
    _set_stack(decoder, decoder.embeddings, plain.decoder)
    decoder.projection.weight = _float32(plain.output)
    return specs.TransformerSpec(encoder, decoder)


def _shape(plain: PlainTransformer, stack: PlainStack) -> dict[str, Any]:
    feedforward = stack.layers[0][-1].branch
    assert isinstance(feedforward, PlainFeedForward)
    activations = ctranslate2().specs.common_spec.Activation
    return {
        "num_layers": len(stack.layers),
        "num_heads": plain.heads,
        "pre_norm": True,  # or the place for the norm at the top would be missing; see `_set_stack`
        "no_final_norm": stack.final_norm is None,
        "activation": {name.lower(): value for name, value in activations.__members__.items()}[
            feedforward.activation
        ],
        "ffn_glu": feedforward.gate is not None,
        "layernorm_embedding": stack.embedding_norm is not None,
        "pre_post_layer_norm": stack.wiring is Wiring.SANDWICH,
    }


def _set_stack(spec: Any, embeddings: Any, stack: PlainStack) -> None:
    spec.pre_norm = stack.wiring is not Wiring.POST
    spec.scale_embeddings = False  # the table has the scale
    embeddings.weight = _float32(stack.table)
    spec.position_encodings.encodings = _float32(stack.positions)
    _set_norm(spec, "layernorm_embedding", stack.embedding_norm)
    _set_norm(spec, "layer_norm", stack.final_norm)
    for layer, sites in zip(spec.layer, stack.layers, strict=True):
        branches = [layer.self_attention, *([layer.attention] if len(sites) == 3 else []), layer.ffn]
        for branch, site, names in zip(branches, sites, _norm_names(len(sites)), strict=True):
            if stack.wiring is Wiring.SANDWICH:
                for name, norm in zip(names, site.norms, strict=True):
                    _set_norm(layer, name, norm)
            else:
                _set_norm(branch, "layer_norm", site.norms[0])
            if isinstance(site.branch, PlainAttention):
                _set_attention(branch, site.branch)
            else:
                _set_feedforward(branch, site.branch)


def _norm_names(sites: int) -> list[tuple[str, str]]:
    """What CTranslate2 calls the two norms of each site in its sandwich."""
    outside = ("external_pre_encoder_attention_layer_norm", "external_post_encoder_attention_layer_norm")
    return [
        ("input_layer_norm", "post_attention_layer_norm"),
        *([outside] if sites == 3 else []),
        ("pre_feedforward_layer_norm", "post_feedforward_layer_norm"),
    ]


def _set_norm(parent: Any, name: str, norm: PlainNorm | None) -> None:
    """CTranslate2 takes a norm without beta for an RMSNorm."""
    if norm is None:
        return
    spec = ctranslate2().specs.common_spec.LayerNormSpec(rms_norm=not norm.centred)
    spec.gamma = _float32(norm.gain)
    if norm.centred:
        spec.beta = _float32(np.zeros_like(norm.gain) if norm.bias is None else norm.bias)
    else:
        assert norm.bias is None
    setattr(parent, name, spec)


def _set_attention(spec: Any, attention: PlainAttention) -> None:
    """Matrices that read the same are one: q k v, or q and k v."""
    query, key, value = attention.query, attention.key, attention.value
    joined = [[query], [key, value]] if attention.of_memory else [[query, key, value]]
    for place, matrices in zip(spec.linear, [*joined, [attention.output]], strict=True):
        _set_linear(place, matrices)


def _set_feedforward(spec: Any, feedforward: PlainFeedForward) -> None:
    """CTranslate2's linear_0 is the one that goes through the activation."""
    if feedforward.gate is None:
        _set_linear(spec.linear_0, [feedforward.hidden])
    else:
        _set_linear(spec.linear_0, [feedforward.gate])
        _set_linear(spec.linear_0_noact, [feedforward.hidden])
    _set_linear(spec.linear_1, [feedforward.output])


def _set_linear(spec: Any, matrices: Sequence[Linear]) -> None:
    spec.weight = _float32(np.concatenate([matrix.weight for matrix in matrices]))
    spec.bias = _float32(np.concatenate([matrix.bias for matrix in matrices]))


def _float32(values: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ascontiguousarray(values, dtype=np.float32)
