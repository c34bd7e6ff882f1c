"""A seal knows every byte of what it stands above, and its own."""

from __future__ import annotations

import yaml

from transformer.core.seal import broken, sealed

TEXT = "train:\n  updates: 40\n  lr: 1.0e-3  # ½\n"


def test_a_sealed_text_is_whole_and_reads_the_same() -> None:
    assert not broken(sealed(TEXT))
    assert yaml.safe_load(sealed(TEXT)) == yaml.safe_load(TEXT)


def test_any_byte_flipped_and_any_cut_is_seen_or_changes_nothing() -> None:
    whole = sealed(TEXT).encode()
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for damaged in (flipped, whole[:place]):
            assert broken(damaged.decode("utf-8", "surrogateescape")), damaged


def test_a_text_without_a_seal_is_taken_as_it_stands_and_an_empty_one_is_not() -> None:
    assert not broken(TEXT)
    assert broken("")
    assert broken("# nothing\n\n")
