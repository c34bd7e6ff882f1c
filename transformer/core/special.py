"""The four ids every vocabulary begins with."""

PAD, UNK, BOS, EOS = range(4)
