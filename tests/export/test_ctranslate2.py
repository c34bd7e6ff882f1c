"""CTranslate2 gives an exported model's numbers, and its engine keeps the translator's contract."""

from __future__ import annotations

import math
import re
import sys
from itertools import islice
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

from transformer import NORMS, PLACEMENTS, Transformer
from transformer.core.errors import CheckpointError, ConfigError
from transformer.core.special import EOS
from transformer.decoding import DecodeConfig, Limits
from transformer.decoding.engine import Models, Request
from transformer.decoding.penalties import average
from transformer.export.conversion import write_model
from transformer.export.engine import CTranslate2, cannot
from transformer.export.folding import fold
from transformer.export.verification import TOLERANCE, Agreement, Lines
from transformer.modules.folded import Wiring

V, ROWS = 19, 24
VOCABULARY = [f"piece{i}" for i in range(V)]
SENTENCES = ["4 9 4 17 6", "5", "", "11 12 13 14 15 16 17 18 4", "8 8"]


class Numbers:
    """A tokenizer of numbers."""

    size = V

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def pieces(self, ids: Any) -> list[str]:
        return [VOCABULARY[i] for i in ids]


def model_of(**flags: Any) -> Transformer:
    shape = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    model = Transformer(V, V, **{**shape, **flags}).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() < 2 else 0.1
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model


def engine_of(model: Transformer, folder: Path, quantization: str | None = None) -> CTranslate2:
    write_model(fold(model, ROWS), VOCABULARY, VOCABULARY, folder, quantization)
    return CTranslate2(folder, VOCABULARY, VOCABULARY, ROWS, threads=1, quantization=quantization)


def lines_of(model: Transformer, references: list[str] | None = None) -> Lines:
    decode = DecodeConfig(beam=3, max_length=10)
    return Lines(model, (Numbers(), Numbers()), SENTENCES, references, decode, ROWS)


def served(placement: str) -> bool:
    shape = {"d_model": 8, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "d_ff": 8}
    with torch.device("meta"):
        model = Transformer(V, V, placement=placement, **shape)
    return all(site.folded() is not None for site, _ in model.sites())


SERVED = [name for name in PLACEMENTS if served(name)]


