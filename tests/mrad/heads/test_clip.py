"""CLIP's priors, the empty regions that the oracle does not cover, and its options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mrad import Detector
from mrad.errors import CheckpointError
from mrad.heads import load_head
from mrad.heads.clip import CLIPConfig, CLIPHead, prompt_probability, region_priors


@pytest.fixture
def head(tiny_encoder, tiny_bank, make_state) -> CLIPHead:
    built = CLIPHead(tiny_encoder, CLIPConfig(), make_state("clip", tiny_encoder))
    built.attach(tiny_bank)
    return built


@pytest.fixture
def features(tiny_encoder, make_image):
    return tiny_encoder.encode([make_image(seed, defect=seed % 2 > 0)[0] for seed in range(20, 24)])


def test_priors_are_the_means_of_both_regions():
    joint = F.normalize(torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    anomalous = torch.zeros(2, 9, dtype=torch.bool)
    anomalous[0, [1, 4]] = anomalous[1, 8] = True
    priors = region_priors(joint, anomalous)
    assert torch.allclose(priors[0, 1], joint[0, [1, 4]].mean(dim=0), atol=1e-6)
    assert torch.allclose(priors[1, 0], joint[1, :8].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(("threshold", "empty"), [(2.0, 1), (-1.0, 0)])
def test_an_empty_region_has_a_zero_prior_and_the_bare_context(
    threshold, empty, tiny_encoder, tiny_bank, make_state, features
):
    """No patch above the threshold: no anomalous region. Every patch above it: no normal one."""
    state = make_state("clip", tiny_encoder)
    config = CLIPConfig(region_threshold=threshold)
    head = CLIPHead(tiny_encoder, config, state)
    head.attach(tiny_bank)
    joint = F.normalize(tiny_encoder.project_patch(features.patch), dim=-1)
    priors = head.priors(joint, head.retrieve(features).patch)
    assert (priors[:, empty] == 0).all()
    assert torch.allclose(priors[:, 1 - empty], joint.mean(dim=1), atol=1e-6)
    context = head.weights.context(priors)[:, empty]
    name = ("ctx_pos", "ctx_neg")[empty]
    bias = state[f"prompt_proj.mlp{empty + 1}.bias"]
    assert torch.allclose(
        context, (state[f"prompt_learner.{name}"][0] + bias).expand_as(context), atol=1e-6
    )
    output = head(features)
    assert torch.isfinite(output.patch).all()
    assert output.patch.std() > 0


def test_both_regions_of_one_batch_may_differ_in_emptiness(head, features):
    """An image keeps its own prompts, whatever else is in the batch."""
    together = head(features)
    for row in range(len(features)):
        alone = head(features[row : row + 1])
        assert (alone.patch[0] - together.patch[row]).abs().max() < 1e-5


def test_the_image_probability_is_ft_s(head, features):
    assert torch.equal(head(features).image, head.retrieve(features).image)


def test_ft_never_runs_the_text_tower(tiny_encoder, tiny_bank, make_checkpoint, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the text tower was touched")

    monkeypatch.setattr("mrad.heads.text.TextTower.forward", refuse)
    monkeypatch.setattr("mrad.heads.text.TextTower.prefix", refuse)
    path = make_checkpoint("ft", tiny_encoder)
    Detector(tiny_encoder, tiny_bank, "ft", checkpoint=path)


def test_the_text_tower_runs_once_a_batch(head, features, monkeypatch):
    calls = []
    own = head.text.forward
    monkeypatch.setattr(head.text, "forward", lambda *a: calls.append(len(a[0])) or own(*a))
    head(features)
    assert calls == [len(features)]


def test_the_released_map_formula_is_the_anomalous_probability():
    generator = torch.Generator().manual_seed(1)
    joint = F.normalize(torch.randn(2, 9, 5, generator=generator), dim=-1)
    text = F.normalize(torch.randn(2, 2, 5, generator=generator), dim=-1)
    p = torch.softmax(joint @ text.transpose(1, 2) / 0.07, dim=-1)
    released = (p[..., 1] + 1 - p[..., 0]) / 2
    assert torch.allclose(prompt_probability(joint, text, 0.07), released, atol=1e-6)


def test_deep_prompts_are_rounded_to_half_as_the_release_does(tiny_encoder, make_state):
    state = make_state("clip", tiny_encoder)
    deep = state["prompt_learner.compound_prompts_text.0"]
    rounded, full = (
        CLIPHead(tiny_encoder, CLIPConfig(half_deep_prompts=half), state).weights.deep(half)[0]
        for half in (True, False)
    )
    assert torch.equal(full, deep)
    assert torch.equal(rounded, deep.half().float())
    assert not torch.equal(rounded, deep)


def test_config_comes_with_the_checkpoint_and_can_be_overridden(tiny_encoder, make_checkpoint):
    path = make_checkpoint("clip", tiny_encoder)
    assert load_head("clip", tiny_encoder, checkpoint=path).config == CLIPConfig()
    other = load_head("clip", tiny_encoder, checkpoint=path, config={"temperature": 0.1})
    assert other.config.temperature == 0.1


def test_a_checkpoint_without_prompts_is_refused(tiny_encoder, make_state):
    with pytest.raises(CheckpointError, match=r"prompt_learner\.ctx_pos"):
        CLIPHead(tiny_encoder, CLIPConfig(), make_state("ft", tiny_encoder))
