"""Translate with a trained run:  python translate.py runs/multi30k-pre < test.en > test.de."""

from transformer.__main__ import program

if __name__ == "__main__":
    raise SystemExit(program("translate"))
