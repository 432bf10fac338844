"""Images of mixed sizes: each pixel counts alike, so a large image counts for several small ones."""

from __future__ import annotations

from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.report import notes
from mrad_indexer.evaluation.runner import evaluate

from mrad import Detector


def test_mixed_sizes_of_one_object_are_pointed_out(tiny_encoder, tiny_bank, make_image, tmp_path):
    detectors = {"tf": Detector(tiny_encoder, tiny_bank)}

    def told(resolution: int | None = None) -> bool:
        found = notes(evaluate(detectors, read_dataset(tmp_path), resolution=resolution))
        return any("4.0 times the pixels" in note for note in found)

    def add(name: str, size: tuple[int, int]) -> None:
        for seed, kind in enumerate(("good", "blob")):
            image, mask = make_image(seed, size, defect=kind == "blob")
            for folder, picture in (("test", image), ("ground_truth", mask)):
                if picture is not None:
                    place = tmp_path / name / folder / kind
                    place.mkdir(parents=True, exist_ok=True)
                    end = "_mask" if folder == "ground_truth" else ""
                    picture.save(place / f"{size[0]}{end}.png")

    add("cap", (64, 48))
    add("ring", (128, 96))  # another object: its figures are its own
    assert not told()
    add("cap", (128, 96))
    assert told()
    assert not told(resolution=48)
