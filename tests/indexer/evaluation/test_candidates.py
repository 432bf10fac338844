"""Several candidates at once: measured on the same images, however each looks at them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.runner import evaluate

from mrad import Detector, MemoryBank
from mrad.errors import DataError
from mrad.images.align import Reference
from mrad.images.layout import PLAIN, Layout
from mrad.images.regions import Area
from mrad.images.tiles import Tiling
from tests.plates import SIZE, plate


def test_all_candidates_are_measured_on_the_images_that_every_one_can_align(
    aligned_plates, tiny_encoder
):
    data, layout = aligned_plates
    dataset, detectors = read_dataset(data), {}
    records = [r for r in dataset.records if r.image.name != "other.png"]
    for name, own in (("plain", PLAIN), ("aligned", layout)):
        bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in records], layout=own)
        detectors[name] = Detector(tiny_encoder, bank, "nn")
    done: list[int] = []
    found = evaluate(detectors, dataset, progress=done.append)
    assert found.dataset["skipped"] == ["good/other.png: it could not be aligned"]
    for candidate in found.candidates:
        assert [item.images for item in candidate.objects] == [3], candidate.name
    assert done[-1] == len(dataset)


def test_no_candidate_is_measured_on_an_image_that_another_one_cannot_look_at(
    aligned_plates, tiny_encoder
):
    """Two align, by different pictures; one takes fewer pixels; one has a region that fits no wide picture."""
    data, layout = aligned_plates
    width, height = SIZE
    plate().resize((2 * width, 2 * height)).save(data / "good" / "large.png")
    plate().resize((width, height // 2)).save(data / "good" / "wide.png")
    dataset = read_dataset(data)
    records = [r for r in dataset.records if r.image.name in ("0.png", "1.png", "2.png")]

    def candidate(own: Layout) -> Detector:
        bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in records], layout=own)
        return Detector(tiny_encoder, bank, "nn")

    aligned, plain, tiled = candidate(layout), candidate(PLAIN), candidate(Layout(Tiling(96)))
    plain.reading = replace(plain.reading, max_pixels=width * height)
    region = tiled.with_layout(Layout(Tiling(96), Area.of_box((0, 0, *SIZE), SIZE, "all")))
    other = aligned.with_layout(Layout(None, None, layout.parts, Reference.of(plate(5))))
    for pair, wanted in (
        ({"plain": plain, "region": region}, {"0", "1", "2", "other"}),
        ({"plain": plain, "region": region, "aligned": aligned}, {"0", "1", "2"}),
    ):
        for order in (pair, dict(reversed(pair.items()))):
            done: list[int] = []
            found = evaluate(order, dataset, progress=done.append)
            for one in found.candidates:
                (item,) = one.objects
                assert {Path(score.source).stem for score in item.scores} == wanted, one.name
            assert len(found.dataset["skipped"]) == len(dataset) - len(wanted)
            assert done[-1] == len(dataset)
            assert done == sorted(done)
    for order in ({"one": aligned, "two": other}, {"two": other, "one": aligned}):
        with pytest.raises(DataError, match="can be judged by every candidate, the first: good/"):
            evaluate(order, dataset)
