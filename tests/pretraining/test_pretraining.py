"""The training of the shipped CLIP: its pictures, its two paths, and its resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from mrad.encoder.encoder import Encoder
from mrad.models.architecture import SIDE
from pretraining.boards import board
from pretraining.captions import pair
from pretraining.defects import CIRCUIT_DEFECTS, DEFECTS, Scene, spoil_circuit
from pretraining.model import NAME, build, fold, image_features, text_features
from pretraining.scenes import KINDS, Tiles, make_pair
from pretraining.statistics import statistics
from pretraining.surfaces import SURFACES, tracks
from pretraining.train import Batches, Recipe, Training, pays_in_bf16, product_seconds

FEW = Recipe(steps=1, pairs=8, sample_pairs=24, tiles=16)
SMALL = replace(FEW, steps=4, pairs=2, tiles=3, sample_pairs=4)


@pytest.fixture(scope="module")
def untrained() -> Any:
    """An untrained mrad-mini that has seen a batch."""
    clip = build(0)
    image_features(clip.visual, 2 * torch.randn(8, 3, 132, 132), (0, 0))
    return clip.eval()


def test_training_computes_what_the_encoder_computes(untrained: Any) -> None:
    """Also once its batch norms are folded, and what is shipped then fits open_clip's own."""
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        image, patch, _, grid = image_features(untrained.visual, pixels, (0, 0))
    shipped = copy.deepcopy(untrained)
    fold(shipped)
    open_clip.create_model(NAME, load_weights=False).load_state_dict(shipped.state_dict())
    for clip in (untrained, shipped):
        encoder = Encoder.from_clip(clip, name=NAME, device="cpu")
        features = encoder.encode_pixels(pixels)
        assert grid == encoder.grid
        torch.testing.assert_close(image, features.class_feature, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(patch, features.patch, atol=1e-4, rtol=1e-4)


def test_short_captions_give_open_clips_text_features(untrained: Any) -> None:
    tokens = open_clip.get_tokenizer(NAME)(["a photo of a flawless stone.", "a damaged gear."])
    with torch.no_grad():
        ours = text_features(untrained, tokens)
        theirs = untrained.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    first, second = Batches(SMALL), Batches(SMALL, first=1)
    first[0]
    again, resumed = first[1], second[0]
    assert again["captions"] == resumed["captions"]
    np.testing.assert_array_equal(again["pictures"], resumed["pictures"])
    for name in ("cells", "fine"):
        np.testing.assert_array_equal(again[name], resumed[name])
    assert (again["pictures"] != first[2]["pictures"]).any()


def test_a_board_has_copper_and_bare_ground() -> None:
    copper = np.stack([board(np.random.default_rng(seed), 96) for seed in range(8)])
    assert copper.shape == (8, 96, 96)
    assert 0.02 < copper.mean() < 0.98
    assert ((copper > 0.9).any(axis=(1, 2)) & (copper < 0.1).any(axis=(1, 2))).sum() >= 7


def test_pairs_differ_where_the_mask_says_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    tiles = Tiles(rng, 4, 200)
    for _ in range(12):
        made = make_pair(rng, tiles, 96)
        assert made.good.shape == made.bad.shape == (96, 96, 3)
        changed = np.abs(made.good - made.bad).mean(axis=2)
        assert changed[made.mask > 0].mean() > changed[made.mask == 0].mean()
        assert 0 < made.mask.mean() <= 0.5
        assert KINDS[made.kind] != "flawless"


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_every_defect_changes_the_picture(name: str) -> None:
    rng = np.random.default_rng(3)
    side = 96
    image, other = (Tiles(rng, 1, 120).crop(rng, side)[1] for _ in range(2))
    changed, cover = DEFECTS[name](rng, Scene(image, np.ones((side, side), np.float32), other))
    assert changed.shape == image.shape
    assert cover.shape == (side, side)
    assert np.isfinite(changed).all()
    assert cover.min() >= -1e-4
    assert cover.max() <= 1.0001
    assert np.abs(changed - image)[cover > 0.2].max() > 0.01


@pytest.mark.parametrize("name", CIRCUIT_DEFECTS)
def test_circuit_defects_add_or_take_copper(name: str) -> None:
    rng = np.random.default_rng(1)
    copper = tracks(rng, 96)
    spoilt, cover = spoil_circuit(rng, copper, name)
    change = float((spoilt - copper).sum())
    adds = name in ("a short", "a spur", "spurious copper")
    assert change > 0 if adds else change < 0
    assert cover.max() > 0.3


@pytest.mark.parametrize("maker", sorted(set(SURFACES.values()), key=lambda m: m.__name__))
def test_every_surface_is_a_picture(maker: Any) -> None:
    tile = maker(np.random.default_rng(0), 96)
    assert tile.shape == (96, 96, 3)
    assert np.isfinite(tile).all()
    assert tile.std() > 1e-3


def test_captions_say_flawless_and_damaged_of_the_same_thing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        good, bad = pair(rng, "metal nut", "a thin scratch")
        assert ("nut" in good) == ("nut" in bad)
        assert any(word in bad for word in ("damaged", "defective", "flawed", "broken"))
        assert " a i" not in bad
        assert " a u" not in good


def test_a_cut_off_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Training(SMALL, _folder(tmp_path, "whole"), torch.device("cpu"))
    whole.run(workers=0)
    cut = Training(SMALL, _folder(tmp_path, "cut"), torch.device("cpu"))
    for step in range(2):
        cut.advance(Batches(SMALL)[step])
    cut._save()
    resumed = Training(SMALL, tmp_path / "cut", torch.device("cpu"))
    assert resumed.step == 2
    resumed.run(workers=0)
    for (name, value), other in zip(
        whole.clip.state_dict().items(), resumed.clip.state_dict().values()
    ):
        torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("own", [False, True])
def test_products_are_in_bf16_where_that_is_faster(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*args: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return image_features(*args)

    monkeypatch.setattr("pretraining.train.pays_in_bf16", lambda device: own)
    monkeypatch.setattr("pretraining.train.image_features", watched)
    Training(SMALL, tmp_path, torch.device("cpu")).advance(Batches(SMALL)[0])
    assert seen == [own]


@pytest.mark.parametrize("slower", [torch.float32, torch.bfloat16])
def test_the_faster_type_is_found_by_trying(
    slower: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretraining.train.has_bf16", lambda device: True)
    monkeypatch.setattr("pretraining.train.product_seconds", lambda t: 2.0 if t == slower else 1.0)
    assert pays_in_bf16(torch.device("cpu")) == (slower == torch.float32)


def test_a_cpu_without_bf16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.train.has_bf16", lambda device: False)
    monkeypatch.setattr("pretraining.train.product_seconds", None)
    assert not pays_in_bf16(torch.device("cpu"))


def test_a_product_counts_by_its_shortest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    types = []

    def repeat(product: Callable[[], torch.Tensor], number: int, repeat: int) -> list[float]:
        types.append(product().dtype)
        return [3.0, 1.0, 2.0]

    monkeypatch.setattr("pretraining.train.timeit.repeat", repeat)
    assert product_seconds(torch.bfloat16) == 1.0
    assert types == [torch.bfloat16]


def test_statistics_read_how_far_a_cell_stands_from_its_picture() -> None:
    pixels = torch.zeros(1, 3, 132, 132)
    pixels[..., :12, :12] = 1.0  # the first of 11 x 11 cells
    level, _, _, whole, far = statistics(pixels, 11)[0].unflatten(1, (5, -1))[..., 0].T
    share = 1 / 121
    assert level[0] == 1
    assert level[1:].abs().max() == 0
    deviation = max((share - share**2) ** 0.5, 0.1)
    assert whole[0].item() == pytest.approx((1 - share) / deviation, rel=1e-3)
    assert far[-1].item() == pytest.approx(share / deviation, rel=1e-3)


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    training = Training(SMALL, tmp_path, torch.device("cpu"))
    training._save()
    with pytest.raises(ValueError, match="another recipe"):
        Training(replace(SMALL, seed=7), tmp_path, torch.device("cpu"))


def test_the_shipped_clip_is_open_clips_too() -> None:
    """`open_clip.create_model` and `Encoder.load` build the same tower from the shipped weights."""
    from mrad import models

    clip = open_clip.create_model(NAME, pretrained=str(models.path_of(NAME)))
    encoder = Encoder.load(NAME, device="cpu", precision="fp32")
    assert Encoder.from_clip(clip, name=NAME, device="cpu").identity == encoder.identity
    texts = clip.encode_text(open_clip.get_tokenizer(NAME)(["a flawless object."]))
    assert F.normalize(texts, dim=-1).shape == (1, encoder.embed_dim)


def _folder(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name
