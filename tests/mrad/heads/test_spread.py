"""How unlike good patches a patch is by the directions in which those vary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.heads.good_parts.classes import APART
from mrad.heads.good_parts.left_out import eased
from mrad.heads.good_parts.spread import LEAST_RIDGE, GoodSpread, LeftOutSpread, PatchSums
from mrad.memory.keys import encode_samples
from mrad.retrieval.good_patches import GoodPatches, Views

GOOD = sorted((FOLDER / "memory" / "good").glob("*.png"))


def taken(paths: list[Path]) -> list[Sample]:
    return [Sample(path, anomalous=False, source=path.name) for path in paths]


@pytest.fixture(scope="module")
def twelve(mini_encoder: Encoder) -> MemoryBank:
    return MemoryBank.from_samples(mini_encoder, taken(GOOD[:12]))


def test_it_is_the_mahalanobis_distance():
    generator = torch.manual_seed(0)
    patches = torch.randn(4_000, 6, generator=generator) * torch.tensor([3, 2, 1, 1, 0.5, 0.01])
    spread = PatchSums.none(patches.mean(dim=0)).plus(patches).spread(1_000, "cpu")
    asked = torch.randn(5, 6, generator=generator)
    covariance = np.cov(patches.double().T, bias=True)
    covariance += LEAST_RIDGE * np.trace(covariance) / 6 * np.eye(6)
    off = (asked - patches.mean(dim=0)).double().numpy()
    expected = np.sqrt(np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off))
    np.testing.assert_allclose(spread.distance(asked), expected, rtol=1e-3)
    assert float(spread.apart(asked[:1], asked[:1])) == 0
    assert float(spread.apart(asked[:1], spread.mean[None])) == pytest.approx(
        APART * expected[0], rel=1e-3
    )


def test_few_images_are_taken_to_vary_more_evenly():
    patches = torch.randn(500, 4) * torch.tensor([1, 1, 1, 0.001])
    odd = torch.tensor([[0.0, 0, 0, 0.5]])
    sums = PatchSums.none(torch.zeros(4)).plus(patches)
    few, many = (float(sums.spread(images, "cpu").distance(odd)) for images in (3, 40))
    assert few < many / 5


@pytest.mark.parametrize("varies", [0.0, 1e-4, 1e-3])
def test_parts_that_hardly_vary_have_a_spread(varies: float):
    """As film, or blank sheets: float32 products of whole patches round such a spread away."""
    generator = torch.manual_seed(0)
    mean = torch.nn.functional.normalize(torch.randn(384, generator=generator), dim=0)
    noise = varies * torch.randn(8_000, 384, generator=generator) / 384**0.5
    noise[:, :300] = 0
    patches = torch.nn.functional.normalize(mean + noise, dim=1)
    sums = PatchSums.none(patches[:100].mean(dim=0)).plus(patches)
    for images in (3, 40, 1_000):
        spread = sums.spread(images, "cpu")
        assert bool(spread.distance(patches[:50]).isfinite().all())
        odd = patches[:1] + 0.01 * torch.eye(384)[:1]
        assert float(spread.distance(odd)) > 2 * float(spread.distance(patches[:50]).max())


def test_a_picture_without_a_patch_of_interest_is_no_image_of_the_spread(
    mini_encoder: Encoder,
) -> None:
    bank = MemoryBank.from_samples(mini_encoder, taken(GOOD[:3]))
    cells = mini_encoder.grid**2
    bank.local.region[cells : 2 * cells] = "outside"
    views = Views.of(bank.local, cells)
    good_patches = GoodPatches(bank.local, views, torch.arange(3), "cpu")
    spread = GoodSpread(good_patches, views, torch.ones(3, dtype=torch.bool))
    assert spread.images == 2
    assert not spread.enough


def test_images_left_out_say_nothing(mini_encoder: Encoder, twelve: MemoryBank) -> None:
    head = Detector(mini_encoder, twelve, "nn").head
    for row in (0, 7):
        others = twelve.remove(twelve.entries[row].entry_id)
        expected = Detector(mini_encoder, others, "nn").head.spread.whole()
        found = head.spread.without(row)
        torch.testing.assert_close(found.mean, expected.mean)
        asked = torch.nn.functional.normalize(torch.randn(9, expected.mean.shape[0]), dim=1)
        torch.testing.assert_close(
            found.distance(asked), expected.distance(asked), rtol=1e-3, atol=0
        )


def test_two_good_images_have_none(mini_encoder: Encoder) -> None:
    bank = MemoryBank.from_samples(mini_encoder, taken(GOOD[:2]))
    head = Detector(mini_encoder, bank, "nn").head
    assert not head.spread.enough
    assert len(head.patch_distances(mini_encoder.encode([str(GOOD[3])]), None)) == 1


def test_a_lesson_calms_what_is_like_it_and_moves_nothing_else(
    mini_encoder: Encoder, twelve: MemoryBank
) -> None:
    before = Detector(mini_encoder, twelve, "nn")
    ((entry, keys),) = encode_samples(mini_encoder, taken(GOOD[20:21]))
    after = before.with_bank(twelve.add(entry, keys))
    torch.testing.assert_close(after.head.spread.whole().factor, before.head.spread.whole().factor)

    def by_spread(detector: Detector, path: Path) -> torch.Tensor:
        return detector.head.patch_distances(mini_encoder.encode([str(path)]), None)[1]

    assert float(by_spread(after, GOOD[20]).max()) < 0.1 * float(
        by_spread(before, GOOD[20]).median()
    )
    other, same = by_spread(before, GOOD[30]), by_spread(after, GOOD[30])
    assert bool((same <= other + 1e-4).all())
    assert float((same < other - 1e-4).double().mean()) < 0.05


def test_it_is_kept_with_the_bank_and_damage_is_noticed(
    mini_encoder: Encoder, twelve: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twelve.save(tmp_path / "bank")

    def opened() -> LeftOutSpread:
        head = Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"), "nn").head
        return head._left_out_spread

    first = opened()
    (kept,) = (tmp_path / "bank" / "derived").glob("spread-*")
    with monkeypatch.context() as patched:
        patched.setattr(GoodSpread, "_of", None)  # whoever measures fails
        patched.setattr(GoodSpread, "distance", None)
        torch.testing.assert_close(opened().values, first.values, rtol=0, atol=0)
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    kept.write_bytes(data)
    assert LeftOutSpread.read(kept) is None
    torch.testing.assert_close(opened().values, first.values)


def test_what_was_taught_calms_by_how_much_nearer_it_is():
    built = torch.full((4,), 0.4)
    found = eased(built, torch.tensor([0.0, 0.2, 0.38, 0.4]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.3, 0.399, 0.4]))
