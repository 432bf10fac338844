"""Plain patch tokens: open_clip's and timm's own, kept and found again, refused where they do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.encoder import weights
from mrad.encoder.cuda import compile_blocks
from mrad.encoder.encoder import digest_of
from mrad.encoder.identity import EncoderName
from mrad.encoder.parts import parts_of
from mrad.encoder.plain.of_timm import parts_of_timm
from mrad.encoder.plain.tower import PlainTower
from mrad.errors import (
    EncoderError,
    EncoderMismatchError,
    UnsupportedEncoderError,
    WeightsNotFoundError,
)
from mrad.images.layout import Layout, Tiling
from tests.mrad.plain import build_clip, build_timm

SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOv2": ("vit_small_patch14_dinov2.lvd142m", {**SMALL, "img_size": 56}),
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", {**SMALL, "img_size": 56}),
    "registers with positions": (
        "vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56, "no_embed_class": False},
    ),
    "gated": ("vit_giant_patch14_dinov2", {**SMALL, "img_size": 56, "embed_dim": 48}),
    "no class token": ("test_vit3", {"img_size": 64, "num_classes": 0}),
    "RMS norm": ("test_vit4", {"img_size": 64, "num_classes": 0}),
    "pre-norm": ("vit_base_patch16_clip_224", {**SMALL, "img_size": 64}),
    "norm after pooling": ("vit_small_patch16_224", {**SMALL, "img_size": 64, "global_pool": "avg"}),
    "DINOv3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", {**SMALL, "img_size": 64}),
    "DINOv3 gated": ("vit_small_plus_patch16_dinov3", {**SMALL, "img_size": 64}),
}  # fmt: skip


def seeded(name: str, **options: Any) -> nn.Module:
    """A timm model whose every weight is drawn: zeros and ones would hide what is left out."""
    torch.manual_seed(3)
    model: nn.Module = timm.create_model(name, pretrained=False, **options).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(
                torch.randn_like(value) * (0.5 if value.ndim == 1 else value.shape[-1] ** -0.5)
            )
    return model


def own_of(model: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's class token, or the mean of its patches, and its patches."""
    vit: Any = model
    with torch.no_grad():
        tokens = vit.forward_features(pixels)
    patches = tokens[:, vit.num_prefix_tokens :]
    return (patches.mean(dim=1) if vit.cls_token is None else tokens[:, 0]), patches


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TIMM)
def test_timms_own_tokens(kind: str) -> None:
    name, options = TIMM[kind]
    model = seeded(name, **options)
    encoder = Encoder.from_timm(model, device="cpu")
    side = options["img_size"]
    pixels = torch.randn(2, 3, side, side)
    features = encoder.encode_pixels(pixels)
    whole, patches = own_of(model, pixels)
    close(features.class_feature, whole)
    assert features.patch_raw is not None
    close(features.patch_raw, patches)
    assert features.patch_raw.shape == (2, encoder.grid**2, encoder.width)
    assert encoder.embed_dim == encoder.width == patches.shape[2]
    config: Any = model.pretrained_cfg
    assert (encoder.preprocess.mean, encoder.preprocess.std) == (config["mean"], config["std"])
    assert encoder.name.startswith(f"timm:{name.partition('.')[0]}.")


@pytest.mark.parametrize("kind", ["DINOv2", "registers", "registers with positions", "DINOv3"])
def test_another_size_is_timms_dynamic_one(kind: str) -> None:
    name, options = TIMM[kind]
    model = seeded(name, **{**options, "dynamic_img_size": True})
    side = options["img_size"] * 3 // 2
    encoder = Encoder.from_timm(model, side, device="cpu")
    pixels = torch.randn(1, 3, side, side)
    whole, patches = own_of(model, pixels)
    features = encoder.encode_pixels(pixels)
    assert features.patch_raw is not None
    close(features.patch_raw, patches)
    close(features.class_feature, whole)


def test_positions_of_an_oblong_pretraining_are_brought_to_a_square() -> None:
    model = seeded(
        "vit_small_patch16_224", **{**SMALL, "img_size": (64, 96)}, dynamic_img_size=True
    )
    with pytest.raises(UnsupportedEncoderError, match="the method's is square"):
        Encoder.from_timm(model, device="cpu")
    encoder = Encoder.from_timm(model, 80, device="cpu")
    pixels = torch.randn(1, 3, 80, 80)
    features = encoder.encode_pixels(pixels)
    assert features.patch_raw is not None
    close(features.patch_raw, own_of(model, pixels)[1])


@pytest.mark.parametrize("activation", [True, False])
def test_a_clips_own_tokens(activation: bool) -> None:
    clip = build_clip(quick_gelu=activation)
    visual: Any = clip.visual
    encoder = Encoder.from_clip(clip, name="tiny:plain", device="cpu")
    pixels = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    visual.output_tokens = True
    with torch.no_grad():
        whole, patches = visual(pixels)
    features = encoder.encode_pixels(pixels)
    assert features.patch_raw is not None
    close(features.patch_raw, patches)
    close(features.class_feature, whole)
    close(encoder.project_patch(features.patch), features.patch @ visual.proj.detach())


