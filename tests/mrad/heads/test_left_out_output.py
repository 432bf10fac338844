"""What heads say of the memory's own images, each left out, while the memory learns and forgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.heads.good_parts.sums import LeftOutSums, Sums, stored_features
from mrad.memory.keys import encode_samples
from mrad.retrieval.good_patches import Views

MEMORY = FOLDER / "memory"


def samples(good: int, masked: int, bare: int = 0) -> list[Sample]:
    found = [
        Sample(path, anomalous=False, source=path.name)
        for path in sorted((MEMORY / "good").glob("*.png"))[:good]
    ]
    for place, path in enumerate(sorted((MEMORY / "defect").glob("*.png"))[: masked + bare]):
        mask = MEMORY / "masks" / path.name if place < masked else None
        found.append(Sample(path, anomalous=True, mask=mask, source=path.name))
    return found


@pytest.fixture(scope="module")
def bank(mini_encoder: Encoder) -> MemoryBank:
    return MemoryBank.from_samples(mini_encoder, samples(5, 2, 1))


def judged_one_by_one(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """The long way: every stored image through the head, its own entry excluded."""
    bank, encoder = detector.bank, detector.encoder
    views = Views.of(bank.local, encoder.grid**2)
    output = detector.head(stored_features(bank, views, "cpu")(range(len(views))), views.rows)
    return output.patch.numpy(), output.image.numpy()


@pytest.mark.parametrize("head", ["tf", "nn", "combined"])
def test_own_images_are_judged_as_if_each_were_new_whatever_was_learnt(
    mini_encoder: Encoder, bank: MemoryBank, head: str
) -> None:
    detector = Detector(mini_encoder, bank, head)
    ((new, keys),) = encode_samples(mini_encoder, samples(6, 0)[5:])
    states = [bank, bank.remove(bank.entries[1].entry_id), bank.remove(bank.entries[6].entry_id)]
    states += [bank, bank.add(new, keys), bank]
    for state in states:
        detector = detector.with_bank(state)
        views = Views.of(state.local, mini_encoder.grid**2)
        output = detector.head.left_out_output(views)
        patch, image = judged_one_by_one(detector)
        np.testing.assert_allclose(output.patch, patch, atol=2e-4)
        np.testing.assert_allclose(output.image, image, atol=2e-4)


@pytest.mark.parametrize("head", ["tf", "combined"])
def test_the_same_holds_where_lessons_count_near_what_they_teach(
    mini_encoder: Encoder, head: str
) -> None:
    built = MemoryBank.from_samples(mini_encoder, samples(10, 3))
    detector = Detector(mini_encoder, built, head)
    lessons = encode_samples(mini_encoder, [*samples(12, 0)[10:], *samples(0, 5)[3:]])
    first, second, third, fourth = (one for one in lessons)
    taught = built.add(*first).add(*third)
    states = [built, taught, taught.add(*second).add(*fourth), taught.remove(first[0].entry_id)]
    states += [taught.remove(built.entries[1].entry_id), built]
    states += [taught.remove(built.entries[11].entry_id).remove(built.entries[12].entry_id)]
    for state in states:
        detector = detector.with_bank(state)
        output = detector.head.left_out_output(Views.of(state.local, mini_encoder.grid**2))
        patch, image = judged_one_by_one(detector)
        np.testing.assert_allclose(output.patch, patch, atol=2e-4)
        np.testing.assert_allclose(output.image, image, atol=2e-4)


def test_the_first_mask_changes_what_stands_beside_nn(mini_encoder: Encoder) -> None:
    bare = MemoryBank.from_samples(mini_encoder, samples(4, 0, 2))
    detector = Detector(mini_encoder, bare, "combined")
    with_mask = MemoryBank.from_samples(mini_encoder, samples(4, 1, 1))
    masked = detector.with_bank(with_mask)
    patch, image = judged_one_by_one(masked)
    views = Views.of(with_mask.local, mini_encoder.grid**2)
    np.testing.assert_allclose(masked.head.left_out_output(views).patch, patch, atol=2e-4)
    np.testing.assert_allclose(masked.head.left_out_output(views).image, image, atol=2e-4)


def test_scales_are_those_of_the_build_however_a_taught_memory_is_opened(
    mini_encoder: Encoder, tmp_path: Path
) -> None:
    built = MemoryBank.from_samples(mini_encoder, samples(10, 2))
    taught = built
    for entry, keys in encode_samples(mini_encoder, samples(13, 0)[10:]):
        taught = taught.add(entry, keys)
    before = Detector(mini_encoder, built, "nn")
    learned = before.with_bank(taught)
    taught.save(tmp_path / "bank")
    opened = [Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"), "nn") for _ in range(2)]
    for detector in (learned, *opened):  # the second reads what the first kept of its distances
        one, other = detector.head, before.head
        kinds = zip(one._cells.scales.kinds, other._cells.scales.kinds, strict=True)
        for scale, known in kinds:
            torch.testing.assert_close(scale.mean, known.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scale.spread, known.spread, rtol=1e-4, atol=1e-5)
        assert one.blend.top.mean == pytest.approx(other.blend.top.mean, abs=1e-5)
        assert one.blend.parts[0].mean == pytest.approx(other.blend.parts[0].mean, abs=1e-5)
        patch, image = judged_one_by_one(detector)
        output = one.left_out_output(one.views)
        np.testing.assert_allclose(output.patch, patch, atol=2e-4)
        np.testing.assert_allclose(output.image, image, atol=2e-4)


def test_sums_are_kept_with_the_bank_and_measured_again_where_damaged(
    mini_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryBank.from_samples(mini_encoder, samples(4, 2)).save(tmp_path / "bank")
    first = Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"), "combined")
    (kept,) = (tmp_path / "bank" / "derived").glob("sums-*")

    def opened() -> Detector:
        return Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"), "combined")

    with monkeypatch.context() as patched:
        patched.setattr(Sums, "add", None)  # whoever measures fails
        again = opened()
    views = first.head.views
    for name in ("patch", "image"):
        one, other = (getattr(d.head.base.left_out_output(views), name) for d in (first, again))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    learned = first.bank.remove(first.bank.entries[0].entry_id)
    fresh = Detector(mini_encoder, learned, "combined").head._output
    torch.testing.assert_close(again.with_bank(learned).head._output.patch, fresh.patch)
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    kept.write_bytes(data)
    assert LeftOutSums.read(kept, (first.bank.image, first.bank.patch)) is None
    torch.testing.assert_close(opened().head._output.patch, first.head._output.patch)
    assert kept.read_bytes() != data
