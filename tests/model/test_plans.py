"""Placements and norms by place: the model that a plan builds, and what is refused with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from transformer import ModelConfig, Transformer
from transformer.core.configuration import Conflicts
from transformer.core.errors import ConfigError
from transformer.core.loading import load, to_yaml
from transformer.core.signature import options_of
from transformer.model.pairing import norm_needs, normless
from transformer.modules.norms import NORMS, Norm
from transformer.modules.placements import PLACEMENTS

TINY = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 3, "decoder_layers": 2, "dropout": 0.0}
UNNORMED = [name for name in PLACEMENTS if normless(name)]


def refused(**flags: Any) -> dict[str, str]:
    """Path -> message of all that is wrong with the flags."""
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**{**TINY, **flags})
    found: dict[str, str] = {}
    for error in caught.value.errors():
        conflicts = error["ctx"]["error"]
        assert isinstance(conflicts, Conflicts), error
        found |= {problem.path: str(problem) for problem in conflicts.problems}
    return found


def is_refused(**flags: Any) -> bool:
    try:
        ModelConfig(**{**TINY, **flags})
    except ValidationError:
        return True
    return False


def built(**flags: Any) -> Transformer:
    return Transformer(12, 12, **{**TINY, **flags})


def test_each_layer_of_each_stack_has_the_placement_and_the_norms_of_its_plan() -> None:
    model = built(
        placement={"encoder": {1: "post", "2-": "pre"}, "decoder": "resi_dual"},
        norm={
            "encoder": {"1-2": {"self_attention": "rms", "default": "layer"}, "3": "layer_simple"},
            "decoder": {"cross_attention": "rms", "final": "layer_simple"},
            "default": "layer",
        },
    )
    sites = [*model.encoder.sites(), *model.decoder.sites()]
    found = [(type(residual), type(residual.norm)) for residual, _ in sites]
    p = [PLACEMENTS[name] for name in ("post", "post", "pre", "pre", "pre", "pre", *["resi_dual"] * 6)]
    names = ["rms", "layer", "rms", "layer", "layer_simple", "layer_simple", *["layer", "rms", "layer"] * 2]
    assert found == list(zip(p, (NORMS[name] for name in names), strict=True))
    assert type(model.encoder.final_norm) is type(model.decoder.final_norm) is NORMS["layer_simple"]


def test_a_plan_that_says_the_same_everywhere_is_the_plain_model() -> None:
    """Initial values are drawn by name: the plan must not enter them, nor the arithmetic."""
    source, target = torch.randint(4, 12, (2, 5)), torch.randint(4, 12, (2, 4))
    plan = {"encoder": {"1": "post", "2-": "post"}, "default": "post"}
    norm = {"encoder": "rms", "decoder": {"feed_forward": "rms", "default": "rms"}}
    assert torch.equal(
        built(placement=plan, norm=norm).eval()(source, target),
        built(placement="post", norm="rms").eval()(source, target),
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_norms_that_are_checked_are_the_norms_that_are_built(placement: str) -> None:
    """Their places and widths, read off a model whose norms tell both."""
    model = built(placement=placement)
    expected: dict[tuple[str, int, str], set[int]] = {}
    parts = {2: ("self_attention", "feed_forward"), 3: ("self_attention", "cross_attention", "feed_forward")}

    def add(stack: str, layer: int, part: str, module: nn.Module) -> None:
        widths = {m.weight.numel() for m in module.modules() if isinstance(m, NORMS["layer"])}
        if widths:
            expected.setdefault((stack, layer, part), set()).update(widths)

    for stack in (model.encoder, model.decoder):
        for residual, sublayer in stack.sites():
            site = residual.site
            add(site.stack, site.layer, parts[site.slots][site.slot], residual)
            add(site.stack, site.layer, parts[site.slots][site.slot], sublayer)
        add(site.stack, site.layers - 1, "final", stack.final_norm)
        add(site.stack, 0, "embedding", stack.embedding_norm)
    found = {(n.stack, n.layer, n.part): set(n.widths) for n in norm_needs(model.config)}
    assert found == expected


@pytest.mark.parametrize("placement", UNNORMED)
def test_placements_without_norms_say_so_in_the_resolved_configuration(placement: str) -> None:
    config = ModelConfig(placement=placement)
    assert config.norm == ModelConfig(placement={"encoder": placement, "decoder": placement}).norm == "none"
    assert ModelConfig(placement={"encoder": placement, "decoder": "pre"}).norm == "layer"
    assert not [module for module in built(placement=placement).modules() if isinstance(module, Norm)]


@pytest.mark.parametrize("placement", UNNORMED)
@pytest.mark.parametrize("norm", ["layer", {"final": "rms", "default": "layer"}])
def test_a_norm_that_nothing_would_use_is_refused_whatever_is_allowed(placement: str, norm: Any) -> None:
    for allowed in (False, True):
        problems = refused(placement=placement, norm=norm, allow_unsound=allowed)
        assert "has no norms" in problems["norm"]
        assert "set norm: none" in problems["norm"]


def test_there_is_a_placement_without_norms_to_test() -> None:
    assert {"rezero", "fixup", "tfixup"} <= set(UNNORMED)
    assert not {"post", "pre", "rskip", "hybrid"} & set(UNNORMED), "norms may be a list, or inside the branch"
    assert not any(
        normless(plan) for plan in (None, 3, [], {}, "nonsense", {"encoder": ["x"]}, "{encoder: [")
    )
    assert normless("{encoder: rezero, decoder: fixup}")


@pytest.mark.parametrize(
    ("flags", "path", "message"),
    [
        (
            {"placement": {"encoder": "pre"}},
            "placement",
            "says nothing for decoder layer 1; add `default: NAME`",
        ),
        ({"placement": {"1-2": "pre"}}, "placement", "says nothing for encoder layer 3"),
        (
            {"norm": {"encoder": "rms"}},
            "norm",
            "says nothing for decoder layer 1, self_attention, where the placement has a norm",
        ),
        (
            {"norm": {"self_attention": "rms", "feed_forward": "rms", "cross_attention": "rms"}},
            "norm",
            "says nothing for encoder layer 3, final",
        ),
        (
            {"placement": {"1-4": "pre"}},
            "placement.1-4",
            "no such layers: encoder_layers and decoder_layers are at most 3",
        ),
        (
            {"placement": {"decoder": {"1-3": "pre"}, "default": "pre"}},
            "placement.decoder.1-3",
            "no such layers: decoder_layers is 2",
        ),
        (
            {"norm": {"encoder": {"4-": {"final": "rms"}}, "default": "rms"}},
            "norm.encoder.4-",
            "no such layers: encoder_layers is 3",
        ),
        ({"norm": {"decoder": {3: "rms"}, "default": "rms"}}, "norm.decoder.3", "decoder_layers is 2"),
        (
            {"placement": "post", "norm": {"final": "rms", "default": "layer"}},
            "norm.final",
            "rms would not be used",
        ),
        (
            {"norm": {"encoder": {"cross_attention": "rms"}, "default": "layer"}},
            "norm.encoder.cross_attention",
            "rms would not be used",
        ),
        (
            {"norm": {"embedding": "rms", "default": "layer"}},
            "norm.embedding",
            "the placement has no norm there; set embedding_norm: true, or leave it out",
        ),
        (
            {"placement": "post", "norm": "none"},
            "norm",
            "none does not go with placement post in the encoder and decoder",
        ),
        (
            {"placement": "post", "norm": {"decoder": {"feed_forward": "none"}, "default": "rms"}},
            "norm.decoder.feed_forward",
            "placement post in the decoder",
        ),
        (
            {"norm_options": {"k": 1}},
            "norm_options.k",
            "unknown option of the norm; it is of ada; layer has none",
        ),
        (
            {"placement": "xskip", "placement_options": {"scael": 1}},
            "placement_options.scael",
            "did you mean 'scale'?",
        ),
        (
            {"placement": "xskip", "placement_options": {"scale": -1}},
            "placement_options.scale",
            "must be greater than 0, got -1",
        ),
        (
            {"placement": "xskip", "placement_options": {"scale": "big"}},
            "placement_options.scale",
            "expected a number, got 'big'",
        ),
        (
            {"norm_options": {"grups": 1}},
            "norm_options.grups",
            "unknown option of the norm; did you mean 'groups', of group and power?",
        ),
        (
            {"norm": "group", "norm_options": {"grups": 1}},
            "norm_options.grups",
            "unknown option of the norm; did you mean 'groups'?",
        ),
        (
            {"norm": "group", "norm_options": {"power": {"groups": 2}}},
            "norm_options.power",
            "norm power is not chosen: its options would not be used; leave it out",
        ),
        (
            {"norm": "group", "norm_options": {"grop": {"groups": 2}}},
            "norm_options.grop",
            "none is called 'grop'; write norm_options: {NAME: {option: value}} with one of group",
        ),
        (
            {"norm": "group", "norm_options": {"groups": {"group": 2}}},
            "norm_options.groups",
            "a mapping is for the norm of its name",
        ),
        (
            {"norm": "group", "norm_options": {"group": {"k": 1}}},
            "norm_options.group.k",
            "unknown option of the norm; it is of ada; known here: groups",
        ),
        (
            {"norm": "group", "norm_options": {"groups": "x", "group": {"groups": "y"}}},
            "norm_options.group.groups",
            "expected a number, got 'y'",
        ),
        (
            {"placement": "layerscale", "placement_options": {"init": 1e39}},
            "placement_options.init",
            "1e+39 is out of the range of float32",
        ),
        (
            {"norm": "derf", "norm_options": {"alpha": 1e-60}},
            "norm_options.alpha",
            "1e-60 is out of the range of float32",
        ),
        (
            {"placement": "rskip", "placement_options": {"times": 10**7}},
            "placement_options.times",
            "must be less than or equal to 100",
        ),
        (
            {"placement": "hyper", "placement_options": {"streams": 10**12}},
            "placement_options.streams",
            "must be less than or equal to 64",
        ),
        (
            {"placement": "rskip", "placement_options": {"times": 2.5}},
            "placement_options.times",
            "expected a whole number",
        ),
        (
            {"norm": "group", "norm_options": {"groups": 5}},
            "norm_options.groups",
            "group cannot norm 16 numbers, as in the encoder layer 1, self_attention: 5 groups do not divide "
            "the width 16; set norm_options.groups to what fits, or choose another norm there",
        ),
        (
            {"norm": "group", "norm_options": {"group": {"groups": 5}}},
            "norm_options.group.groups",
            "group cannot norm 16 numbers",
        ),
        (
            {"norm": "group", "d_model": 18},
            "norm",
            "4 groups do not divide the width 18; set norm_options.groups",
        ),
        (
            {"placement": "sub_ln", "norm": "group", "norm_options": {"groups": 4}, "d_ff": 30},
            "norm_options.groups",
            "group cannot norm 30 numbers, as in the encoder layer 1, feed_forward",
        ),
        (
            {
                "placement": "hybrid",
                "norm": {"self_attention": "group", "default": "layer"},
                "norm_options": {"groups": 8},
            },
            "norm_options.groups",
            "group cannot norm 8 numbers",
        ),
    ],
)
def test_what_does_not_fit_is_refused_where_it_was_said(
    flags: dict[str, Any], path: str, message: str
) -> None:
    problems = refused(**flags)
    assert list(problems) == [path]
    assert message in problems[path]


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if not normless(name)])
def test_senseless_pairs_may_be_forced_and_then_run(placement: str) -> None:
    """Forward and backward; the pairs that cannot even be built are refused with a way out."""
    source, target = torch.randint(4, 12, (3, 5)), torch.randint(4, 12, (3, 4))
    senseless = [n for n in NORMS if is_refused(placement=placement, norm=n)]
    assert senseless, "every placement refuses norms over a batch in its decoder"
    for norm in senseless:
        if is_refused(placement=placement, norm=norm, allow_unsound=True):
            assert PLACEMENTS[placement].excludes(NORMS[norm])
            assert "choose another" in refused(placement=placement, norm=norm, allow_unsound=True)["norm"]
            continue
        assert "allow_unsound=true" in refused(placement=placement, norm=norm)["norm"]
        few = {"encoder_layers": 1, "decoder_layers": 1}
        model = built(placement=placement, norm=norm, allow_unsound=True, **few)
        model(source, target).logsumexp(-1).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), norm


def test_what_cannot_be_built_may_not_be_forced() -> None:
    assert refused(norm="group", norm_options={"groups": 5}, allow_unsound=True)
    assert refused(placement={"1-4": "pre"}, allow_unsound=True)


def test_every_refusal_comes_at_once_and_one_for_each_reason() -> None:
    problems = refused(
        placement={"encoder": "pre", "decoder": {"1-9": "post"}},
        norm={"encoder": {"8": "rms"}, "default": "layer"},
        norm_options={"x": 1, "y": 2},
        placement_options={"z": 1},
    )
    assert set(problems) == {
        "placement.decoder.1-9",
        "norm.encoder.8",
        "norm_options.x",
        "norm_options.y",
        "placement_options.z",
    }


def test_what_rests_on_a_value_that_is_wrong_itself_is_not_reported() -> None:
    """A refused value counts as its default when the rest is checked; what that brings is no finding."""
    wrong = ["placement=psot", "placement_options={times: 2}"]
    with pytest.raises(ConfigError) as caught:
        load(ModelConfig, None, ["norm=grupo", "norm_options={groups: 2}", *wrong, "encoder_layers=many"])
    assert [problem.path for problem in caught.value.problems] == ["placement", "norm", "encoder_layers"]
    with pytest.raises(ConfigError) as caught:
        load(
            ModelConfig,
            None,
            ["placement=hybird", "norm={encoder: {9: rms}, default: rms}", "encoder_layers=x"],
        )
    assert [problem.path for problem in caught.value.problems] == ["placement", "encoder_layers"]


def test_a_stack_without_layers_still_has_its_end() -> None:
    plan = {"encoder": "pre", "decoder": "post"}
    model = built(encoder_layers=0, placement=plan, norm={"encoder": "rms", "decoder": "layer"})
    assert type(model.encoder.final_norm) is NORMS["rms"]
    assert "placement" in refused(encoder_layers=0, placement={"decoder": "post"})
    assert (
        "no such layers: encoder_layers is 0"
        in refused(encoder_layers=0, placement={"encoder": {"1-": "pre"}, "decoder": "pre"})[
            "placement.encoder.1-"
        ]
    )


def test_options_reach_what_declares_them_and_only_that() -> None:
    model = built(
        placement={"encoder": "xskip", "decoder": "rskip"},
        placement_options={"scale": "3", "times": 3},
        norm={"encoder": "ada", "decoder": "group"},
        norm_options={"k": 0.2, "groups": 2},
    )
    encoder, decoder = (next(iter(stack.sites()))[0] for stack in (model.encoder, model.decoder))
    assert encoder.alpha == 3
    assert len(decoder.norm) == 3
    assert {m.k for m in model.encoder.modules() if isinstance(m, NORMS["ada"])} == {0.2}
    assert {m.groups for m in model.decoder.modules() if isinstance(m, NORMS["group"])} == {2}


def test_options_by_name_reach_that_class_alone_and_come_before_those_for_all() -> None:
    options = {"alpha": 0.25, "derf": {"alpha": 0.75}}
    model = built(norm={"encoder": "dyt", "decoder": "derf"}, norm_options=options)
    for stack, name, alpha in ((model.encoder, "dyt", 0.25), (model.decoder, "derf", 0.75)):
        assert {m.alpha.item() for m in stack.modules() if isinstance(m, NORMS[name])} == {alpha}
    placements = {"encoder": "xskip", "decoder": "keel"}
    model = built(placement=placements, placement_options={"keel": {"alpha": 5}, "xskip": {"scale": 3}})
    assert [next(reversed(list(stack.sites())))[0].alpha for stack in (model.encoder, model.decoder)] == [
        3,
        5,
    ]


def test_the_resolved_options_are_those_of_all_that_is_chosen_with_their_values() -> None:
    config = ModelConfig(
        placement={"encoder": "xskip", "decoder": "post"},
        norm="group",
        norm_options={"group": {"groups": "2"}},
    )
    assert config.resolved_options() == {"placement.xskip": {"scale": 2.0}, "norm.group": {"groups": 2}}
    assert ModelConfig().resolved_options() == {}


def test_an_option_of_the_command_line_may_be_addressed_by_name() -> None:
    overrides = ["norm=group", "norm_options.group.groups=8", "norm_options.groups=2"]
    config = load(ModelConfig, None, overrides)
    assert config.norm_options_of("group") == {"groups": 8}


def test_options_of_older_versions_are_answered_with_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        load(ModelConfig, None, ["decoder_norm=null", "decoder_placement=pre"])
    found = {problem.path: problem.hint for problem in caught.value.problems}
    assert found.keys() == {"decoder_norm", "decoder_placement"}
    assert all("delete it where it is null" in hint for hint in found.values())
    assert "placement: {encoder: NAME, decoder: NAME}" in found["decoder_placement"]


def test_a_placement_that_torch_cannot_build_is_a_problem_of_its_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overflow(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("numel: integer multiplication overflow\nmore")

    monkeypatch.setattr(PLACEMENTS["hyper"], "__init__", overflow)
    (message,) = refused(placement="hyper").values()
    assert message.endswith(
        "cannot be built with these options: numel: integer multiplication overflow; ask for less"
    )


@pytest.mark.parametrize("registry", [PLACEMENTS, NORMS], ids=["placements", "norms"])
def test_every_option_has_a_help_text_and_a_legal_default(registry: Any) -> None:
    for name in registry:
        section = options_of(registry[name])
        section.model_validate({})
        assert all(field.description for field in section.model_fields.values()), name


def test_a_configuration_with_plans_survives_its_yaml(tmp_path: Any) -> None:
    overrides = [
        "placement={encoder: {1-2: post, 3: pre}, decoder: xskip}",
        "norm={encoder: {2: {feed_forward: rms}}, default: ada}",
        "norm_options={k: 0.2}",
        "placement_options.scale=1.5",
        "encoder_layers=3",
    ]
    config = load(ModelConfig, None, overrides)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(ModelConfig, tmp_path / "config.yaml") == config


def test_a_problem_names_the_flag_that_brought_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load(ModelConfig, None, ["placement=post", "norm.decoder=none"])
    (problem,) = caught.value.problems
    assert (problem.path, problem.source) == ("norm.decoder", "--set norm.decoder=none")
