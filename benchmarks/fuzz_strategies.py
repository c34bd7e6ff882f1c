"""Bytes, configurations and overrides that are hostile or odd, as Hypothesis draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# --- bytes

ODD = (
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\x00",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *("\u2028".encode(), "\x85".encode(), "\u2581".encode(), "\U0001f600".encode(), "e\u0301".encode()),
    *(
        b" ",
        b"\t",
        b"<s>",
        b"</s>",
        b"<pad>",
        b"\x01<pad>",
        b"a" * 400,
        b"one two " * 60,
        b"one",
        b"red house\n",
    ),
)
texts = st.lists(st.one_of(st.sampled_from(ODD), st.binary(max_size=6)), max_size=14).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, content: bytes, odd: Sequence[bytes] = ODD) -> bytes:
    """`content` cut short, with bytes flipped, put in or taken out; or something else altogether."""
    size = len(content)
    place = st.integers(0, max(size - 1, 0))
    kind = draw(st.sampled_from(("cut", "flip", "flip", "insert", "delete", "other", "near the start")))
    if kind == "cut":
        return content[: draw(place)]
    if kind == "other":
        return draw(st.one_of(st.binary(max_size=60), st.sampled_from(odd)))
    if kind == "insert":
        at = draw(place)
        return (
            content[:at]
            + draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from(odd)))
            + content[at:]
        )
    if kind == "delete":
        at = draw(place)
        return content[:at] + content[at + draw(st.integers(1, 40)) :]
    if kind == "near the start":  # headers
        place = st.integers(0, min(size - 1, 200))
    changed = bytearray(content)
    for at, value in draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)):
        if size:
            changed[at] = value
    return bytes(changed)


# --- configurations

VALUES = (
    *(
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!binary aGk=",
        "&a [*a]",
        "*a",
    ),
    *(
        ".inf",
        ".nan",
        "-1",
        "0",
        "1e999",
        "0x1f",
        "010",
        "1:30",
        "9" * 40,
        "-.5",
        "1e-400",
        "true",
        "no",
        "~",
        "''",
    ),
    *(
        "[",
        "{",
        "[1, 2]",
        "{a: 1}",
        "[[]]",
        "{? [1]: 2}",
        "'\\0'",
        '"\\0"',
        '"\\ud800"',
        "2016-07-01",
        "=",
        "<<",
    ),
    *(
        "../../../etc/passwd",
        "/dev/null",
        "/dev/zero",
        "demo",
        "pre",
        "post",
        "layer",
        "rms",
        "a: b: c",
        "|\n  x",
    ),
    *("{default: pre, encoder: post}", "{decoder.1-2: rms}", "- 1", "%TAG", "\t", "[" * 500, "{a: " * 300),
)
KEYS = (
    *(
        "seed",
        "run_dir",
        "data.train",
        "data.valid",
        "data.test",
        "data.test.x",
        "data.source",
        "data.max_length",
    ),
    *("data.max_ratio", "data.tokenizer", "data.tokenizer.vocab_size", "data.tokenizer.type", "data.cache"),
    *(
        "model.placement",
        "model.norm",
        "model.norm.encoder",
        "model.d_model",
        "model.heads",
        "model.encoder_layers",
    ),
    *(
        "model.dropout",
        "model.max_length",
        "model.positions",
        "model.attention_window",
        "model.options",
        "model",
    ),
    *(
        "train.lr",
        "train.warmup",
        "train.betas",
        "train.schedule",
        "train.drops",
        "train.updates",
        "train.epochs",
    ),
    *(
        "train.precision",
        "train.accumulate",
        "train.threads",
        "train",
        "decode.beam",
        "decode.alpha",
        "decode.n_best",
    ),
    *(
        "decode.search",
        "decode.max_length",
        "decode.max_length_ratio",
        "decode",
        "extends",
        "nonsense",
        "data.a.b.c",
    ),
    *(
        "model.placement.decoder.1-3",
        "model.norm.decoder.self_attention",
        "a..b",
        "",
        ".",
        "seed.x",
        "model.d_modle",
    ),
)
plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(VALUES)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def structured(draw: st.DrawFn) -> bytes:
    """Known keys, and some unknown, with values of every kind, as YAML."""
    import yaml

    tree: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)):
        at, (*parents, last) = tree, key.split(".")
        for parent in parents:
            at[parent] = at = at[parent] if isinstance(at.get(parent), dict) else {}
        at[last] = draw(plain)
    text: str = yaml.safe_dump(tree, allow_unicode=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


overrides = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), st.text(max_size=12))).map(
            "=".join
        ),
        st.text(max_size=20),
    ),
    min_size=1,
    max_size=4,
)