def test_a_timm_tower_behind_open_clip_gives_its_own_tokens() -> None:
    clip = build_timm("vit_tiny_r_s16_p8_224", size=224)
    visual: Any = clip.visual
    encoder = Encoder.from_clip(clip, name="mini:plain", device="cpu")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = visual.trunk.forward_features(pixels)
        whole = visual(pixels)
    features = encoder.encode_pixels(pixels)
    assert features.patch_raw is not None
    torch.testing.assert_close(features.patch_raw, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.class_feature, whole, rtol=1e-4, atol=1e-4)


def test_bf16_and_a_compiled_tower_stay_close() -> None:
    model = seeded("vit_small_patch16_dinov3", **SMALL, img_size=64)
    exact = Encoder.from_timm(model, device="cpu")
    pixels = torch.randn(2, 3, 64, 64)
    wanted = exact.encode_pixels(pixels).patch
    rough = Encoder.from_timm(model, device="cpu", precision="bf16").encode_pixels(pixels).patch
    assert rough.dtype == torch.float32
    assert float(nn.functional.cosine_similarity(rough, wanted, dim=2).min()) > 0.999
    tower = PlainTower(parts_of_timm(model), 64, torch.float32)
    compile_blocks(tower, backend="eager")
    close(tower(pixels)[1], exact.encode_pixels(pixels).patch_raw)  # type: ignore[arg-type]


