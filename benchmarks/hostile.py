"""Files that would run code, climb out or fill the memory: what became of each, as a table.

python benchmarks/hostile.py               # minutes; writes 1 GB through pipes and sparse files, not to disk
python benchmarks/hostile.py --only pickle

Every function of FAULTS gives rows (fault, times tried, outcome); `FAILED` begins what should not be so.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from fuzzing import Bench, call
from hostile_places import places, unfolding
from hostile_sizes import Row, ending, limits, long_lines, long_training, oversized, row
from sentencepiece import sentencepiece_model_pb2 as proto

from transformer.cli.train import main as train
from transformer.cli.translate import main as translate


class Payload:
    """What unpickling this would do: write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


# --- what would run code


def pickles(bench: Bench) -> Iterator[Row]:
    """A pickle that runs a command, in the place of each file that a run or an export is read from."""
    mark = bench.folder / "pickled"
    torch.save({"update": 2, "x": Payload(mark)}, bench.folder / "zip.pt")
    torch.save({"x": Payload(mark)}, bench.folder / "old.pt", _use_new_zipfile_serialization=False)
    bombs = {
        "pickle": pickle.dumps(Payload(mark)),
        "torch file": (bench.folder / "zip.pt").read_bytes(),
        "old torch file": (bench.folder / "old.pt").read_bytes(),
    }
    last, export = bench.run / "checkpoints/last", bench.exported()
    served = lambda: call(translate, [str(export), "--engine", "ctranslate2"], b"one\n")  # noqa: E731
    asked = lambda: call(translate, [str(bench.run)], b"one\n")  # noqa: E731
    resumed = lambda: call(train, ["--resume", str(bench.run)])  # noqa: E731
    places: list[tuple[Path, Callable[[], Any]]] = [
        (last / "trainer.pt", resumed),
        (last / "model.safetensors", resumed),
        (bench.run / "model.safetensors", asked),
        (bench.run / "tokenizer/joint.model", asked),
        (bench.run / "config.yaml", asked),
        (export / "export.json", served),
        (export / "model.bin", served),
        (export / "tokenizer/joint.model", served),
    ]
    for file, read in places:
        codes = []
        for content in bombs.values():
            with bench.damaged(file, content):
                codes.append(read().code)
        bench.restore()
        fine = not mark.exists() and all(code in (1, 2) for code in codes)
        name = file.relative_to(bench.folder)
        yield row(f"a pickle that runs a command as {name}", fine, f"not run; exit codes {codes}", len(bombs))


TAGS = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.check_call [[touch, {mark}]]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
)


def tags(bench: Bench) -> Iterator[Row]:
    """YAML tags that make objects, in a configuration, in a run's, and on the command line."""
    mark, written = bench.folder / "tagged", bench.kept[bench.run / "config.yaml"]
    codes: dict[str, list[int]] = {"a configuration": [], "config.yaml of a run": [], "--set": []}
    for tag in (tag.format(mark=mark) for tag in TAGS):
        file = bench.file("tag.yaml", f"seed: {tag}\n".encode())
        codes["a configuration"].append(call(train, [file, "--check"]).code)
        with bench.damaged(
            bench.run / "config.yaml", written.replace(b"seed: 1", f"seed: {tag}".encode(), 1)
        ):
            codes["config.yaml of a run"].append(call(translate, [str(bench.run)], b"one\n").code)
        codes["--set"].append(call(train, [str(bench.config), "--check", "--set", f"seed={tag}"]).code)
    for where, found in codes.items():
        fine = set(found) == {2} and not mark.exists()
        yield row(f"a YAML tag that makes an object, in {where}", fine, "refused, exit code 2", len(found))


