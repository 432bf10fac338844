"""The encoder: geometries against the plain loop, identity, precision, what goes wrong."""

from __future__ import annotations

import inspect

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from mrad_service.settings import Settings
from open_clip.transformer import QuickGELU
from timm.layers import ConvNormAct, HybridEmbed
from timm.models.resnetv2 import ResNetV2
from torch import nn

from benchmarks.paper_loop import average
from mrad import Encoder, Features
from mrad.encoder import kernels
from mrad.encoder.encoder import digest_of, precision_for, resolve_device
from mrad.encoder.kernels import Stem, attend, frozen_mlp, has_bf16
from mrad.encoder.parts import timm_patches
from mrad.encoder.tower import interpolate_positions, neighbourhood_average
from mrad.errors import EncoderError, NonFiniteError, UnsupportedEncoderError
from tests.mrad.plain import build_clip, build_timm, plain_features


class PlainPreActivation(nn.Module):
    """x + convolution(ReLU(x)): the block's input is the shortcut, too."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 8, 4, stride=4), nn.ReLU()
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, pixels):
        x = self.first(pixels)
        return x + self.second(self.act(x))


GEOMETRIES = [  # patch, native size, asked size, QuickGELU, blocks
    (14, 56, 126, True, 3),
    (14, 56, 56, False, 4),
    (16, 64, 64, False, 2),
    (16, 32, 96, True, 5),
    (32, 64, 64, True, 3),
    (32, 96, 224, False, 2),
    (8, 64, 24, True, 3),
]


@pytest.mark.parametrize(("patch", "native", "size", "quick", "layers"), GEOMETRIES)
def test_any_geometry_equals_the_plain_computation(patch, native, size, quick, layers):
    clip = build_clip(patch_size=patch, image_size=native, layers=layers, quick_gelu=quick)
    assert any(isinstance(m, QuickGELU) for m in clip.modules()) is quick
    encoder = Encoder.from_clip(clip, size, device="cpu")
    pixels = torch.randn(2, 3, size, size)
    features = encoder.encode_pixels(pixels, raw=True)
    class_feature, raw = plain_features(clip.visual, pixels)
    grid = size // patch
    assert (encoder.grid, features.patch.shape) == (grid, (2, grid**2, encoder.width))
    assert features.class_feature.shape == (2, encoder.embed_dim)
    torch.testing.assert_close(features.class_feature, class_feature, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.patch_raw, raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.patch, average(raw, grid), rtol=1e-4, atol=1e-5)
    assert all(t.dtype == torch.float32 for t in (features.class_feature, features.patch))


def test_layer_scale_and_no_pre_norm_are_followed():
    clip = build_clip(ls_init_value=0.3, no_ln_pre=True)
    pixels = torch.randn(1, 3, 64, 64)
    features = Encoder.from_clip(clip, device="cpu").encode_pixels(pixels, raw=True)
    class_feature, raw = plain_features(clip.visual, pixels)
    torch.testing.assert_close(features.class_feature, class_feature, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.patch_raw, raw, rtol=1e-4, atol=1e-5)


def test_at_its_native_size_the_class_feature_is_clips_own_before_the_last_norm():
    clip = build_clip()
    pixels = torch.randn(2, 3, 64, 64)
    caught = []
    hook = clip.visual.ln_post.register_forward_hook(lambda _, args, __: caught.append(args[0]))
    with torch.no_grad():
        clip.encode_image(pixels)
    hook.remove()
    own = caught[0] if caught[0].ndim == 2 else caught[0][:, 0]
    features = Encoder.from_clip(clip, device="cpu").encode_pixels(pixels)
    torch.testing.assert_close(features.class_feature, own @ clip.visual.proj, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "cells"), [("vit_tiny_patch16_224", 14), ("vit_tiny_r_s16_p8_224", 7)]
)
def test_a_timm_tower_behind_open_clip_gives_timms_own_class_token(name, cells):
    """Also one with convolutions before its blocks."""
    clip = build_timm(name, size=224)
    encoder = Encoder.from_clip(clip, device="cpu")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        trunk = clip.visual.trunk
        patches = trunk.patch_embed(pixels)
        patches = patches[0] if isinstance(patches, tuple) else patches
        x = trunk.norm_pre(trunk._pos_embed(patches))
        own = clip.visual.head(trunk.blocks(x)[:, 0])
    features = encoder.encode_pixels(pixels)
    torch.testing.assert_close(features.class_feature, own, rtol=1e-4, atol=1e-5)
    assert features.patch.shape == (1, cells**2, encoder.width)
    assert Encoder.from_clip(clip, 96, device="cpu").encode_pixels(pixels[..., :96, :96])


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: ResNetV2((1, 1), (128, 128), 0, global_pool=""),
        PlainPreActivation,
    ],
    ids=["norms with an activation", "no norm before the activation"],
)
def test_activations_before_a_residual_block_leave_its_shortcut_as_it_is(backbone):
    torch.manual_seed(0)
    embed = HybridEmbed(backbone(), img_size=64, embed_dim=24).eval()
    stem, side = timm_patches(embed)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own = embed(pixels)
        torch.testing.assert_close(stem(pixels), own, rtol=1e-4, atol=1e-5)
    assert own.shape[1] == (64 // side) ** 2


def test_activations_of_a_plain_chain_need_no_memory_of_their_own():
    chain = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Sequential(nn.ReLU()), nn.ReLU())
    own = [m.inplace for m in Stem(chain).modules() if isinstance(m, nn.ReLU)]
    assert own == [True, False, False]
    timm_stem = Stem(ConvNormAct(3, 4, act_kwargs={"inplace": False}))
    assert [m.inplace for m in timm_stem.modules() if isinstance(m, nn.ReLU)] == [True]


def with_a_norm_behind_its_patches():
    clip = build_timm("vit_tiny_patch16_224")
    clip.visual.trunk.patch_embed.norm = nn.LayerNorm(192)
    return clip


REFUSED = [
    (lambda: build_timm("vit_tiny_patch16_224", pool="avg"), "pools by 'avg'"),
    (lambda: build_timm("vit_tiny_patch16_224", proj="mlp"), "no plain linear head"),
    (lambda: build_timm("deit_tiny_distilled_patch16_224"), "register tokens"),
    (lambda: build_timm("vit_relpos_small_patch16_224", pool="avg"), "not a plain vision"),
    (lambda: build_timm("resnet18", pool="avg"), "ResNet behind open_clip is refused"),
    (with_a_norm_behind_its_patches, "plain patches"),
    (lambda: build_clip(pool_type="avg"), "without a class token"),
    (lambda: build_clip(attentional_pool=True), "without a class token"),
    (lambda: build_clip(qk_norm=True, block_type="custom"), "query/key norms"),
    (lambda: build_clip(layers=1), "second block"),
    (lambda: build_clip(image_size=(64, 96)), "the method's is square"),
    (
        lambda: open_clip.model.CLIP(
            16,
            open_clip.CLIPVisionCfg(image_size=32, layers=(1, 1, 1, 1), width=8),
            open_clip.CLIPTextCfg(width=16, heads=1, layers=1),
        ),
        "ModifiedResNet is no vision transformer",
    ),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_tower_without_the_method_is_refused_with_its_own_reason(build, reason):
    with pytest.raises(UnsupportedEncoderError, match=reason):
        Encoder.from_clip(build(), device="cpu")


def test_what_is_no_clip_and_sizes_that_do_not_fit_are_refused(tiny_clip):
    with pytest.raises(EncoderError, match="Linear is no CLIP"):
        Encoder.from_clip(nn.Linear(2, 2))
    for size in (8, 65):
        with pytest.raises(EncoderError, match="not a multiple of the patch size 16"):
            Encoder.from_clip(tiny_clip, size, device="cpu")
    with pytest.raises(EncoderError, match="precision 'fp8' is unknown"):
        Encoder.from_clip(tiny_clip, device="cpu", precision="fp8")
    with pytest.raises(EncoderError, match="device 'nonsense' cannot be used here"):
        Encoder.from_clip(tiny_clip, device="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_says_why_not():
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(EncoderError, match="'cuda' cannot be used here"):
        resolve_device("cuda")


def test_the_callers_model_is_copied_and_never_changed():
    clip = build_clip()
    before = digest_of(clip.state_dict())
    encoder = Encoder.from_clip(clip, 96, device="cpu")
    pixels = torch.randn(1, 3, 96, 96)
    wanted = encoder.encode_pixels(pixels)
    assert digest_of(clip.state_dict()) == before
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.zero_()
    assert torch.equal(encoder.encode_pixels(pixels).patch, wanted.patch)


def test_identity_follows_weights_size_and_architecture():
    one, same, other = build_clip(seed=1), build_clip(seed=1), build_clip(seed=2)
    identity = Encoder.from_clip(one, 64, device="cpu", name="a").identity
    assert Encoder.from_clip(same, 64, device="cpu", name="a").identity == identity
    half = Encoder.from_clip(same, 64, device="cpu", name="a", precision="bf16")
    assert half.identity == identity
    for clip, size, name in ((other, 64, "a"), (one, 96, "a"), (one, 64, "b")):
        assert Encoder.from_clip(clip, size, device="cpu", name=name).identity != identity
    assert str(identity).startswith("a at 64 px (weights ")


def test_the_digest_sees_names_shapes_and_values_and_not_order_or_storage():
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    digest = digest_of(state)
    assert digest_of(dict(reversed(state.items()))) == digest
    assert digest_of({"a": state["a"].T.contiguous().T, "b": state["b"].half()}) == digest
    assert digest_of(state | {"a": state["a"].view(3, 2)}) != digest
    assert digest_of({"a": state["a"], "c": state["b"]}) != digest
    assert digest_of(state | {"b": torch.tensor([1.0, 1.0000001])}) != digest


def test_float32_on_a_cpu_gives_the_same_bits_twice_and_close_ones_in_any_batch(
    tiny_encoder: Encoder,
):
    pixels = torch.randn(5, 3, 96, 96)
    together, again = tiny_encoder.encode_pixels(pixels), tiny_encoder.encode_pixels(pixels)
    assert torch.equal(together.patch, again.patch)
    assert torch.equal(together.class_feature, again.class_feature)
    alone = Features.cat([tiny_encoder.encode_pixels(pixels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone.patch, together.patch, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.class_feature, together.class_feature, rtol=1e-5, atol=1e-5)


def test_bf16_is_close_and_comes_out_as_float32(tiny_clip):
    pixels = torch.randn(2, 3, 96, 96)
    exact = Encoder.from_clip(tiny_clip, 96, device="cpu").encode_pixels(pixels)
    half = Encoder.from_clip(tiny_clip, 96, device="cpu", precision="bf16").encode_pixels(pixels)
    for name in ("class_feature", "patch"):
        one, other = getattr(exact, name), getattr(half, name)
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1)
        assert float(cosine.min()) > 0.9999


def test_nothing_takes_bf16_unasked(tiny_clip):
    assert Encoder.from_clip(tiny_clip, device="cpu").dtype == torch.float32
    assert inspect.signature(Encoder.load).parameters["precision"].default == "fp32"
    assert Settings.model_fields["precision"].default == "auto"
    assert precision_for("auto", None, "cpu") == precision_for("auto", "fp32", "cpu") == "fp32"


def test_queries_follow_the_memory_where_the_device_can(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr("mrad.encoder.encoder.has_bf16", lambda device, able=able: able)
        assert precision_for("auto", "bf16", "cpu") == ("bf16" if able else "fp32")
        assert precision_for("fp32", "bf16", "cpu") == "fp32"
        assert precision_for("bf16", "fp32", "cpu") == "bf16"


@pytest.mark.parametrize("own", [True, False])
def test_bf16_works_without_instructions_for_it_and_says_so(own, tiny_clip, monkeypatch, caplog):
    if own and not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16 instructions")
    for module in ("encoder", "kernels"):
        monkeypatch.setattr(f"mrad.encoder.{module}.has_bf16", lambda device: own)
    pixels = torch.randn(2, 3, 96, 96)
    exact = Encoder.from_clip(tiny_clip, 96, device="cpu").encode_pixels(pixels).patch
    assert not caplog.text
    half = Encoder.from_clip(tiny_clip, 96, device="cpu", precision="bf16").encode_pixels(pixels)
    assert ("take fp32" in caplog.text) == (not own)
    assert float(torch.nn.functional.cosine_similarity(exact, half.patch, dim=-1).min()) > 0.9999


def test_bf16_sees_a_faint_contrast_on_a_bright_surface():
    clip = build_clip()
    with torch.no_grad():  # differences of pixels, as trained patch weights are
        weight = clip.visual.conv1.weight
        weight.sub_(weight.mean(dim=(1, 2, 3), keepdim=True))
    pixels = 2 + 0.01 * torch.randn(1, 3, 64, 64)
    exact, half = (
        Encoder.from_clip(clip, device="cpu", precision=p).encode_pixels(pixels, raw=True).patch_raw
        for p in ("fp32", "bf16")
    )
    assert float((half - exact).norm() / exact.norm()) < 0.01


def test_bf16_does_not_feel_what_keys_and_values_of_all_patches_share():
    clip = build_clip()
    with torch.no_grad():  # far from zero, as on an even surface
        for block in clip.visual.transformer.resblocks:
            width = block.attn.embed_dim
            block.attn.in_proj_bias[width:].fill_(10.0)
    pixels = torch.randn(1, 3, 64, 64)
    exact, half = (
        Encoder.from_clip(clip, device="cpu", precision=p).encode_pixels(pixels, raw=True).patch_raw
        for p in ("fp32", "bf16")
    )
    apart, wrong = exact - exact.mean(dim=1, keepdim=True), (half - exact)
    wrong = wrong - wrong.mean(dim=1, keepdim=True)  # a shift of all patches ranks none again
    assert float(wrong.norm() / apart.norm()) < 0.01


def test_attention_in_bf16_is_the_softmax_within_rounding():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 37, 16) for _ in range(3))
    wanted = torch.softmax(q @ k.transpose(2, 3) / 4, -1) @ v
    wanted = wanted.transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v), wanted)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float((half.float() - wanted).norm() / wanted.norm()) < 0.01
    queries = attend(q[:, :, 1:].bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(queries, half[:, 1:])


def test_quick_gelu_folded_into_the_weights_is_the_same_function():
    mlp = build_clip(quick_gelu=True).visual.transformer.resblocks[0].mlp
    x = torch.randn(5, mlp.c_fc.in_features)
    with torch.no_grad():
        torch.testing.assert_close(frozen_mlp(mlp, torch.float32)(x), mlp(x))


def test_joint_patch_features_commute_with_the_average(tiny_encoder: Encoder):
    features = tiny_encoder.encode_pixels(torch.randn(1, 3, 96, 96), raw=True)
    projected = tiny_encoder.project_patch(features.patch_raw)
    average_of_joint = neighbourhood_average(projected, tiny_encoder.grid)
    torch.testing.assert_close(
        tiny_encoder.project_patch(features.patch), average_of_joint, rtol=1e-4, atol=1e-5
    )


def test_positions_are_bilinear_and_the_class_position_stays():
    table = torch.cat([torch.full((1, 2), 7.0), torch.arange(8.0).view(4, 2)])
    big = interpolate_positions(table, 4)
    assert torch.equal(big[0], table[0])
    assert torch.equal(interpolate_positions(table, 2), table)
    assert big.shape == (17, 2)
    assert torch.allclose(big[1:].mean(0), table[1:].mean(0))
    with pytest.raises(UnsupportedEncoderError, match="not a class and a square"):
        interpolate_positions(torch.zeros(7, 2), 4)


def test_wrong_pixels_empty_batches_and_broken_weights_have_their_own_errors(tiny_encoder):
    with pytest.raises(EncoderError, match=r"pixels must be \[B, 3, 96, 96\], not \[1, 3, 64, 64"):
        tiny_encoder.encode_pixels(torch.zeros(1, 3, 64, 64))
    with pytest.raises(EncoderError, match="no images"):
        tiny_encoder.encode([])
    clip = build_clip()
    with torch.no_grad():
        clip.visual.class_embedding[0] = float("nan")
    with pytest.raises(NonFiniteError, match="check its weights"):
        Encoder.from_clip(clip, device="cpu").encode_pixels(torch.zeros(1, 3, 64, 64))


def test_features_slice_join_and_normalise(tiny_encoder: Encoder):
    features = tiny_encoder.encode_pixels(torch.randn(3, 3, 96, 96), raw=True)
    joined = Features.cat([features[:1], features[1:]])
    assert len(joined) == 3
    assert torch.equal(joined.patch, features.patch)
    assert torch.equal(joined.patch_raw, features.patch_raw)
    without = Features(features.class_feature, features.patch)
    assert Features.cat([features, without]).patch_raw is None
    for query in (features.class_query(), features.patch_query()):
        np.testing.assert_allclose(query.norm(dim=-1), 1, rtol=1e-5)


def test_attention_of_many_tokens_as_products_is_the_fused_kernels(monkeypatch) -> None:
    if not kernels.can_pack(torch.zeros(1)):
        pytest.skip("this PyTorch has no products of oneDNN's")
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 70, 16, generator=generator) for _ in range(3))
    monkeypatch.setattr(kernels, "ROWS_PER_THREAD", 64 // torch.get_num_threads())
    taken = []
    as_products = kernels._attend_cpu
    monkeypatch.setattr(kernels, "_attend_cpu", lambda *a: taken.append(1) or as_products(*a))
    with torch.inference_mode():
        for queries, keys in ((q, k), (v[:, :, 1:], v), (q[:, :, :1], k)):
            exact = F.scaled_dot_product_attention(queries.double(), keys.double(), v.double())
            wanted = exact.float().transpose(1, 2).flatten(2)
            torch.testing.assert_close(attend(queries, keys, v), wanted)
    assert len(taken) == 2  # a single query is left to the fused kernel
