"""Towers in plain PyTorch: the same features, without the library that built them."""

from __future__ import annotations

import os
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mrad import Encoder
from mrad.encoder import weights
from mrad.encoder.converted import ConvertedTower, describe, read, write
from mrad.encoder.parts import parts_of


def tower_of(encoder: Encoder) -> ConvertedTower:
    prepare = encoder.preprocess
    return ConvertedTower(
        parts_of(encoder.clip.visual), encoder.identity, prepare.mean, prepare.std
    )


def encoder_of(tower: ConvertedTower) -> Encoder:
    from mrad.images.preprocess import Preprocess

    size = tower.identity.image_size
    prepare = Preprocess(size, tower.mean, tower.std)
    return Encoder(tower.parts, nn.Identity, tower.identity, prepare, device="cpu")


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16", "vit_medium_patch16_gap_256"])
def test_a_tower_that_was_kept_gives_the_same_features(name: str, tmp_path: Path) -> None:
    if name.startswith("vit_"):
        config = {
            "embed_dim": 64, "text_cfg": {"width": 64, "heads": 2, "layers": 1},
            "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token",
                           "timm_proj": "linear", "image_size": 64},
        }  # fmt: skip
    else:
        config = {
            "embed_dim": 64, "quick_gelu": "quickgelu" in name,
            "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
            "text_cfg": {"width": 64, "heads": 2, "layers": 1},
        }  # fmt: skip
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if name.startswith("vit_") else open_clip.CLIP
    original = Encoder.from_clip(kind(**config).eval(), 64, device="cpu")
    assert write(tower_of(original), tmp_path / "tower.safetensors")
    kept = read(tmp_path / "tower.safetensors")
    assert kept is not None
    assert kept.identity == original.identity
    pixels = torch.randn(2, 3, 64, 64)
    before, after = original.encode_pixels(pixels), encoder_of(kept).encode_pixels(pixels)
    torch.testing.assert_close(after.patch, before.patch, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.class_feature, before.class_feature, rtol=1e-5, atol=1e-5)


def test_the_shipped_tower_is_open_clips_to_the_bit() -> None:
    whole = Encoder.from_clip(weights.load_clip("mrad-mini", None).clip, name="mrad-mini")
    plain = Encoder.load()
    assert plain.identity == whole.identity
    pixels = torch.randn(2, 3, plain.image_size, plain.image_size)
    assert torch.equal(plain.encode_pixels(pixels).patch, whole.encode_pixels(pixels).patch)
    assert plain.clip.visual is not None, "the text tower is loaded when it is asked for"


def test_weights_once_loaded_need_no_open_clip_until_the_file_changes(
    tiny_clip: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "user_cache_path", lambda name: tmp_path / "cache")
    built = []

    def load_clip(name: str, pretrained: object) -> weights.LoadedCLIP:
        built.append(name)
        return weights.LoadedCLIP(tiny_clip, name, 96)

    monkeypatch.setattr(weights, "load_clip", load_clip)
    path = tmp_path / "mine.safetensors"
    save_file({"any": torch.zeros(1)}, path)
    first = Encoder.load("tiny", path, device="cpu")
    second = Encoder.load("tiny", path, device="cpu")
    assert built == ["tiny"]
    assert second.identity == first.identity
    assert Encoder.load("tiny", path, device="cpu", image_size=64).image_size == 64
    os.utime(path, ns=(1, 1))
    Encoder.load("tiny", path, device="cpu")
    assert built == ["tiny", "tiny"]


def test_a_damaged_copy_is_said_and_not_used(
    tiny_clip: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tower.safetensors"
    write(tower_of(Encoder.from_clip(tiny_clip, 96, device="cpu")), path)
    path.write_bytes(path.read_bytes()[:100])
    assert read(path) is None
    assert "is not used" in caplog.text
    assert read(tmp_path / "absent") is None


def test_a_tower_with_other_layers_is_left_to_open_clip(tiny_clip: nn.Module) -> None:
    parts = parts_of(tiny_clip.visual)
    assert describe(parts) is not None
    parts.blocks[0]["norm1"] = nn.BatchNorm1d(4)
    assert describe(parts) is None