def climbing(bench: Bench) -> Iterator[Row]:
    """Paths that lead out of the directory they stand in."""
    export = bench.exported()
    written = bench.kept[export / "export.json"]
    for path in ("../../run/config.yaml", "/etc/passwd"):
        with bench.damaged(export / "export.json", written.replace(b'"model.bin"', f'"{path}"'.encode(), 1)):
            answer = call(translate, [str(export), "--engine", "ctranslate2"], b"one\n")
        fine = answer.code == 1 and "Traceback" not in answer.err
        yield row(f"{path} in an export's manifest", fine, "refused, exit code 1")
    before = {path for path in bench.folder.rglob("*")}
    config = bench.kept[bench.run / "config.yaml"].decode()
    config = config.replace("held:", "../../../climbed:")
    config = config.replace(f"run_dir: {bench.run}", f"run_dir: {bench.folder}/elsewhere")
    (bench.run / "config.yaml").write_text(config)
    code = call(train, ["--resume", str(bench.run)]).code
    out = [p for p in bench.folder.rglob("*") if p not in before and bench.run not in p.parents]
    up = [p for p in bench.folder.parent.glob("climbed*")]
    bench.restore()
    outcome = f"exit code {code}; nothing written outside of the run"
    yield row(
        "a run's config.yaml with another run_dir and a test set ../../../climbed",
        not out and not up,
        outcome,
    )


def vocabularies(bench: Bench) -> Iterator[Row]:
    """A vocabulary of one piece, and text of one word."""
    folder = bench.folder / "one"
    folder.mkdir()
    for side in ("en", "de"):
        for name in ("train", "valid"):
            (folder / f"{name}.{side}").write_text("a\n" * 50)
    model = proto.ModelProto.FromString((bench.run / "tokenizer/joint.model").read_bytes())
    del model.pieces[5:]
    model.pieces[4].piece = "a"
    (folder / "joint.model").write_bytes(model.SerializeToString())
    assert sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString()).GetPieceSize() == 5
    base = Path(bench.config).read_text().replace(f"{bench.folder}/train", f"{folder}/train")
    base = base.replace(f"{bench.folder}/valid", f"{folder}/valid")
    asked = {
        "a vocabulary of one piece": (f"tokenizer: {{path: {folder}}}\n  max_unknown: 0.9", 0),
        "a vocabulary of one piece, most of the text unknown to it": (f"tokenizer: {{path: {folder}}}", 1),
        "text of one word, vocabulary of 6": ("tokenizer: {vocab_size: 6, type: char}", 0),
        "text of one word, vocabulary of 5 asked for": ("tokenizer: {vocab_size: 5}", 1),
        "text of one word, vocabulary of 8000 asked for": ("tokenizer: {vocab_size: 8000}", 1),
    }
    for number, (name, (options, code)) in enumerate(asked.items()):
        file = bench.file(
            "one.yaml", base.replace("tokenizer: {vocab_size: 40, type: char}", options).encode()
        )
        run = str(folder / f"run{number}")
        answer = call(train, [file, "--run-dir", run])
        outcome, fine = f"exit code {answer.code}", answer.code == code and "Traceback" not in answer.err
        if not answer.code:
            said = call(translate, [run], b"a\nb\n\n")
            outcome += f"; translates {said.out.count(10)} of 3 lines"
            fine = fine and said.code == 0 and said.out.count(b"\n") == 3
        elif fine:
            outcome += f" ({ending(answer.err, 110)})"
        yield row(f"training on {name}", fine, outcome)


FAULTS = (pickles, tags, climbing, unfolding, places)
FAULTS += (limits, oversized, vocabularies, long_lines, long_training)


def rows(only: str = "") -> Iterator[Row]:
    """The rows of all faults whose function's name holds `only`, each with a fresh run."""
    for fault in FAULTS:
        if only in fault.__name__:
            with tempfile.TemporaryDirectory() as folder:
                yield from fault(Bench(Path(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help=", ".join(f.__name__ for f in FAULTS))
    torch.set_num_threads(1)
    failed = 0
    print("| fault | times tried | outcome |\n|---|---|---|")
    for fault, times, outcome in rows(parser.parse_args().only):
        failed += outcome.startswith("FAILED")
        print(f"| {fault} | {times} | {outcome} |", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
