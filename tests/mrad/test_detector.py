"""The whole: ragged sizes, stages, fusion, evidence, exclusion, another memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mrad import ANOMALOUS, Detector, Encoder, MemoryBank, Sample
from mrad.errors import ImageError, MRADError
from mrad.maps import anomaly_map, fuse, resize_map, top_mean
from tests.mrad.plain import build_clip

SIZES = [(80, 64), (31, 200), (96, 96), (7, 5), (300, 90)]


@pytest.fixture(scope="module")
def ragged(make_image) -> list[Image.Image]:
    """Five images of five sizes, every other one with a defect."""
    return [make_image(20 + i, size, defect=i % 2 == 0)[0] for i, size in enumerate(SIZES)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_ragged_images_come_back_in_order_at_their_own_size(tiny_detector, ragged, batch_size):
    predictions = tiny_detector.predict(ragged, batch_size=batch_size)
    alone = [tiny_detector.predict([image])[0] for image in ragged]
    for one, other, size in zip(predictions, alone, SIZES, strict=True):
        assert one.size == size
        assert one.anomaly_map.shape == size[::-1]
        assert one.anomaly_map.dtype == np.float32
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)
        assert 0 <= one.anomaly_map.min() <= one.anomaly_map.max() <= 1


def test_the_score_is_the_fusion_of_what_the_stages_give(tiny_encoder, tiny_bank, ragged):
    detector = Detector(tiny_encoder, tiny_bank, fusion=0.6, sigma=2.0, top=0.05)
    features = tiny_encoder.encode(ragged[:2])
    output = detector.head(features)
    square = anomaly_map(output.patch, tiny_encoder.image_size, 2.0)
    tops = top_mean(square, 0.05)
    for i, found in enumerate(detector.predict(ragged[:2])):
        assert found.top_score == pytest.approx(float(tops[i]), abs=1e-6)
        assert found.class_score == pytest.approx(float(output.image[i]), abs=1e-6)
        wanted = 0.4 * found.top_score + 0.6 * found.class_score
        assert found.score == pytest.approx(wanted, abs=1e-6)
        np.testing.assert_allclose(found.anomaly_map, resize_map(square[i], SIZES[i]), atol=1e-6)


def test_fusion_goes_from_the_map_alone_to_the_image_alone():
    top, image = torch.tensor([0.2]), torch.tensor([0.8])
    assert [float(fuse(top, image, w)) for w in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.5, 0.8])


def test_numbers_out_of_range_are_refused(tiny_encoder, tiny_bank):
    for option in ({"fusion": 1.5}, {"fusion": -0.1}, {"top": 2.0}, {"top": -1.0}):
        with pytest.raises(MRADError, match="must lie in"):
            Detector(tiny_encoder, tiny_bank, **option)
    with pytest.raises(MRADError, match="sigma"):
        Detector(tiny_encoder, tiny_bank, sigma=-1.0)


def test_maps_are_left_out_on_request_and_scores_stay(tiny_detector, ragged):
    with_maps, without = (tiny_detector.predict(ragged[:2], maps=m) for m in (True, False))
    assert [p.anomaly_map is None for p in without] == [True, True]
    assert [p.score for p in with_maps] == [p.score for p in without]
    assert without[0].evidence == ()


def test_an_image_of_the_memory_finds_itself_unless_excluded(
    tiny_detector, tiny_samples, tiny_bank
):
    images = [sample.image for sample in tiny_samples]
    features = tiny_detector.encoder.encode(images)
    sizes = [image.size for image in images]
    own = torch.arange(6)
    for exclude, finds in ((None, True), (own, False)):
        predictions = tiny_detector.finish(features, sizes, evidence=3, exclude=exclude)
        for row, prediction in enumerate(predictions):
            image = [e for e in prediction.evidence if e.level == "image"]
            patch = [e for e in prediction.evidence if e.level == "patch"]
            assert len(image) == len(patch) == 3
            ids = [e.entry_id for e in image]
            assert (tiny_bank.entries[row].entry_id in ids) is finds
            if finds:
                assert image[0].source == f"{row}.png"
                assert image[0].similarity == pytest.approx(1, abs=1e-5)
            assert [e.similarity for e in image] == sorted(
                (e.similarity for e in image), reverse=True
            )


def test_asking_for_more_evidence_than_there_is_never_shows_the_excluded(
    tiny_detector, tiny_samples, tiny_bank
):
    features = tiny_detector.encoder.encode([tiny_samples[0].image])
    (found,) = tiny_detector.finish(features, [(8, 8)], evidence=99, exclude=torch.tensor([0]))
    own = tiny_bank.entries[0].entry_id
    assert own not in {e.entry_id for e in found.evidence}
    others = int((tiny_bank.image.entry != 0).sum() + (tiny_bank.patch.entry != 0).sum())
    assert len(found.evidence) == others


def test_evidence_describes_its_key(tiny_detector, tiny_bank, ragged):
    grid = tiny_detector.encoder.grid
    features = tiny_detector.encoder.encode(ragged[:1])
    peak = int(tiny_detector.head(features).patch[0].argmax())
    (prediction,) = tiny_detector.predict(ragged[:1], evidence=50)
    entries = {entry.entry_id: entry for entry in tiny_bank.entries}
    levels = [e.level for e in prediction.evidence]
    assert levels == ["image"] * len(tiny_bank.image) + ["patch"] * len(tiny_bank.patch)
    for found in prediction.evidence:
        entry = entries[found.entry_id]
        assert found.source == entry.source
        assert found.defect == (entry.defect if found.label == ANOMALOUS else "")
        if found.level == "image":
            assert (found.region, found.label, found.query_cell) == ("image", entry.label, None)
        else:
            assert found.region == ("normal", "anomalous")[found.label]
            assert found.query_cell == divmod(peak, grid)


def test_evidence_of_a_projecting_head_is_still_cosine_on_the_banks_own_keys(
    tiny_encoder, tiny_bank, tiny_detector, ragged
):
    class Backwards:
        """A head with retrievers of its own kind under the usual names."""

        name = "backwards"

        def attach(self, bank, mode="exact"):
            self.image = self.patch = "not a retriever"

        def __call__(self, features, exclude=None):
            return tiny_detector.head(features, exclude)

    detector = Detector(tiny_encoder, tiny_bank, head=Backwards())
    one, other = (
        detector.predict(ragged[:1], evidence=2),
        tiny_detector.predict(ragged[:1], evidence=2),
    )
    assert one[0].evidence == other[0].evidence


def test_another_memory_leaves_the_first_detector_as_it_was(
    tiny_detector, tiny_encoder, tiny_samples, tiny_bank, ragged
):
    before = tiny_detector.predict(ragged[:1])[0]
    fewer = MemoryBank.from_samples(tiny_encoder, tiny_samples[:2])
    other = tiny_detector.with_bank(fewer)
    changed = other.predict(ragged[:1], evidence=1)[0]
    assert changed.score != before.score
    assert changed.evidence[0].entry_id in {entry.entry_id for entry in fewer.entries}
    assert tiny_detector.predict(ragged[:1])[0].score == before.score
    assert tiny_detector.bank is tiny_bank
    assert other.with_bank(tiny_bank).predict(ragged[:1])[0].score == before.score


def test_the_order_of_the_memory_does_not_change_a_score(
    tiny_detector, tiny_encoder, tiny_samples, ragged
):
    shuffled = MemoryBank.from_samples(tiny_encoder, [tiny_samples[i] for i in (3, 0, 5, 1, 4, 2)])
    one, other = tiny_detector.predict(ragged), Detector(tiny_encoder, shuffled).predict(ragged)
    assert [p.score for p in one] == pytest.approx([p.score for p in other], abs=1e-6)


def test_an_unreadable_image_is_an_image_error_and_no_images_are_no_predictions(tiny_detector):
    with pytest.raises(ImageError):
        tiny_detector.predict([b"nonsense"])
    assert tiny_detector.predict([]) == []
    with pytest.raises(MRADError, match="batch_size"):
        tiny_detector.predict([], batch_size=0)


@pytest.mark.parametrize(("patch", "quick"), [(14, True), (16, False), (32, True)])
def test_tf_works_on_any_encoder(patch, quick, tiny_samples, ragged):
    clip = build_clip(patch_size=patch, image_size=patch * 3, quick_gelu=quick)
    encoder = Encoder.from_clip(clip, patch * 5, device="cpu")
    marked = [Sample(s.image, s.anomalous, s.mask) for s in tiny_samples]
    full = np.full((64, 80), 255, np.uint8)
    marked.append(Sample(tiny_samples[0].image, True, full))  # coarse grids lose small defects
    bank = MemoryBank.from_samples(encoder, marked)
    for prediction, size in zip(Detector(encoder, bank).predict(ragged), SIZES):
        assert prediction.anomaly_map.shape == size[::-1]
        assert 0 < prediction.score < 1
