"""One thread, float32 and a fixed seed for every test; whatever a test changes is put back."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_python import has_servers, keep, start

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read at torch's import: the cores are other tests' too
# What a test starts by a fork server has torch imported, once for all, and is of this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
multiprocessing.set_forkserver_preload(  # torch._dynamo: what every optimizer imports
    ["transformer.cli.train", "torch.utils.tensorboard", "torch._dynamo"]
)
gc.set_threshold(20_000, 20, 20)  # a search of all that was imported and collected takes a third of a second


def pytest_configure(config: pytest.Config) -> None:
    """A place for the Python that starts at once, one for all workers, which have our environment."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp()
        os.environ["WARM_PYTHON"] = os.path.join(folder, "python")
        config.add_cleanup(lambda: shutil.rmtree(folder))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the tests hold together is no garbage; and what some will wait for is begun."""
    wanted = has_servers and not session.config.option.collectonly
    if wanted and any("warm_python" in getattr(item, "fixturenames", ()) for item in session.items):
        start(os.environ["WARM_PYTHON"])
    gc.collect()
    gc.freeze()


# torch is imported by what tests: not by the process that only deals them out.
@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_environment(one_thread: None) -> Iterator[None]:
    """Seed torch before each test and restore the default dtype after it."""
    import torch

    # torch.manual_seed formats three stacks for devices that are not there: as long as a small test takes.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """To put into the place of `sys.executable`: a Python that is there in milliseconds."""
    if not has_servers:  # then one is waited for
        yield sys.executable
        return
    place = os.environ["WARM_PYTHON"]
    with keep(place):
        asks = f"from warm_python import ask; ask({place!r}, {sys.executable!r})"
        program = Path(f"{place}.{os.getpid()}")
        path = [str(Path(__file__).parent / "processes")]
        program.write_text(f"#!{sys.executable} -SE\nimport sys; sys.path[:0] = {path}; {asks}\n")
        program.chmod(0o755)
        yield str(program)


@pytest.fixture
def starts_warm(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.executable` is the Python that is there in milliseconds."""
    monkeypatch.setattr(sys, "executable", warm_python)
