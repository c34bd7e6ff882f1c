"""The library is compiled once, whole, for this processor; what goes wrong leaves torch's operators."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transformer.kernels import building

CALL = building.compiler()
pytestmark = pytest.mark.skipif(building.library() is None, reason="there is no C compiler")


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "a" / "b"
    assert building._loaded(CALL, kept)
    (made,) = kept.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(building, "_compile", None)
    assert building._loaded(CALL, kept)
    assert list(kept.iterdir()) == [made]


def test_another_processor_and_another_call_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building._loaded(CALL, tmp_path)
    building._loaded([*CALL, "-g"], tmp_path)
    monkeypatch.setattr(building, "_processor", lambda: "another")
    building._loaded(CALL, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("left", [0, 4096, 12288, -1000, -1])
def test_what_is_cut_short_is_compiled_anew(left: int, tmp_path: Path) -> None:
    """In a process of its own: a library that is loaded stays."""
    code = "from pathlib import Path; from transformer.kernels import building as b; import sys;"
    code += "assert b._loaded(b.compiler(), Path(sys.argv[1])).log_softmax"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    (made,) = tmp_path.iterdir()
    whole = made.stat().st_size
    made.write_bytes(made.read_bytes()[:left])
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    (again,) = tmp_path.iterdir()
    assert again == made
    assert made.stat().st_size == whole


def test_a_place_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = building._loaded(CALL, tmp_path / "file" / "below")
    assert found is not None
    assert found.log_softmax


def test_a_place_that_others_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    found = building._loaded(CALL, tmp_path)
    assert found is not None
    assert found.log_softmax
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert building._loaded(CALL, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [[], ["false"], ["no-such-compiler"]])
def test_without_a_compiler_there_is_none(call: list[str], tmp_path: Path) -> None:
    assert building._loaded(call, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SECONDS", 0.05)
    assert building._loaded(["sh", "-c", "sleep 5"], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_compiler_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "env FLAG=1 sh")
    assert building.compiler() == ["env", "FLAG=1", "sh"]
    for nothing in ("", "no-such-compiler -O2", "cc 'a quote"):
        monkeypatch.setenv("CC", nothing)
        assert building.compiler() == []
    monkeypatch.delenv("CC")
    assert building.compiler()[0] in ("cc", "gcc", "clang")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert building.compiler() == []


def test_it_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert building._kept_in() == Path("/somewhere/prepost-transformer")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert building._kept_in() == Path.home() / ".cache" / "prepost-transformer"


@pytest.mark.parametrize("base", ["~no-such-user/x", "~/x"])
def test_without_a_home_each_process_makes_its_own(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert building._kept_in() is None
    assert building._loaded(CALL, None)


def test_a_compiler_that_would_drop_nan_is_told_not_to(tmp_path: Path) -> None:
    """In a process of its own, which may set how the processor rounds."""
    code = "from transformer.kernels import operators; assert operators._compiled()"
    environment = {**os.environ, "CC": f"{' '.join(CALL)} -ffast-math", "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_older_compilers_have_their_words_for_it(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    older = ["gcc", "-U__GNUC__", "-D__GNUC__=11"]
    if subprocess.run(["gcc", "-x", "c", "-E", os.devnull, *older[1:]], capture_output=True).returncode:
        pytest.skip("gcc does not let itself be called older")
    found = building._loaded(older, tmp_path)
    assert found is not None
    assert found.attend


def test_it_has_no_warning(tmp_path: Path) -> None:
    """All that takes vectors is inlined, so that how they are passed does not matter."""
    checks = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-O2", "-c", "-o", os.devnull]
    subprocess.run([*CALL, *checks, str(building._SOURCE)], check=True)
