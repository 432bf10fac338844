"""What the tower, the heads, retrieval and the map do on a second card, without a card.

PyTorch's FakeTensorMode runs the real code on tensors that have a shape, a type and a device but no
values. It refuses an operation whose tensors lie on two devices, as CUDA would.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mrad import maps
from mrad.encoder import uploads
from mrad.encoder.cuda import Graphs
from mrad.encoder.parts import parts_of
from mrad.encoder.plain.of_timm import parts_of_timm
from mrad.encoder.plain.tower import PlainTower
from mrad.encoder.tower import Tower, neighbourhood_average
from mrad.heads.clip import CLIPWeights, prompt_probability, region_priors
from mrad.heads.text import TextTower
from mrad.images.preprocess import Preprocess
from mrad.memory.level import LevelMemory
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.good_patches import GoodPatches, Views, within_itself
from mrad.retrieval.nearest import by_blocks
from tests.conftest import build_tiny_clip

HERE, OTHER = torch.device("cuda", 1), torch.device("cuda", 0)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode, torch.inference_mode():
        yield mode


def empty(*shape: int, device: torch.device = HERE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype)


def move(module: nn.Module) -> nn.Module:
    """Every weight becomes one on the second card; what is no registered weight stays behind."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                made = torch.empty(value.shape, dtype=value.dtype, device=HERE)
                part._parameters[name] = nn.Parameter(made, requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=HERE)
    return module


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def tower(request) -> Tower:
    return Tower(parts_of(build_tiny_clip().visual), 96, request.param)


def test_the_tower_stays_on_its_card(tower, fake):
    move(tower)
    class_feature, patches = tower(empty(3, 3, 96, 96))
    assert class_feature.shape == (3, 48)
    assert patches.shape == (3, 36, 64)
    for found in (class_feature, patches, neighbourhood_average(patches, tower.grid)):
        assert (found.device, found.dtype) == (HERE, torch.float32)


@pytest.fixture(params=["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def plain(request) -> PlainTower:
    size = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 112, "num_classes": 0}
    model = timm.create_model(request.param, pretrained=False, **size)
    return PlainTower(parts_of_timm(model), 112, torch.bfloat16)


def test_a_plain_tower_stays_on_its_card(plain, fake):
    found = move(plain)(empty(2, 3, 112, 112))
    assert [tuple(part.shape) for part in found] == [(2, 64), (2, plain.grid**2, 64)]
    assert {(part.device, part.dtype) for part in found} == {(HERE, torch.float32)}


def test_a_tensor_of_another_card_is_refused(tower, fake):
    """The double is worth something only if it can fail."""
    move(tower)
    with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
        tower(empty(3, 3, 96, 96, device=OTHER))


def test_images_from_any_card_are_gathered_on_the_one_that_judges(fake, monkeypatch):
    kept = []
    monkeypatch.setattr(uploads, "keep", lambda one: kept.append(one.device))
    images = [empty(3, 96, 96, device=device) for device in (OTHER, HERE, torch.device("cpu"))]
    batch = uploads.gather(images, HERE)
    assert batch.device == HERE
    assert batch.shape == (3, 3, 96, 96)
    assert kept == [OTHER, HERE]


def test_a_card_resizes_where_the_image_lies(fake):
    pixels = Preprocess(96).resize(empty(3, 61, 200, dtype=torch.uint8))
    assert (pixels.device, pixels.shape) == (HERE, (3, 96, 96))


def test_too_large_for_a_recording_runs_where_the_images_lie(tower, fake):
    found, _ = Graphs(move(tower))(empty(65, 3, 96, 96))
    assert found.device == HERE


@pytest.fixture
def retriever() -> ExactRetriever:
    return ExactRetriever(torch.randn(20, 16), (np.arange(20) % 2).astype(np.uint8), block=6)


def test_retrieval_stays_on_the_card(retriever, fake, monkeypatch):
    retriever.keys, retriever.entry = empty(20, 16), empty(20, dtype=torch.int64)
    # It looks at numbers, which these tensors lack.
    monkeypatch.setattr("mrad.retrieval.exact.checked", lambda queries, dim, device: queries)
    for exclude in (None, empty(7, dtype=torch.int64)):
        sums, peak = retriever.sums_and_peak(empty(7, 16), exclude)
        assert (sums.device, sums.dtype, sums.shape) == (HERE, torch.float64, (7, 2))
        assert (peak.device, peak.shape) == (HERE, (7,))
    similarity, rows = by_blocks(empty(7, 16), retriever.keys, 5, block=8)
    assert (similarity.device, rows.device, rows.dtype) == (HERE, HERE, torch.int64)


@pytest.fixture
def good_patches() -> GoodPatches:
    row = np.repeat(np.arange(3), 9)
    keys = np.random.default_rng(1).normal(size=(27, 16)).astype(np.float32)
    local = LevelMemory(
        keys, np.zeros(27, np.uint8), row, np.full(27, "normal"), np.ones(27, np.int32)
    )
    return GoodPatches(local, Views.of(local, 9), torch.arange(3), "cpu")


def test_the_nearest_good_patch_and_its_evidence_are_found_on_the_card(good_patches, fake):
    """Without waiting for the card: a wait needs a value, which these tensors do not have."""
    for name in ("keys", "entry", "groups", "group"):
        own = getattr(good_patches, name)
        setattr(good_patches, name, empty(*own.shape, dtype=own.dtype))
    for cosine, key in (
        good_patches.nearest(empty(18, 16)),
        good_patches.nearest(empty(18, 16), 1, empty(27, dtype=torch.bool)),
        good_patches.several(empty(2, 16), 2),
        good_patches.several(empty(2, 16), 5, 1),
    ):
        assert (cosine.device, key.device, key.dtype) == (HERE, HERE, torch.int64)
    assert within_itself(empty(9, 16), 3).device == HERE
    with pytest.raises(RuntimeError, match=r"cuda:[01] and cuda:[01]"):
        good_patches.nearest(empty(18, 16, device=OTHER))


def test_the_map_stays_on_the_card(fake, monkeypatch):
    """But for its operator, which NumPy makes once and `map_operator` moves."""
    monkeypatch.setattr(maps, "map_operator", lambda grid, size, *rest: empty(size, grid))
    square = maps.anomaly_map(empty(2, 36), 96)
    assert (square.device, square.shape) == (HERE, (2, 96, 96))
    assert maps.top_mean(square, 0.01).device == HERE


@pytest.fixture
def prompts() -> tuple[TextTower, CLIPWeights]:
    tower = TextTower(build_tiny_clip(), "tiny", ("object.", "damaged object."), 3)
    return tower, CLIPWeights(48, 64, 32, 3, 3, 2)


def test_prompts_and_priors_stay_on_the_card(prompts, fake):
    text, weights = (move(part) for part in prompts)
    joint = empty(2, 36, 48)
    priors = region_priors(joint, empty(2, 36) > 0.5)
    found = text.prefix(weights.deep(True))
    assert all(part.device == HERE for pair in found for part in pair)
    assert weights.context(priors).device == HERE
    assert prompt_probability(joint, empty(2, 2, 48), 0.07).device == HERE