@pytest.mark.parametrize(
    "flags",
    [
        *({"placement": placement} for placement in SERVED),
        *({"placement": placement, "norm": "rms"} for placement in ("admin", "pre", "peri")),
        {"placement": "admin", "norm": "scale", "embedding_norm": True},
        {
            "placement": {"encoder": "sandwich", "decoder": "admin"},
            "norm": {"encoder": "rms", "decoder": "layer"},
        },
        {
            "norm": {"encoder": {"1": "rms", "default": "layer"}, "decoder": "layer"},
            "encoder_layers": 3,
            "decoder_layers": 1,
        },
        {
            "placement": "sandwich",
            "norm": {"encoder": "rms", "decoder": {"2": "rms", "default": "layer"}},
            "encoder_layers": 1,
        },
        {"placement": "mix", "placement_options": {"share": 1}},
        {"activation": "swiglu", "fix_norm": True},
        {"activation": "gelu", "positions": "learned", "max_length": ROWS},
    ],
    ids=str,
)
def test_ctranslate2_gives_the_numbers_and_the_choices_of_the_model(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(**flags)
    agreement = lines_of(model).agreement(engine_of(model, tmp_path))
    assert agreement.holds
    assert agreement.log_p < 1e-5
    assert agreement.greedy_same == agreement.lines == 4


def test_all_three_wirings_are_among_those() -> None:
    found = {site.folded().wiring for name in SERVED for site, _ in model_of(placement=name).sites()}
    assert found == set(Wiring)


@pytest.mark.parametrize("forgotten", ["residual", "norm"])
def test_an_export_with_a_fold_forgotten_is_noticed(forgotten: str, tmp_path: Path) -> None:
    model = model_of(placement="admin")
    engine = engine_of(model, tmp_path)
    with torch.no_grad():
        site = model.decoder.residuals(1)[1]
        (site.omega if forgotten == "residual" else site.norm.weight).mul_(1.1)
    agreement = lines_of(model).agreement(engine)
    assert not agreement.holds
    assert agreement.log_p > 10 * TOLERANCE


def test_a_cross_attention_without_its_norms_is_noticed(tmp_path: Path) -> None:
    """The sandwich's norms around cross-attention are where the model has them."""
    model = model_of(placement="sandwich")
    engine = engine_of(model, tmp_path)
    for name in ("norm_in", "norm_out"):
        site = model.decoder.residuals(0)[1]
        kept = getattr(site, name)
        setattr(site, name, torch.nn.Identity())
        assert not lines_of(model).agreement(engine).holds, name
        setattr(site, name, kept)
    assert lines_of(model).agreement(engine).holds


@pytest.mark.parametrize("part", ["log_p", "greedy_loss"])
def test_an_agreement_holds_where_both_numbers_are_within_their_tolerance(part: str) -> None:
    allowed = TOLERANCE if part == "log_p" else 2 * TOLERANCE  # a choice compares two numbers

    def holds(found: float) -> bool:
        figures = {"log_p": 0.0, "greedy_loss": 0.0, part: found}
        return Agreement(lines=1, subwords=2, greedy_same=1, **figures).holds

    assert all(map(holds, (0.0, allowed / 2, allowed)))
    assert not any(map(holds, (allowed * 1.01, 1.0, math.inf, math.nan)))


def early(search: Any) -> Any:
    """Searches that end a subword too soon, as a cache that is wrong from some column on makes them."""
    return lambda *asked: [[(ids[:-1], total) for ids, total in each] for each in search(*asked)]


def test_an_export_that_is_wrong_step_by_step_alone_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    engine, lines = engine_of(model, tmp_path), lines_of(model)
    assert lines.agreement(engine).holds
    monkeypatch.setattr(engine, "_search", early(engine._search))
    agreement = lines.agreement(engine)
    assert agreement.log_p < 1e-5
    assert agreement.greedy_loss > 2 * TOLERANCE
    assert agreement.greedy_same < agreement.lines
    assert not agreement.holds


def test_int8_is_near_and_its_outputs_are_scored(tmp_path: Path) -> None:
    model = model_of(placement="deepnorm", d_model=32)
    engine = engine_of(model, tmp_path, "int8")
    lines = lines_of(model, ["5 5", "6", "", "7 8 9", "4"])
    assert 0 < lines.agreement(engine).log_p < 1
    outputs = lines.outputs({"run again": lines.translations(lines.ours), "int8": lines.translations(engine)})
    assert outputs.lines == outputs.same["run again"] == 5
    assert outputs.bleu is not None
    assert list(outputs.bleu) == ["run", "run again", "int8"]
    assert outputs.bleu["run"] == outputs.bleu["run again"]


def requests(limit: int, prefix: tuple[int, ...] = ()) -> list[Request]:
    encoded = Numbers().encode_batch([s for s in SENTENCES if s])
    return [Request(i, ids, Limits(limit + i, 0, prefix)) for i, ids in enumerate(encoded)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, CTranslate2]:
    """A model that hardly ever ends a sentence, here and served."""
    model = model_of(tie_embeddings="none")
    with torch.no_grad():
        model.decoder.final_norm.bias *= 5
        model.output.weight[EOS] = -0.1 * model.decoder.final_norm.bias
    return Models([model], "float32"), engine_of(model, tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize(
    "config", [{"search": "greedy"}, {"beam": 5, "n_best": 5}, {"beam": 3, "length_penalty": "none"}]
)
@pytest.mark.parametrize("prefix", [(), (7, 1), (7, 1, 5, 6, 8)], ids=len)  # 1: search never chooses it
def test_hypotheses_keep_their_limits_and_have_the_models_log_p(
    pair: tuple[Models, CTranslate2], prefix: tuple[int, ...], config: dict[str, Any]
) -> None:
    """Prefixes of two leave choices, one of five is all that the shorter limits allow."""
    ours, engine = pair
    decode = DecodeConfig(**config)
    asked = requests(3, prefix)
    with ours.working():
        for request, found, expected in zip(
            asked, engine.search(asked, decode), ours.search(asked, decode), strict=True
        ):
            assert len(found) == len(expected)
            assert len({h.tokens for h in found}) == len(found)
            assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
            for h in found:
                assert h.tokens[: len(prefix)] == prefix
                assert not set(h.tokens[len(prefix) :]) & {0, 1, 2, EOS}
                assert len(h.tokens) <= request.limits.cap
                (log_probs,) = ours.token_log_probs([(request.source, h.tokens)])
                assert h.log_probability == pytest.approx(sum(log_probs), abs=1e-4)
                exponent = 0 if decode.length_penalty == "none" else 1
                assert h.score == pytest.approx(h.log_probability / average(len(h.tokens) + 1, exponent))


class Both:
    """A translator to which each thread comes first when another one does."""

    def __init__(self, translator: Any) -> None:
        self.translator, self.met, self.came = translator, Barrier(2), set[int]()

    def translate_batch(self, *words: Any, **options: Any) -> Any:
        if get_ident() not in self.came:
            self.came.add(get_ident())
            self.met.wait(timeout=20)
        return self.translator.translate_batch(*words, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.translator, name)


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [4], [3]], ids=str)
def test_with_two_threads_two_batches_or_parts_are_searched_at_a_time(
    cuts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(fold(model_of(), ROWS), VOCABULARY, VOCABULARY, tmp_path)
    engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, positions=ROWS, threads=2)
    asked, decode = iter(requests(8)), DecodeConfig(beam=2)
    batches = [list(islice(asked, size)) for size in cuts]
    alone = [engine.search(batch, decode) for batch in batches]
    monkeypatch.setattr(engine, "translator", Both(engine.translator))
    found = engine.search_all(batches, decode)
    assert [[h.tokens for each in b for h in each] for b in found] == [
        [h.tokens for each in b for h in each] for b in alone
    ]
    assert [len(b) for b in found] == cuts
    assert engine.search_all([], decode) == []


