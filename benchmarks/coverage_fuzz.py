"""Coverage-guided fuzzing of what reads files and standard input in Python, by atheris (libFuzzer).

    pip install atheris                                  # wheels for Linux and Python up to 3.13
    python benchmarks/coverage_fuzz.py --seconds 60      # of each reader; --only manifest lines

`fuzz.py` draws cases that Hypothesis thinks of and runs whole commands; this one watches which branches of a
reader a case reaches, and changes the bytes that reached new ones. Each reader has a process of its own. What
is raised must be a UserError; besides, a configuration that is accepted must be the same when it is written
and read again, and lines must be as many as line ends. Prints cases, branches and findings; 1 with any.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Reader = Callable[[bytes], object]
READERS = [
    "configuration",
    "overrides",
    "lines",
    "packed",
    "manifest",
    "export",
    "metrics",
    "result",
    "stamp",
]
ODD = {"1e999", "-1", "NaN", "null", "true", "[]", "{}", r"\\ud800", r"\xff", r"\x00"}  # libFuzzer's writing
EXPORT = b"""{"format": 2, "engine": "ctranslate2", "quantization": "int8", "positions": 9, "files": {},
"tokenizers": {"source": "a", "target": "b"}}"""
METRICS = b"""{"update": 1, "loss": 2.5, "nll": 2.0, "learning_rate": 1.5}
{"update": 2, "probe": {"encoder": {"gradient": [0.5, null]}}}"""
STAMP = b'{"options": {"type": "bpe"}, "text": "ab", "digests": ["a", "b"], "path": null}'
RESULT = b'{"status": "completed", "updates": 3}'
OVERRIDES = [b"model.placement={encoder: pre}\0train.lr=1e-3", b"data.test.x=a", b"model.norm.decoder=rms"]
TEXTS = [b"a\nb\r\n\xef\xbb\xbfc", b"\xff\xfea\0\n", "a\u2028b\x85\n".encode()]


def reader_of(name: str, folder: Path) -> tuple[Reader, list[bytes]]:
    """What is given the bytes, and the bytes that it begins with."""
    from transformer.cli.config import Config
    from transformer.cli.lines import write_line
    from transformer.cli.result import read_result
    from transformer.core.loading import Layers, build, load, to_yaml
    from transformer.core.reading import read_yaml
    from transformer.core.seal import broken, sealed
    from transformer.data.corpus import Oddities, decompressed, lines_of
    from transformer.data.splits import SplitText
    from transformer.data.vocabulary import _kept
    from transformer.export.manifest import read_manifest
    from transformer.training.history import read_past
    from transformer.training.manifest import verified, write_manifest

    def built(text: str | bytes) -> str:
        layers = Layers(Config)
        layers.add_document(read_yaml(text, "x.yaml"))
        return to_yaml(build(Config, layers))

    def configuration(data: bytes) -> None:
        broken(data.decode("utf-8", "surrogateescape"))
        text = built(data)
        assert built(text) == text
        assert not broken(sealed(text))

    def lines(data: bytes) -> None:
        found = list(lines_of(io.BytesIO(data), "x", noted := Oddities("x"), strict=False))
        assert len(found) == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        assert all(noted.messages())
        for line in found:
            write_line(out := io.BytesIO(), line)
            assert out.getvalue().count(b"\n") == 1
        list(lines_of(io.BytesIO(data), "x"))

    def packed(data: bytes) -> None:
        stream: io.BufferedReader = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
        with (
            suppress(OSError, EOFError, zlib.error),
            decompressed(stream) as file,
        ):  # DataErrors of cli/lines.py
            list(lines_of(file, "x", Oddities("x"), strict=False))

    def in_file(file: str, read: Callable[[Path], object], whole: Path = folder) -> Reader:
        def check(data: bytes) -> None:
            (folder / file).write_bytes(data)
            read(whole)

        return check

    (folder / "a").write_bytes(b"content")
    write_manifest(folder, {"update": 1})
    options = load(Config, ROOT / "configs" / "demo.yaml").data
    text = SplitText(options, options.train, "train")
    return {
        "configuration": (configuration, [path.read_bytes() for path in (ROOT / "configs").glob("*.yaml")]),
        "overrides": (lambda x: load(Config, None, os.fsdecode(x).split("\0")[:3]), OVERRIDES),
        "lines": (lines, TEXTS),
        "packed": (packed, [zlib.compress(text, wbits=31)[:40] for text in TEXTS]),
        "manifest": (in_file("manifest.json", verified), [(folder / "manifest.json").read_bytes()]),
        "export": (in_file("export.json", read_manifest), [EXPORT]),
        "metrics": (in_file("metrics.jsonl", read_past, folder / "metrics.jsonl"), [METRICS]),
        "result": (in_file("result.json", read_result), [RESULT]),
        "stamp": (in_file("trained_from.json", lambda it: _kept(options, text, it, str)), [STAMP]),
    }[name]


def child(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one reader; libFuzzer ends the process, with a traceback and another code than 0 at a finding."""
    import atheris

    with atheris.instrument_imports(include=["transformer", "yaml"]):
        from transformer.core.errors import UserError

        read, seeds = reader_of(name, folder)
    (corpus := folder / "corpus").mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    words = {word.decode() for seed in seeds for word in re.findall(rb"[A-Za-z_0-9.]{2,30}", seed)}
    (folder / "words").write_text("".join(f'"{word}"\n' for word in sorted(words | ODD)))

    def test(data: bytes) -> None:
        with suppress(UserError):
            read(data)

    flags = [f"-max_total_time={seconds}", "-timeout=30", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, f"-dict={folder / 'words'}", str(corpus)], test)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each reader (default: 60)")
    parser.add_argument("--only", nargs="+", choices=READERS, default=READERS)
    parser.add_argument("--child", choices=READERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.seconds, Path.cwd())
    found = 0
    for name in arguments.only:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
        command += ["--seconds", str(arguments.seconds)]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", cwd=folder
            )
        (_, branches) = (re.findall(r"#(\d+).*?cov: (\d+)", done.stderr) or [("", "0")])[-1]
        cases = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        what = "FOUND" if done.returncode else "nothing found"
        seconds = time.monotonic() - began
        print(
            f"{name}: {int(cases[1] if cases else 0):,} cases, {branches} branches, {seconds:.0f} s, {what}"
        )
        if done.returncode:
            found += 1
            print(done.stdout[-3000:] + done.stderr[-2000:], flush=True)
    return int(found > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
