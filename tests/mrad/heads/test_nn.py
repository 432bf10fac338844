"""A memory of good parts alone: how far the nearest good patch is, kept while the memory changes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.errors import CalibrationError, MRADError
from mrad.heads.choose import default_head
from mrad.heads.good_parts.left_out import LeftOutDistances
from mrad.heads.nn import NNHead
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling
from mrad.memory.coreset import bounded
from mrad.thresholds.near_duplicates import groups_of, sketches
from mrad.thresholds.own import score_own
from mrad.types import ANOMALOUS

GOOD = sorted((FOLDER / "memory" / "good").glob("*.png"))[:8]
QUERIES = sorted((FOLDER / "query").glob("*/*.png"))


@pytest.fixture(scope="module")
def good_bank(mini_encoder: Encoder) -> MemoryBank:
    samples = [Sample(path, anomalous=False, source=path.name) for path in GOOD]
    return MemoryBank.from_samples(mini_encoder, samples)


@pytest.fixture(scope="module")
def detector(mini_encoder: Encoder, good_bank: MemoryBank) -> Detector:
    return Detector(mini_encoder, good_bank)


def test_good_parts_alone_are_judged_by_nn_and_tf_says_why_not(
    mini_encoder: Encoder, good_bank: MemoryBank, detector: Detector
) -> None:
    assert default_head(good_bank).head == detector.head.name == "nn"
    with pytest.raises(MRADError, match="head nn"):
        Detector(mini_encoder, good_bank, "tf")
    found = detector.predict([str(GOOD[0]), *map(str, QUERIES)], evidence=2)
    assert all(0 <= one.score <= 1 and np.isfinite(one.anomaly_map).all() for one in found)
    patches = [one for one in found[0].evidence if one.level == "patch"]
    assert patches
    assert all(one.label == 0 for one in patches)
    assert patches[0].similarity == pytest.approx(1, abs=1e-5), "its own patch"
    scores = {path.parent.name: [] for path in QUERIES}
    for path, one in zip(QUERIES, found[1:]):
        scores[path.parent.name].append(one.score)
    assert np.mean(scores["defect"]) > np.mean(scores["good"])


def test_distances_follow_a_memory_that_learns_and_forgets(
    mini_encoder: Encoder, good_bank: MemoryBank, detector: Detector
) -> None:
    for changed in (
        good_bank.remove(good_bank.entries[2].entry_id),
        good_bank.remove(good_bank.entries[0].entry_id).remove(good_bank.entries[7].entry_id),
    ):
        followed, again = detector.with_bank(changed).head, Detector(mini_encoder, changed).head
        one, other = followed._left_out, again._left_out
        np.testing.assert_allclose(one.cosine, other.cosine, atol=1e-5)
        back = detector.with_bank(changed).with_bank(good_bank).head._left_out
        np.testing.assert_allclose(back.cosine, detector.head._left_out.cosine, atol=1e-5)


def test_distances_are_kept_with_the_bank_and_damage_is_noticed(
    mini_encoder: Encoder, good_bank: MemoryBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good_bank.save(tmp_path / "bank")
    first = Detector(mini_encoder, MemoryBank.load(tmp_path / "bank")).head._left_out
    (kept,) = (tmp_path / "bank" / "derived").glob("left-out-*")
    np.testing.assert_array_equal(LeftOutDistances.read(kept).cosine, first.cosine)
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    kept.write_bytes(data)
    assert LeftOutDistances.read(kept) is None
    assert "not used" in caplog.text
    again = Detector(mini_encoder, MemoryBank.load(tmp_path / "bank")).head._left_out
    np.testing.assert_allclose(again.cosine, first.cosine, atol=1e-6)


def test_defects_without_masks_are_judged_by_both(mini_encoder: Encoder) -> None:
    bad = sorted((FOLDER / "memory" / "defect").glob("*.png"))[:3]
    samples = [Sample(path, anomalous=False, source=path.name) for path in GOOD[:5]]
    samples += [Sample(path, anomalous=True, source=path.name) for path in bad]
    bank = MemoryBank.from_samples(mini_encoder, samples)
    detector = Detector(mini_encoder, bank)
    assert detector.head.name == "combined"
    assert all(np.isfinite(one.score) for one in detector.predict([str(p) for p in QUERIES]))


def test_one_good_image_and_none(mini_encoder: Encoder) -> None:
    one = MemoryBank.from_samples(mini_encoder, [Sample(GOOD[0], anomalous=False)])
    assert np.isfinite(Detector(mini_encoder, one).predict([str(QUERIES[0])])[0].score)
    bad = sorted((FOLDER / "memory" / "defect").glob("*.png"))[0]
    none = MemoryBank.from_samples(mini_encoder, [Sample(bad, anomalous=True)])
    with pytest.raises(MRADError, match="good"):
        Detector(mini_encoder, none)


def test_a_burst_is_left_out_together(mini_encoder: Encoder) -> None:
    """The same board, compressed again and a little brighter."""
    with Image.open(GOOD[0]) as opened:
        picture = ImageEnhance.Brightness(opened.convert("RGB")).enhance(1.03)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=92)
    samples = [Sample(path, anomalous=False, source=path.name) for path in GOOD]
    samples.append(Sample(stream.getvalue(), anomalous=False, source="again.jpg"))
    head = Detector(mini_encoder, MemoryBank.from_samples(mini_encoder, samples)).head
    assert head.groups[8] == head.groups[0]
    assert len(set(head.groups.tolist())) == 8
    seen = sketches(mini_encoder.encode([sample.image for sample in samples]))
    group = groups_of(list(seen))
    assert group[8] == group[0]
    assert len(set(group.tolist())) == 8, "as the whole patches say"


def test_combined_is_nn_where_the_memory_holds_one_class(
    mini_encoder: Encoder, good_bank: MemoryBank, detector: Detector
) -> None:
    both = Detector(mini_encoder, good_bank, "combined").predict([str(p) for p in QUERIES[:2]])
    for one, other in zip(both, detector.predict([str(p) for p in QUERIES[:2]])):
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_the_patches_that_are_kept_are_those_of_whole_images(
    mini_encoder: Encoder, good_bank: MemoryBank
) -> None:
    cells = mini_encoder.grid**2
    fewer = bounded(good_bank, cells, 4 * cells)
    assert len(fewer.local) == 4 * cells
    assert len(fewer.image) == len(good_bank.image)
    assert np.isfinite(Detector(mini_encoder, fewer).predict([str(QUERIES[0])])[0].score)


def test_a_few_large_images_do_not_fill_the_memory(mini_encoder: Encoder) -> None:
    """They are chosen tile by tile, so that it is known how good ones vary; good tiles of a defective one are not kept."""
    cells, width = mini_encoder.grid**2, 1280
    panels = [np.hstack([np.asarray(Image.open(path).convert("L").resize((640, 640)))
                         for path in (GOOD[number], GOOD[number + 4])]) for number in range(4)]  # fmt: skip
    mask = np.zeros((640, width), np.uint8)
    mask[200:400, 100:300] = 255
    samples = [
        Sample(Image.fromarray(p), anomalous=False, source=str(n)) for n, p in enumerate(panels)
    ]
    samples.append(
        Sample(
            Image.fromarray(panels[0][:, ::-1].copy()), True, Image.fromarray(mask), source="bad"
        )
    )
    bank = MemoryBank.from_samples(mini_encoder, samples, layout=Layout(Tiling(320, 0.0)))
    fewer = bounded(bank, cells, 12 * cells)
    kept = {
        (entry, tile) for entry, tile in zip(fewer.local.entry.tolist(), fewer.local.tile.tolist())
    }
    assert len(fewer.local) == len(kept) * cells == 12 * cells
    assert len({entry for entry, _ in kept if entry < 4}) >= 3, (
        "whole panels would leave room for one"
    )
    shown = set(
        bank.image.tile[(bank.image.entry == 4) & (bank.image.labels == ANOMALOUS)].tolist()
    )
    assert {tile for entry, tile in kept if entry == 4} <= shown
    head = Detector(mini_encoder, fewer, "nn").head
    assert isinstance(head, NNHead)
    assert head.spread.enough
    with pytest.raises(CalibrationError, match="calibrate with images"):
        score_own(Detector(mini_encoder, fewer, "nn"))


def test_an_image_left_out_says_nothing_of_what_is_usual(
    mini_encoder: Encoder, good_bank: MemoryBank, detector: Detector
) -> None:
    """Judged as by a memory that never held it, but for the blend's two numbers."""
    others = MemoryBank.from_samples(
        mini_encoder, [Sample(path, anomalous=False, source=path.name) for path in GOOD[1:]]
    )
    features = mini_encoder.encode([str(GOOD[0])])
    cells, parts = detector.head.measure(features, torch.tensor([0]))
    head = Detector(mini_encoder, others).head
    # Its distances to the others are the same; theirs among themselves may find it near.
    usual, rest = head.measure(features, None)
    np.testing.assert_allclose(parts.numpy(), rest.numpy(), rtol=1e-4)
    assert np.corrcoef(cells.flatten(), usual.flatten())[0, 1] > 0.98
    own = detector.head._cells.scales(detector.head.patch_distances(features, torch.tensor([0])))
    assert float(cells.max()) > float(own.max()), "its own extremes would have looked usual"