def test_an_error_in_one_batch_of_several_is_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(fold(model_of(), ROWS), VOCABULARY, VOCABULARY, tmp_path)
    engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, positions=ROWS, threads=2)
    batches = [[request] for request in requests(8)[:4]]
    search = engine.search

    def failing(batch: list[Request], config: DecodeConfig) -> Any:
        if batch == batches[1]:
            raise CheckpointError("the second")
        return search(batch, config)

    monkeypatch.setattr(engine, "search", failing)
    with pytest.raises(CheckpointError, match="the second"):
        engine.search_all(batches, DecodeConfig(beam=2))


def test_greedy_search_finds_what_ours_finds(pair: tuple[Models, CTranslate2]) -> None:
    ours, engine = pair
    decode = DecodeConfig(search="greedy", min_length=2)
    asked = [Request(r.number, r.source, Limits(r.limits.longest, 2)) for r in requests(4)]
    with ours.working():
        expected = [[h.tokens for h in found] for found in ours.search(asked, decode)]
    assert [[h.tokens for h in found] for found in engine.search(asked, decode)] == expected
    assert any(len(found[0]) == r.limits.cap for r, found in zip(asked, expected, strict=True))


@pytest.mark.parametrize("search", [{"search": "greedy"}, {"beam": 3, "n_best": 3}], ids=str)
def test_hypotheses_are_as_long_as_they_have_to_be(search: dict[str, Any], tmp_path: Path) -> None:
    """Of a model that ends each sentence as soon as it may; a limit below the shortest length goes first."""
    model = model_of(tie_embeddings="none")
    with torch.no_grad():
        model.decoder.final_norm.bias *= 5
        model.output.weight[EOS] = 0.1 * model.decoder.final_norm.bias
    ours, engine = Models([model], "float32"), engine_of(model, tmp_path)
    for shortest in (0, 3):
        decode = DecodeConfig(min_length=shortest, **search)
        asked = [Request(r.number, r.source, Limits(r.limits.longest, shortest)) for r in requests(2)]
        with ours.working():
            expected = ours.search(asked, decode)
        for request, found, wanted in zip(asked, engine.search(asked, decode), expected, strict=True):
            assert found[0].tokens == wanted[0].tokens
            assert len(found[0].tokens) == min(shortest, request.limits.cap)
            assert all(len(h.tokens) >= min(shortest, request.limits.cap) for h in found)


@pytest.mark.parametrize("scores", [True, False])
def test_what_is_not_a_number_is_an_error(scores: bool, tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad():
        model.decoder.final_norm.weight.fill_(math.nan)
    write_model(fold(model, ROWS), VOCABULARY, VOCABULARY, tmp_path)
    engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, ROWS, threads=1, scores=scores)
    with pytest.raises(CheckpointError, match="not numbers"):
        engine.search(requests(3), DecodeConfig())


@pytest.mark.parametrize("config", [{"search": "greedy", "length_penalty": "wu"}, {"beam": 4, "n_best": 3}])
def test_scores_that_nobody_reads_are_the_searchs_own(config: dict[str, Any], tmp_path: Path) -> None:
    """They are the model's where banned ids have no share of the probability, and all hypotheses end."""
    model = model_of(tie_embeddings="none")
    with torch.no_grad():  # the first four ids are next to impossible, but for EOS
        model.decoder.final_norm.bias *= 5
        model.output.weight[:4] = -model.decoder.final_norm.bias
        model.output.weight[EOS] = 0.2 * model.decoder.final_norm.bias
    write_model(fold(model, ROWS), VOCABULARY, VOCABULARY, tmp_path)
    decode, asked = DecodeConfig(**config), requests(14)
    found = []
    for scores in (True, False):
        engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, ROWS, threads=1, scores=scores)
        with patch.object(engine, "token_log_probs", wraps=engine.token_log_probs) as scoring:
            found.append([each for hypotheses in engine.search(asked, decode) for each in hypotheses])
            assert scoring.call_count == scores
            engine.search(requests(14, (7, 1)), decode)
            assert scoring.call_count == scores + 1, "what has a prefix is scored"
    for anew, own in zip(*found, strict=True):
        assert own.tokens == anew.tokens
        assert len(own.tokens) < 14
        assert own.log_probability == pytest.approx(anew.log_probability, rel=1e-4)
        assert own.score == pytest.approx(anew.score, rel=1e-4)


