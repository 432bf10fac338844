"""Nearest good patches by cells: what they find, when they are used, and how they follow lessons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrad.memory.level import LevelMemory
from mrad.retrieval import patch_index
from mrad.retrieval.good_patches import GoodPatches, Views
from mrad.retrieval.patch_index import DECISIVE, PROBES, SHORTS, PatchIndex

PARTS, CELLS, WIDTH = 20, 100, 24


def patches(parts: int, seed: int) -> Tensor:
    """Of parts that resemble each other: [parts * CELLS, WIDTH], L2-normalised."""
    plan = torch.randn(CELLS, WIDTH, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(seed)
    return F.normalize(
        (plan + 0.3 * torch.randn(parts, CELLS, WIDTH, generator=noise)).flatten(0, 1), dim=1
    )


def memory(
    keys: Tensor, before: GoodPatches | None = None, settled: int | None = None
) -> GoodPatches:
    count = len(keys)
    local = LevelMemory(
        keys.numpy(),
        np.zeros(count, np.uint8),
        np.repeat(np.arange(count // CELLS), CELLS),
        np.full(count, "normal"),
        np.ones(count, np.int32),
    )
    groups = torch.arange(count // CELLS)
    return GoodPatches(local, Views.of(local, CELLS), groups, "cpu", before, settled)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> GoodPatches:
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    return memory(patches(PARTS, 1))


def test_cells_find_what_recall_promises_and_the_farthest_patches_exactly(many) -> None:
    asked = patches(3, 2)
    asked[7] = F.normalize(-asked[7], dim=0)  # a defect
    cosine, key = many.nearest(asked)
    exact, _ = many.by_blocks(asked)
    index = many.index()
    assert isinstance(index, PatchIndex)
    assert index.probes in PROBES
    assert index.probes < index.faiss.nlist, "else nothing is saved"
    assert (cosine <= exact + 1e-5).all(), "what is missed seems farther, never nearer"
    assert ((cosine - exact).abs() < 1e-5).double().mean() >= index.recall - 0.05
    torch.testing.assert_close((asked * many.keys[key]).sum(dim=1), cosine)
    far = exact.view(3, CELLS).topk(round(DECISIVE * CELLS / 2), largest=False).indices
    for image, rows in enumerate(far):
        found = cosine.view(3, CELLS)[image, rows]
        torch.testing.assert_close(found, exact.view(3, CELLS)[image, rows])


def test_what_is_left_out_is_searched_exactly(many) -> None:
    own = many.keys[:CELLS]
    assert (many.nearest(own)[0] > 0.9999).all()
    cosine, key = many.nearest(own, exclude=0)
    other = many.keys[CELLS:]
    torch.testing.assert_close(cosine, (own @ other.T).amax(dim=1))
    assert (key >= CELLS).all()


def test_some_of_the_keys_are_searched_by_cells_too(many) -> None:
    asked, first = patches(3, 2), torch.arange(len(many)) < len(many) // 2
    cosine, key = many.nearest(asked, keys=first)
    exact, _ = many.by_blocks(asked, keys=first)
    assert bool(first[key].all())
    assert (cosine <= exact + 1e-5).all()
    assert ((cosine - exact).abs() < 1e-5).double().mean() >= 0.99
    none, key = many.nearest(asked, keys=first & ~first)
    assert bool((none == -1).all())
    assert bool((key == -1).all())


def test_cells_are_those_of_the_build_until_lessons_outnumber_it(many) -> None:
    first = many.index()
    keys = torch.cat([patches(PARTS, 1), patches(2, 3)])
    learned = memory(keys, many, PARTS)
    followed = learned.index()
    assert followed.axes is first.axes, "nothing is made again"
    assert len(followed.groups) == len(many)
    assert followed.faiss.ntotal == len(learned)
    assert first.faiss.ntotal == len(many), "whoever still asks the old memory is not disturbed"
    new = learned.keys[-CELLS:]
    assert (learned.nearest(new)[1] >= len(many)).all(), "new patches are found"
    for state in (learned, memory(keys, None, PARTS)):
        torch.testing.assert_close(state.nearest(new)[0], learned.nearest(new)[0], rtol=0, atol=0)
    grown = memory(patches(3 * PARTS, 1), learned, PARTS)
    assert len(grown.index().groups) == 2 * len(many)


@pytest.mark.parametrize(
    ("count", "settled", "made_of"),
    [
        (9_000, 9_000, 9_000),
        (17_999, 9_000, 9_000),
        (18_000, 9_000, 18_000),
        (8_200, 100, 8_192),
        (40_000, 0, 32_768),
    ],
)
def test_how_many_keys_make_the_cells(count: int, settled: int, made_of: int) -> None:
    assert patch_index.trained_on(count, settled) == made_of


def test_keys_that_no_cells_suit_are_not_tried_again_at_each_lesson(monkeypatch) -> None:
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    monkeypatch.setattr(patch_index, "WANTED", 1.1)
    hard = memory(patches(PARTS, 1))
    assert hard.index() is None
    monkeypatch.setattr(PatchIndex, "_trained", None)  # whoever trains fails
    keys = torch.cat([patches(PARTS, 1), patches(1, 3)])
    learned = memory(keys, hard, PARTS)
    assert learned.index() is None
    assert memory(torch.cat([keys, patches(1, 4)]), learned, PARTS).index() is None


def test_parts_of_one_group_alone_are_searched_exactly(monkeypatch) -> None:
    """As the tiles of one picture: none can be left out, so recall is not known."""
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    one = torch.zeros(PARTS * CELLS).long()
    index = PatchIndex.build(patches(PARTS, 1), one, one, PARTS * CELLS)
    assert not index.usable


def test_few_keys_and_keys_that_no_cells_suit_are_searched_exactly(monkeypatch) -> None:
    few = memory(patches(4, 1))
    assert few.index() is None
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    monkeypatch.setattr("mrad.retrieval.patch_index.WANTED", 1.1)
    hard = memory(patches(PARTS, 1))
    assert hard.index() is None
    asked = patches(1, 2)
    torch.testing.assert_close(hard.nearest(asked)[0], (asked @ hard.keys.T).amax(dim=1))


def test_cells_know_the_directions_that_the_keys_vary_along_and_the_cosine_is_taken_in_full(
    monkeypatch,
) -> None:
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    wide = torch.randn(WIDTH, 3 * WIDTH, generator=torch.Generator().manual_seed(4))
    faint = torch.Generator().manual_seed(5)
    keys = patches(PARTS, 1) @ wide
    keys = F.normalize(keys + 0.02 * torch.randn(keys.shape, generator=faint), dim=1)
    held = memory(keys)
    index = held.index()
    assert index.axes.shape == (3 * WIDTH, 32), "24 directions, filled up to a vector's length"
    asked = F.normalize(patches(1, 2) @ wide, dim=1)
    cosine, key = held.nearest(asked)
    torch.testing.assert_close(cosine, (asked * keys[key]).sum(dim=1))
    inside = keys - keys @ index.axes @ index.axes.T
    left = (asked - asked @ index.axes @ index.axes.T).norm(dim=1)
    slack = 2 * inside.norm(dim=1).max() * left
    exact = held.by_blocks(asked)[0]
    found = index._search(asked, asked @ index.axes, index.faiss.nlist, 1)[0]
    assert (found >= exact - slack - 1e-3).all(), "the bound that the module states"


def test_near_ties_want_more_keys_in_full(monkeypatch) -> None:
    """Parts that are alike, as a wide tower sees them: what the few directions leave out orders them."""
    monkeypatch.setattr(patch_index, "MANY", 1_000)
    plan = torch.randn(CELLS, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    alike = plan + 0.03 * torch.randn(PARTS, CELLS, 256, generator=noise)
    many = memory(F.normalize(alike.flatten(0, 1), dim=1))
    index = many.index()
    assert isinstance(index, PatchIndex)
    assert index.short > SHORTS[0]
    asked = F.normalize(plan + 0.03 * torch.randn(CELLS, 256, generator=noise), dim=1)
    exact, _ = many.by_blocks(asked)
    assert ((many.nearest(asked)[0] - exact).abs() < 1e-5).double().mean() > 0.9
