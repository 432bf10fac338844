"""FT against its formula, on several geometries, and what `attach` and `exclude` promise."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import HeadError
from mrad.heads import NoSettings, available_heads, load_head
from mrad.heads.ft import FTHead

GEOMETRIES = {
    "patch 14": ({"patch_size": 14, "image_size": 56}, 84, True),
    "patch 16": ({"patch_size": 16, "image_size": 64}, 64, False),
    "patch 32": ({"patch_size": 32, "image_size": 96}, 160, True),
}


def by_hand(state, bank: MemoryBank, features, exclude=None):
    """p(q) = sum_i softmax_i((A q + a).(B k + b)) v_i, in NumPy and float64."""

    def probability(query, level, names):
        a, b = (state[f"{n}.weight"].double().numpy() for n in names)
        c, d = (state[f"{n}.bias"].double().numpy() for n in names)
        scores = (query @ a.T + c) @ (level.keys @ b.T + d).T
        if exclude is not None:
            rows = np.repeat(exclude, len(query) // len(exclude))
            scores[level.entry[None] == rows[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        if exclude is not None:  # at the class shares of the whole memory
            kept = level.entry[None] != rows[:, None]
            for label in (0, 1):
                own = level.labels == label
                weights[:, own] *= own.sum() / (kept & own).sum(axis=1, keepdims=True)
        return (weights @ (level.labels == 1)) / weights.sum(axis=1)

    image = probability(
        features.class_query().double().numpy(), bank.image, ("image_proj.mlp1", "image_proj.mlp2")
    )
    query = features.patch_query().double().numpy()
    names = ("patch_proj.fc.0", "patch_proj.fc.1")
    patch = probability(query.reshape(-1, query.shape[-1]), bank.patch, names)
    return image, patch.reshape(len(image), -1)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("head", ["tf", "ft"])
def test_any_vit(name, head, tiny_samples, make_state, make_image):
    vision, size, quick = GEOMETRIES[name]
    torch.manual_seed(3)
    clip = open_clip.model.CLIP(
        embed_dim=40,
        quick_gelu=quick,
        vision_cfg=open_clip.CLIPVisionCfg(width=48, layers=3, head_width=16, **vision),
        text_cfg=open_clip.CLIPTextCfg(width=32, heads=2, layers=1),
    )
    encoder = Encoder.from_clip(clip, size, name=name, device="cpu")
    bank = MemoryBank.from_samples(encoder, tiny_samples)
    eye = {"weight": torch.eye(40), "bias": torch.zeros(40)}
    state = make_state("ft", encoder)
    if head == "tf":  # TF is FT with the identity: the one check serves both
        eye48 = {"weight": torch.eye(48)[:, :48], "bias": torch.zeros(48)}
        state = {f"image_proj.mlp{i}.{k}": v for i in (1, 2) for k, v in eye.items()}
        state |= {f"patch_proj.fc.{i}.{k}": v for i in (0, 1) for k, v in eye48.items()}
    features = encoder.encode([make_image(40 + i, defect=i > 0)[0] for i in range(2)])
    built = FTHead(encoder, NoSettings(), state) if head == "ft" else load_head("tf", encoder)
    built.attach(bank)
    found = built(features)
    image, patch = by_hand(state, bank, features)
    assert found.patch.shape == (2, encoder.grid**2)
    assert np.abs(found.image.numpy() - image).max() < 1e-5
    assert np.abs(found.patch.numpy() - patch).max() < 1e-5
    assert np.ptp(patch) > (0.05 if head == "ft" else 0)


def test_exclude_leaves_an_entry_s_keys_out(tiny_encoder, tiny_bank, tiny_samples, make_state):
    state = make_state("ft", tiny_encoder)
    head = FTHead(tiny_encoder, NoSettings(), state)
    head.attach(tiny_bank)
    features = tiny_encoder.encode([sample.image for sample in tiny_samples[:3]])
    rows = torch.tensor([0, -1, 2])
    found = head(features, rows)
    image, patch = by_hand(state, tiny_bank, features, rows.numpy())
    assert np.abs(found.image.numpy() - image).max() < 1e-5
    assert np.abs(found.patch.numpy() - patch).max() < 1e-5
    assert (found.image - head(features).image).abs()[[0, 2]].min() > 1e-4


def test_keys_are_projected_in_attach_and_not_again(
    tiny_encoder, tiny_bank, tiny_samples, make_state, monkeypatch
):
    head = FTHead(tiny_encoder, NoSettings(), make_state("ft", tiny_encoder))
    head.attach(tiny_bank)

    def refuse(keys):
        raise AssertionError("keys were projected for a query")

    monkeypatch.setattr(head.weights, "image_key", refuse)
    monkeypatch.setattr(head.weights, "patch_key", refuse)
    head(tiny_encoder.encode([tiny_samples[0].image]))


def test_a_detector_swaps_its_memory_without_touching_the_first(
    tiny_encoder, tiny_bank, tiny_samples, make_checkpoint
):
    first = Detector(tiny_encoder, tiny_bank, "ft", checkpoint=make_checkpoint("ft", tiny_encoder))
    image = tiny_samples[1].image
    before = first.predict([image])[0].score
    second = first.with_bank(tiny_bank.remove(tiny_bank.entries[0].entry_id))
    assert second.predict([image])[0].score != before
    assert first.predict([image])[0].score == before


def test_all_three_heads_are_installed_as_plugins():
    assert {"tf", "ft", "clip"} <= available_heads().keys()


@pytest.mark.parametrize("head", ["ft", "clip"])
def test_a_trained_head_needs_a_checkpoint(head, tiny_encoder):
    with pytest.raises(HeadError, match=f"mrad train {head}"):
        load_head(head, tiny_encoder)