def test_errors_of_the_library_are_told_with_a_remedy(tmp_path: Path) -> None:
    write_model(fold(model_of(), 3), VOCABULARY, VOCABULARY, tmp_path)
    engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, positions=ROWS, threads=1)
    for answer in (
        lambda: engine.search(requests(3), DecodeConfig()),
        lambda: engine.token_log_probs([([4, 5, 6, 7], [4])]),
    ):
        with pytest.raises(CheckpointError, match=r"No position encodings.*; export again"):
            answer()
        engine.device = torch.device("cuda")  # where a library may be missing, which it finds out late
        with pytest.raises(CheckpointError, match="--device cpu"):
            answer()
        engine.device = torch.device("cpu")


def test_a_vocabulary_of_another_export_is_told(tmp_path: Path) -> None:
    write_model(fold(model_of(), ROWS), VOCABULARY, VOCABULARY, tmp_path)
    engine = CTranslate2(tmp_path, VOCABULARY, [*VOCABULARY[:4], *map(str, range(4, V))], ROWS, threads=1)
    with pytest.raises(CheckpointError, match=r"no piece 'piece\d+'.*; export again"):
        engine.search(requests(3), DecodeConfig(search="greedy"))


def test_numbers_that_the_device_has_not_are_no_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lines_of(model := model_of()).agreement(engine_of(model, tmp_path, "float16")).log_p < 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.9, "top_k": 3, "n_best": 9},
        {"length_penalty": "wu"},
        {"length_penalty": "wu", "n_best": 9},
    ],
    ids=str,
)
def test_who_follows_the_advice_against_sampling_is_refused_no_more(more: dict[str, Any]) -> None:
    config = DecodeConfig(search="sampling", **more)
    (problem,) = cannot(config, None)
    advised = dict(re.findall(r"decode\.(\w+)=([\w.]+)", problem.hint))
    assert set(advised) == set(more)
    followed = {**config.model_dump(), **{name: yaml.safe_load(value) for name, value in advised.items()}}
    for search in ("beam", "greedy"):
        allowed = DecodeConfig(**{**followed, "search": search})
        assert not list(allowed.conflicts())
        assert not list(cannot(allowed, None))


@pytest.mark.parametrize(
    ("config", "quantization", "paths"),
    [
        ({"precision": "auto"}, "int8", []),
        ({"precision": "float32"}, None, []),
        ({"precision": "int8"}, "int8", []),
        ({"precision": "int8"}, None, ["decode.precision"]),
        ({"precision": "int8"}, "float16", ["decode.precision"]),
        ({"precision": "float32"}, "int8", ["decode.precision"]),
        ({"precision": "float32"}, "float16", ["decode.precision"]),
        ({"precision": "bf16", "search": "sampling"}, None, ["decode.search", "decode.precision"]),
        ({"length_penalty": "wu"}, None, ["decode.length_penalty"]),
        ({"length_penalty": "wu", "search": "greedy"}, None, []),
        ({"length_penalty": "wu", "alpha": 0}, None, []),
    ],
    ids=str,
)
def test_options_that_it_cannot_follow_are_told(
    config: dict[str, Any], quantization: str | None, paths: list[str]
) -> None:
    assert [problem.path for problem in cannot(DecodeConfig(**config), quantization)] == paths


def test_without_the_library_the_command_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ConfigError, match=r"pip install .*ctranslate2"):
        CTranslate2(tmp_path, VOCABULARY, VOCABULARY, ROWS)


def test_the_page_tells_which_placements_and_norms_are_served() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for kind, registry in (("placement", PLACEMENTS), ("norm", NORMS)):
        assert all(f"`{name}`" in page for name in registry), kind


def test_loading_an_export_leaves_torch_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        write_model(fold(model_of(), ROWS), VOCABULARY, VOCABULARY, tmp_path)
        engine = CTranslate2(tmp_path, VOCABULARY, VOCABULARY, positions=ROWS, threads=1)
        assert torch.get_num_threads() == 2
        engine.token_log_probs([([5, 6], [7])])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
