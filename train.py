"""Train a translation model:  python train.py configs/multi30k.yaml --placement pre --warmup 0."""

from transformer.__main__ import program

if __name__ == "__main__":
    raise SystemExit(program("train"))