REFUSED = [
    ("resnet18", {}, "ResNet is refused"),
    ("swin_tiny_patch4_window7_224", {}, "SwinTransformer is refused"),
    ("eva02_tiny_patch14_224", {}, "rotary positions|attention is not that of DINOv3"),
    ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled is refused"),
    ("vit_base_patch16_224", {**SMALL, "qk_norm": True}, "query/key norms"),
    ("vit_relpos_small_patch16_224", {}, "is refused"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_other_models_are_refused(name: str, options: dict[str, Any], reason: str) -> None:
    model = timm.create_model(name, pretrained=False, **options)
    with pytest.raises(UnsupportedEncoderError, match=reason):
        Encoder.from_timm(model, device="cpu")


def test_names() -> None:
    assert EncoderName.parse("ViT-B-16:plain") == EncoderName("ViT-B-16", plain=True)
    assert EncoderName.parse("timm:vit.a") == EncoderName("vit.a", timm=True, plain=True)
    for text in ("mrad-mini", "mrad-mini:plain", "timm:vit.a"):
        assert str(EncoderName.parse(text)) == text
    with pytest.raises(EncoderError, match="plain tokens anyway"):
        EncoderName.parse("timm:vit.a:plain")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's."""
    monkeypatch.setattr(weights, "user_cache_path", lambda name: tmp_path / "cache")
    return tmp_path / "cache"


NAME = "timm:test_vit.r160_in1k"


def weights_file(path: Path, **options: Any) -> nn.Module:
    model = seeded("test_vit.r160_in1k", **options)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    return model


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_with_a_classifier_loads_and_is_kept_without_timm(
    cache: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"mine.{suffix}"
    model = seeded("test_vit.r160_in1k")
    if suffix == "pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        weights_file(path)
    first = Encoder.load(NAME, path, device="cpu")
    assert (first.name, first.image_size, first.grid) == (NAME, 160, 10)
    again = Encoder.load(NAME, path, device="cpu", image_size=96)
    assert (again.identity.digest, again.image_size) == (first.identity.digest, 96)
    kept = weights.find_tower(NAME, path)
    assert kept is not None
    pixels = torch.randn(1, 3, 160, 160)
    tower = PlainTower(kept.parts, 160, torch.float32)
    assert first.encode_pixels(pixels).patch_raw is not None
    close(tower(pixels)[1], own_of(model, pixels)[1])


@pytest.mark.parametrize("kind", ["registers", "gated", "DINOv3 gated"])
def test_every_kind_can_be_kept(kind: str, tmp_path: Path) -> None:
    from mrad.encoder.converted import ConvertedTower, read, write

    name, options = TIMM[kind]
    model = seeded(name, **options)
    encoder = Encoder.from_timm(model, device="cpu")
    tower = ConvertedTower(parts_of_timm(model), encoder.identity, (0.5,) * 3, (0.5,) * 3)
    assert write(tower, tmp_path / "tower.safetensors")
    found = read(tmp_path / "tower.safetensors")
    assert found is not None
    pixels = torch.randn(1, 3, encoder.image_size, encoder.image_size)
    own = PlainTower(found.parts, encoder.image_size, torch.float32)(pixels)
    close(own[1], own_of(model, pixels)[1])
    close(own[0], own_of(model, pixels)[0])


def test_scoring_imports_neither_open_clip_nor_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.safetensors"
    weights_file(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = Encoder.load(NAME, path, device="cpu")
    code = (
        "import sys, torch\nfrom mrad import Encoder\n"
        f"for name, path in (('mrad-mini:plain', None), ({NAME!r}, {str(path)!r})):\n"
        "    encoder = Encoder.load(name, path, device='cpu')\n"
        "    side = encoder.image_size\n"
        "    encoder.encode_pixels(torch.zeros(1, 3, side, side))\n"
        "print(encoder.identity.digest, sorted({'timm', 'open_clip'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{first.identity.digest} []", done.stderr


def test_weights_of_another_model_are_refused_by_name(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    weights_file(path)
    with pytest.raises(EncoderError, match="does not fit timm's test_vit2"):
        Encoder.load("timm:test_vit2.r160_in1k", path, device="cpu")
    state = seeded("test_vit.r160_in1k").state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    save_file(state, path)
    with pytest.raises(EncoderError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        Encoder.load(NAME, path, device="cpu")


def test_the_authors_own_file_of_dinov2_is_read(cache: Path, tmp_path: Path) -> None:
    """With a mask token, which timm's own has not."""
    model = seeded("vit_small_patch14_dinov2.lvd142m", depth=1, embed_dim=48, num_heads=4)
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 48)}
    from mrad.encoder.plain.of_timm import fill

    empty = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m", pretrained=False, depth=1, embed_dim=48, num_heads=4
    )
    fill(empty, state, tmp_path / "dinov2_vits14_pretrain.pth")
    assert digest_of(empty.state_dict()) == digest_of(model.state_dict())


def test_what_is_not_there_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderError, match="knows no model 'vit_nonsense'"):
        Encoder.load("timm:vit_nonsense", device="cpu")
    (tmp_path / "mine.pth").touch()
    with pytest.raises(EncoderError, match="r160_in1k"):
        Encoder.load("timm:test_vit.nonsense", tmp_path / "mine.pth", device="cpu")
    with pytest.raises(WeightsNotFoundError, match="no checkpoint at"):
        Encoder.load(NAME, "lvd142m", device="cpu")

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", offline)
    with pytest.raises(WeightsNotFoundError, match="no network") as caught:
        Encoder.load(NAME, device="cpu")
    assert "timm-test_vit/r160_in1k" in str(caught.value)


def test_weights_of_the_hub_lie_where_they_are_found_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    weights_file(path)
    asked = []

    def hub(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", hub)
    first = Encoder.load("timm:test_vit", device="cpu")
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert first.name == NAME
    assert Encoder.load(NAME, device="cpu").identity == first.identity
    assert len(asked) == 1
    from mrad_indexer.cli.main import app
    from typer.testing import CliRunner

    for command in (["fetch", "timm:test_vit"], ["verify", NAME]):
        done = CliRunner().invoke(app, ["weights", *command])
        assert done.exit_code == 0, done.output
    assert str(first.identity.digest) in done.output
    assert len(asked) == 1, "it is there already"
    assert ("timm:test_vit", "r160_in1k") in [
        (item.name, item.pretrained) for item in weights.list_weights()
    ]


def test_the_shipped_one_is_asked_for_both_ways(tiny_samples: Any) -> None:
    own, plain = Encoder.load(device="cpu"), Encoder.load("mrad-mini:plain", device="cpu")
    assert plain.identity.digest == own.identity.digest
    assert (plain.width, plain.embed_dim, plain.grid) == (own.width, own.embed_dim, own.grid)
    bank = MemoryBank.from_samples(plain, tiny_samples)
    with pytest.raises(EncoderMismatchError, match="built by mrad-mini:plain at"):
        Detector(own, bank)
    for head in ("nn", "tf", "combined"):
        scores = [
            p.score for p in Detector(plain, bank, head).predict([s.image for s in tiny_samples])
        ]
        assert np.isfinite(scores).all()
    with pytest.raises(UnsupportedEncoderError, match="build the memory with 'mrad-mini'"):
        _ = plain.clip
    parts_of(own.clip.visual)


def test_tiles_of_a_picture_are_judged_by_their_places(make_image: Any) -> None:
    encoder = Encoder.from_clip(build_clip(), name="tiny:plain", device="cpu")
    layout = Layout(Tiling(64, 0.25))
    samples = [Sample(make_image(seed, (128, 96))[0], False) for seed in range(4)]
    bank = MemoryBank.from_samples(encoder, samples, layout=layout)
    (found,) = Detector(encoder, bank).predict([make_image(9, (128, 96), defect=True)[0]])
    assert len(found.tiles) > 1
    assert found.anomaly_map is not None
    assert found.anomaly_map.shape == (96, 128)
