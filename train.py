"""Train a translation model:  python train.py configs/multi30k.yaml --placement pre --warmup 0."""

from transformer.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
