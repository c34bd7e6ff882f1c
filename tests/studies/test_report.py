"""Reports of made-up outcomes that look like real ones: what is said, what is drawn, and byte for byte."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import struct
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from transformer.core.errors import ConfigError
from transformer.model.config import ModelConfig
from transformer.model.cost import cost_of
from transformer.studies.cells import Cell
from transformer.studies.config import Study, load_study
from transformer.studies.document import Answer, Code, Table, Words, html, markdown
from transformer.studies.drawing import lines_of, panels_of
from transformer.studies.figures import line_sensitivity
from transformer.studies.groups import axes_of, best_of, grouped, label
from transformer.studies.outcomes import Outcome
from transformer.studies.report import missing_cells, report
from transformer.studies.statistics import sensitivity

pytest.importorskip("matplotlib")

AXES = {"model.placement": ["post", "pre"], "train.warmup": [0, 300], "train.lr": [1e-3, 3e-3, 1e-2]}
QUESTIONS: list[dict[str, Any]] = [
    {
        "ask": "Does Post-LN need <warm-up>?",
        "claim": "Xiong et al. 2020, figure 2",
        "this": {"model.placement": "post", "train.warmup": 0},
        "that": {"model.placement": "post", "train.warmup": 300},
        "expect": "worse",
        "over": "each",
    },
    {
        "ask": "Does Pre-LN match Post-LN?",
        "this": {"model.placement": "pre", "train.warmup": 0},
        "that": {"model.placement": "post", "train.warmup": 300},
        "expect": "no worse",
        "margin": 0.1,
    },
]


def made(
    values: Mapping[str, Any], seed: int, loss: float | None, run_dir: Path = Path("nowhere")
) -> Outcome:
    """A run that ended at this loss, or that diverged after its second validation."""
    updates = range(100, 301 if loss is None else 1001, 100)
    curve = [(u, (loss or 5.5) + 4 * math.exp(-u / 200)) for u in updates]
    curve = [*curve[:-1], (curve[-1][0], math.nan if loss is None else loss)]
    status = "diverged" if loss is None else "completed"
    tests = {} if loss is None else {"news": {"bleu": 60 - 10 * loss, "chrf": 50.0}}
    result = {"status": status, "valid_loss": loss, "device": "cpu", "reason": "not finite", "seconds": 7.0}
    cell = Cell(f"{list(values.values())}-{seed}", {}, run_dir / f"{seed}", seed, values)
    return Outcome(
        cell, status, loss is None, curve, [(1, 9.0), *curve], tests, 1000, 7.0, 1234, result,
        config={**values, "seed": seed, "run_dir": str(run_dir)}, target=3.4,
    )  # fmt: skip


def loss_of(values: Mapping[str, Any], seed: int) -> float | None:
    post, cold = values["model.placement"] == "post", not values["train.warmup"]
    if post and values["train.lr"] == 1e-2:
        return None if cold or seed == 1 else 3.3
    return 3.0 + 0.1 * post + 0.8 * (post and cold) + 0.01 * (seed * 7 % 3)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.model_validate(
        {"name": "made", "base": "x.yaml", "axes": AXES, "questions": QUESTIONS, "target": 3.4}
    )


@pytest.fixture(scope="module")
def outcomes(study: Study) -> list[Outcome]:
    """Every cell but one setting, of which no seed is finished."""
    gone = {"model.placement": "pre", "train.warmup": 300, "train.lr": 1e-2}
    return [made(s, seed, loss_of(s, seed)) for s in study.settings() if s != gone for seed in study.seeds]


@pytest.fixture(scope="module")
def folder(study: Study, outcomes: list[Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report(study, outcomes, folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_there_and_every_figure_has_its_axes(folder: Path) -> None:
    figures = ("gains", "curves", "rates", "grid", "divergence", "target", "bleu")
    expected = {f"figures/{name}.png" for name in figures}
    assert set(files(folder)) == {"report.md", "report.html", "table.json", "study.yaml", *expected}


def test_a_study_that_was_killed_and_run_again_gives_the_same_bytes(
    outcomes: list[Outcome], study: Study, folder: Path, tmp_path: Path
) -> None:
    """Other seconds, another place, another order: what was measured is the same."""
    again = [
        made(run.cell.values, run.cell.seed, run.result["valid_loss"], Path("elsewhere"))
        for run in random.Random(5).sample(outcomes, len(outcomes))
    ]
    for run in again:
        object.__setattr__(run, "seconds", 99.0)
        object.__setattr__(run, "result", {**run.result, "seconds": 99.0})
    report(study, again, tmp_path)
    assert files(tmp_path) == files(folder)


VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags and attributes; fails where an end tag closes another element than the open one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    addresses = [v for name, v in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "width=device-width" in text
    assert all(value for name, value in page.attributes if name == "alt")


def test_text_of_the_study_cannot_become_markup(folder: Path) -> None:
    assert "&lt;warm-up&gt;" in (folder / "report.html").read_text(encoding="utf-8")
    assert "\\<warm-up>" in (folder / "report.md").read_text(encoding="utf-8")
    nasty = '<script>alert(1)</script> & "quotes" | * _ ` ['
    blocks = [Words(nasty), Table([nasty], [[nasty]]), Answer(1, nasty, "mixed", nasty, nasty, [nasty])]
    assert "script" not in Page(html(nasty, blocks)).tags
    table = next(line for line in markdown(nasty, blocks).splitlines() if line.startswith("|"))
    assert re.sub(r"\\.", "", table).count("|") == 2


def test_markdown_takes_no_text_for_mathematics_or_an_entity() -> None:
    text = markdown("t", [Words("costs $x$ &lt; ~y~")])
    assert "costs <span>$</span>x<span>$</span> \\&lt; \\~y\\~" in text


def test_code_blocks_stay_apart_and_keep_their_fold() -> None:
    text = markdown("t", [Code("a command"), Code("ask: ```\n  $x$", "the <file>")])
    assert "```\na command\n```" in text
    fold = "<details>\n<summary>the &lt;file&gt;</summary>\n\n````\nask: ```\n  $x$\n````\n\n</details>"
    assert text.endswith(f"{fold}\n")


def test_the_reports_study_file_can_be_run_where_it_lies(
    study: Study, outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = study.model_copy(update={"base": "configs/x.yaml"})
    report(there, outcomes[:3], Path("runs/made/report"), "the command")
    file = Path("runs/made/report/study.yaml")
    assert "base: ../../../configs/x.yaml\n" in file.read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8").startswith("# the command\n")
    assert load_study(file) == there
    away = study.model_copy(update={"base": "/x.yaml"})
    report(away, outcomes[:3], Path("runs/made/report"))
    assert load_study(file) == away


def test_two_reports_may_be_written_at_once(
    study: Study, outcomes: list[Outcome], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before, glob, write_bytes = files(tmp_path), Path.glob, Path.write_bytes

    def listed(self: Path, pattern: str) -> list[Path]:
        return [*glob(self, pattern), self / "gone.png"]  # the other has just deleted it

    def written(self: Path, data: bytes) -> int:
        assert set(before) <= set(files(tmp_path)), "nothing is missing at any time"
        assert str(self.relative_to(tmp_path)) not in before, "nothing is half written"
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "glob", listed)
    monkeypatch.setattr(Path, "write_bytes", written)
    report(study, outcomes, tmp_path)
    assert files(tmp_path) == before


def test_answers_come_first_and_say_the_plain_words(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[:2] == ["Answers", "Figures"]
    assert "diverged 3 of 3 against 1 of 3" in text
    assert "**not testable**" in text or "not testable at" in text
    assert "33 of 36 runs have ended, 4 diverged" in text


def test_missing_runs_are_named(study: Study, outcomes: list[Outcome], folder: Path) -> None:
    names = [cell.name for cell in missing_cells(study, outcomes)]
    assert names == [f"pre, warm-up 300, rate 1e-2, seed {seed}" for seed in (1, 2, 3)]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"- {name}" in text for name in names)
    assert json.loads((folder / "table.json").read_text(encoding="utf-8"))["missing"] == names


def test_every_row_of_every_table_is_as_wide_as_its_head(folder: Path) -> None:
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    widths: list[int] = []
    tables = 0
    for line in [*lines, ""]:
        if line.startswith("|"):
            widths.append(re.sub(r"\\.", "", line).count("|"))
        elif widths:
            assert len(set(widths)) == 1
            tables, widths = tables + 1, []
    assert tables >= 4


def test_the_table_for_programs_holds_every_seed(folder: Path, outcomes: list[Outcome]) -> None:
    facts = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    assert sum(len(setting["seeds"]) for setting in facts["settings"]) == len(outcomes)
    assert sum(len(setting["diverged"]) for setting in facts["settings"]) == 4
    assert {found["verdict"] for found in facts["answers"]} <= {
        "reproduced",
        "not reproduced",
        "mixed",
        "not testable",
    }


def test_figures_are_pngs_wide_enough_to_read(folder: Path) -> None:
    for path in (folder / "figures").iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert 700 <= width <= 2000
        assert 150 <= height <= 4000
        assert b"Software" not in data


def test_a_study_without_rates_has_no_figure_of_rates(tmp_path: Path) -> None:
    study = Study.model_validate(
        {"name": "two", "base": "x.yaml", "axes": {"model.placement": ["post", "pre"]}}
    )
    outcomes = [made(s, seed, 3.0) for s in study.settings() for seed in study.seeds]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "rates.png").write_bytes(b"of another study")
    report(study, outcomes, tmp_path)
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {"curves", "bleu"}


@pytest.mark.parametrize("losses", [{1: 3.0}, {1: None}, {1: None, 2: None, 3: None}])
def test_the_smallest_and_the_saddest_study_have_a_report(
    losses: dict[int, float | None], tmp_path: Path
) -> None:
    study = Study.model_validate(
        {
            "name": "sad",
            "base": "x.yaml",
            "axes": {"train.warmup": [0, 300], "train.lr": [1e-3, 1e-2]},
            "seeds": list(losses),
            "target": 3.0,
            "questions": [
                {"ask": "?", "this": {"train.warmup": 0}, "that": {"train.warmup": 300}, "expect": "better"}
            ],
        }
    )
    values = {"train.warmup": 0, "train.lr": 1e-3}
    report(study, [made(values, seed, loss) for seed, loss in losses.items()], tmp_path)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "not testable" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_rate_at_which_every_run_diverged_keeps_its_place(tmp_path: Path) -> None:
    """Warnings are errors here: matplotlib warns where it cannot lay a figure out."""
    study = Study.model_validate({"name": "hot", "base": "x.yaml", "axes": {"train.lr": [1e-2, 10.0]}})
    outcomes = [
        made(s, seed, 3.0 if s["train.lr"] < 1 else None) for s in study.settings() for seed in (1, 2, 3)
    ]
    report(study, outcomes, tmp_path)
    assert {"rates", "divergence"} <= {p.stem for p in (tmp_path / "figures").iterdir()}
    assert "| rate 10 | 3 | 3 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_missing_matplotlib_is_told_with_its_remedy(
    study: Study, outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install prepost-transformer\[report\]"):
        report(study, outcomes, tmp_path)


def test_the_bootstrap_reads_translations_that_were_kept(tmp_path: Path) -> None:
    study = Study.model_validate(
        {
            "name": "kept",
            "base": "x.yaml",
            "axes": {"model.placement": ["post", "pre"]},
            "seeds": [1, 2],
            "questions": [
                {
                    "ask": "?",
                    "this": {"model.placement": "pre"},
                    "that": {"model.placement": "post"},
                    "expect": "better",
                }
            ],
        }
    )
    reference = [f"a small cat sees house {i}" for i in range(30)]
    outcomes = []
    for setting in study.settings():
        for seed in study.seeds:
            run = made(setting, seed, 3.0, tmp_path / str(setting["model.placement"]))
            lines = reference if setting["model.placement"] == "pre" else [line[2:] for line in reference]
            (run.cell.run_dir / "tests").mkdir(parents=True)
            for ending, text in (("hyp", lines), ("ref", reference)):
                file = run.cell.run_dir / "tests" / f"news.{ending}"
                file.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
            outcomes.append(run)
    report(study, outcomes, tmp_path / "out")
    rows = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if "| news |" in line]
    assert len(rows) == 2
    assert all("100.00" in row and "p < 0.001" in row.replace("\\", "") for row in rows)


def test_an_arm_is_called_by_its_label_and_not_by_what_it_sets() -> None:
    study = Study.model_validate(
        {
            "name": "arms",
            "base": "x.yaml",
            "arms": [
                {"label": "ours", "set": {"model.placement": "pre", "train.lr": 1e-3}},
                {"label": "theirs", "set": {"model.placement": "post", "train.lr": 1e-2}},
            ],
            "axes": {"train.warmup": [0, 300]},
        }
    )
    groups = grouped([made(s, 1, 3.0) for s in study.settings()], list(study.settings()))
    assert list(axes_of(groups)) == ["arm", "train.warmup"]
    assert [line.label for line in lines_of(groups)] == [
        "ours, no warm-up",
        "ours, warm-up 300",
        "theirs, no warm-up",
        "theirs, warm-up 300",
    ]


def test_lines_are_told_apart_without_colour() -> None:
    settings = [{"model.placement": p, "train.warmup": w} for p in ("post", "pre", "keel") for w in (0, 300)]
    lines = lines_of(grouped([made(s, 1, 3.0) for s in settings]))
    ((title, panel),) = panels_of(lines)
    assert title == ""
    looks = {
        (str(line.look["linestyle"]), line.look["marker"], line.look["markerfacecolor"]) for line in panel
    }
    assert len(looks) == 6


def test_many_lines_have_a_panel_for_each_arm() -> None:
    settings = [{"model.placement": f"p{i}", "train.warmup": w} for i in range(4) for w in (0, 300)]
    panels = panels_of(lines_of(grouped([made(s, 1, 3.0) for s in settings])))
    assert [title for title, _ in panels] == ["p0", "p1", "p2", "p3"]
    colours = [[line.colour for line in held] for _, held in panels]
    assert all(each == colours[0] and len(set(each)) == 2 for each in colours)


def test_mappings_are_written_as_in_the_file(tmp_path: Path) -> None:
    mixed = {"encoder": "batch", "decoder": "layer"}
    study = Study.model_validate(
        {
            "name": "made",
            "base": "x.yaml",
            "arms": [{"label": "mixed", "set": {"model.norm": mixed}}, {"label": "plain"}],
            "budget": {"data.test": {}, "train.validate_bleu": False, "train.betas": [0.9, 0.98]},
        }
    )
    report(study, [made(s, 1, 3.0 + 0.1 * i) for i, s in enumerate(study.settings())], tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "arm mixed: model.norm = {encoder: batch, decoder: layer}" in page
    assert "in all runs: data.test = {}, train.validate_bleu = false, train.betas = [0.9, 0.98]" in page
    assert "Fewer than 3 seeds are too few for any answer." in page


def test_labels_say_values_as_readers_do() -> None:
    values = {
        "train.lr": "1e-3",
        "train.warmup": 0,
        "model.norm": "rms",
        "model.placement": "pre",
        "depth": 6,
    }
    assert label(values) == "pre, rms, depth 6, no warm-up, rate 1e-3"
    assert label({"model.norm": {"encoder": "rms", "default": "layer"}}).startswith("norm ")
    assert label({}) == "all runs"


def test_the_best_setting_has_the_fewest_failures_before_the_lowest_loss() -> None:
    settings: Sequence[tuple[float, list[float | None]]] = [
        (1.0, [2.0, None]),
        (2.0, [3.0, 3.1]),
        (3.0, [3.2, 3.3]),
    ]
    outcomes = [made({"train.lr": lr}, seed, v) for lr, held in settings for seed, v in enumerate(held)]
    best = best_of(grouped(outcomes))
    assert best is not None
    assert best.values == {"train.lr": 2.0}


def test_a_lines_sensitivity_counts_diverged_seeds_at_the_initial_loss() -> None:
    outcomes = [made({"train.lr": 1e-3}, seed, 3.0) for seed in (1, 2)]
    outcomes += [made({"train.lr": 1e-2}, 1, None), made({"train.lr": 1e-2}, 2, 4.0)]
    (line,) = lines_of(grouped(outcomes))
    assert line_sensitivity(line) == pytest.approx(sensitivity({1e-3: 3.0, 1e-2: (9.0 + 4.0) / 2}, 9.0))


def test_an_arm_that_begins_high_has_no_larger_sensitivity_for_that() -> None:
    settings = [(arm, rate, 3.0 if rate < 1e-2 else None) for arm in ("a", "b") for rate in (1e-3, 1e-2)]
    outcomes = [made({"arm": arm, "train.lr": rate}, 1, loss) for arm, rate, loss in settings]
    for run in outcomes[2:]:
        object.__setattr__(run, "train_curve", [(1, 90.0)])
    one, other = (line_sensitivity(line) for line in lines_of(grouped(outcomes)))
    assert one == other == pytest.approx(3.0)


@pytest.mark.parametrize("tie", ["all", "none"])
def test_operations_are_twice_the_entries_of_the_matrices_a_token_meets(tie: Any) -> None:
    config = ModelConfig(d_model=16, heads=2, d_ff=40, encoder_layers=3, decoder_layers=2, tie_embeddings=tie)
    d, f, layers, decoders, words = 16, 40, 3, 2, 50
    cost = cost_of(config, words, words)
    assert cost.source == 2 * (layers * (4 * d * d + 2 * d * f) + decoders * 2 * d * d)
    assert cost.target == 2 * (decoders * (6 * d * d + 2 * d * f) + d * words)
