"""docs/add_a_placement.md is run: its classes train, the suite asks for oracles, its oracles satisfy it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_placement.md"
DRIVER = "tests/placements/test_equations.py"
NORM_DRIVER = "tests/modules/test_norms.py"
SUITE = ("-m", "pytest", "-p", "recipe", "-p", "norm", "-p", "no:cacheprovider", DRIVER, NORM_DRIVER)
TRAIN = """
import warnings
warnings.simplefilter("error")
import norm, recipe, torch
from transformer import PLACEMENTS, Transformer
from transformer.cli.describe import choices_text

plan = {"encoder": "halved", "decoder": "damped"}
model = Transformer(12, 12, placement=plan, norm="peak", d_model=16, heads=2, d_ff=24, seed=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(0)
source, target = torch.randint(4, 12, (4, 7)), torch.randint(4, 12, (4, 6))
losses = []
for _ in range(2):
    logits = model.train()(source, target[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert torch.isfinite(torch.tensor(losses)).all() and losses[1] != losses[0], losses
assert "option c = 0.5: of the branch" in choices_text("placements")
assert {site.equation() for site, _ in model.decoder.sites()} == {"x + 0.5 f(LN(x))"}
assert "g * x / (max(|x|) + eps)" in choices_text("norms")
try:
    Transformer(12, 12, placement="dampd")
except ValueError as error:
    assert "did you mean 'damped'?" in str(error), error
else:
    raise AssertionError("a slip was not noticed")
"""
SATISFY = "import oracle, placement_oracles as all_of_them\n" + "".join(
    f"all_of_them.{name}.update(oracle.{name})\n" for name in ("ORACLES", "NORM_COUNTS", "CASES")
)
SATISFY_NORM = """
import norm_oracle, norm_oracles
norm_oracles.ORACLES.update(norm_oracle.ORACLES)
norm_oracles.PARAMETERS.update(norm_oracle.PARAMETERS)
norm_oracles.CASES["peak"] = [{}]
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's code blocks as modules, and pytest plug-ins that put the oracles into their places."""
    folder = tmp_path_factory.mktemp("recipe")
    halved, damped, oracle, norm, norm_oracle = blocks()
    modules = {"recipe": f"{halved}\n{damped}", "oracle": oracle, "satisfy": SATISFY}
    modules |= {"norm": norm, "norm_oracle": norm_oracle, "satisfy_norm": SATISFY_NORM}
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [folder, ROOT, ROOT / "tests" / "placements", ROOT / "tests" / "modules"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def test_a_placement_is_about_ten_lines() -> None:
    """Without its imports, its decorator and its docstring."""
    body = blocks()[0].partition("class ")[2]
    code = "".join(body.split('"""')[::2])
    assert len([line for line in code.splitlines() if line.strip()]) < 10


@pytest.mark.usefixtures("starts_warm")
def test_the_classes_of_the_page_train(folder: Path) -> None:
    done = run(folder, "-c", TRAIN)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("starts_warm")
def test_the_suite_then_stops_for_want_of_oracles(folder: Path) -> None:
    done = run(folder, *SUITE, "-k", "has_an_oracle")
    assert done.returncode == 1
    message = "no oracle for ['damped', 'halved']: write its equation in tests/placements/placement_oracles"
    assert message in done.stdout
    assert message in PAGE.read_text(encoding="utf-8")
    assert "no oracle for ['peak']: write its formula" in done.stdout
    assert "2 failed" in done.stdout


@pytest.mark.usefixtures("starts_warm")
def test_the_oracles_of_the_page_satisfy_it(folder: Path) -> None:
    done = run(
        folder, *SUITE, "-p", "satisfy", "-p", "satisfy_norm", "-vv",
        "-k", "damped or halved or peak or has_an_oracle",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for driver in (DRIVER, NORM_DRIVER):
        assert len(re.findall(rf"^{driver}::.* PASSED", done.stdout, re.MULTILINE)) > 5, done.stdout


def test_the_code_of_the_page_is_formatted(tmp_path: Path) -> None:
    pytest.importorskip("ruff", reason="comes with the extra dev: make check")
    for i, block in enumerate(blocks()):
        (tmp_path / f"block{i}.py").write_text(block, encoding="utf-8")
    config = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["format", "--check"], ["check"]):
        done = run(tmp_path, "-m", "ruff", *command, *config, str(tmp_path))
        assert done.returncode == 0, done.stdout
