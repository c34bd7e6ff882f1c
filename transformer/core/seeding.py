"""Seeds as a function of what they are for, so that no draw shifts another."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts: `derive_seed(seed, "encoder.layers.0.fc1.weight")`.

    The same parts give the same seed on every machine and Python version.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
