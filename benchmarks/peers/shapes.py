"""What all systems are given: model shapes, training settings, the length of translations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model, and how long it is trained here: `warm` updates that are not timed, `timed` ones that are."""

    name: str
    d_model: int
    d_ff: int
    heads: int
    layers: int  # of the encoder, and as many of the decoder
    vocabulary: int  # joint, the four control pieces included
    warm: int
    timed: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("small", d_model=256, d_ff=1024, heads=4, layers=3, vocabulary=8000, warm=10, timed=40),
        Shape("large", d_model=512, d_ff=1024, heads=8, layers=6, vocabulary=10_000, warm=5, timed=15),
    )
}

DROPOUT, LABEL_SMOOTHING = 0.1, 0.1
LEARNING_RATE, BETAS, EPSILON, CLIP = 5e-4, (0.9, 0.98), 1e-9, 1.0
WARMUP = 20  # updates in which the rate grows to its peak: enough for a loss that falls in a short trial
BATCH_TOKENS = 4096  # rows x longest side; where a peer counts otherwise, what gives as many target tokens
LONGEST = 100  # pieces of a side; longer pairs are left out for all

BATCH_SENTENCES = 64  # of translation
STEPS = 16  # of the decoder for a translation: sixteen pieces, or fifteen and the EOS of a system that ends
BEAMS = (1, 5)
TEST_SET = "test2016"
PAD, UNK, BOS, EOS = range(4)  # lines of the vocabulary file
CONTROLS = ("<pad>", "<unk>", "<s>", "</s>")
