"""Translate with a trained run:  python translate.py runs/multi30k-pre < test.en > test.de."""

from transformer.cli.translate import main

if __name__ == "__main__":
    raise SystemExit(main())
