"""labelme's and COCO's annotations become masks and a list that `mrad build` reads."""

from __future__ import annotations

import json

import pytest
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.convert import convert

from mrad.errors import DataError
from tests.indexer.datasets.trees import SIZE, picture

SQUARE = [[6, 4], [14, 4], [14, 12], [6, 12]]


def check(path) -> None:
    records = read_dataset(path).records
    assert {(r.image.name, r.anomalous, r.defect) for r in records} == {
        ("bad.png", True, "scratch"),
        ("good.png", False, ""),
    }
    (bad,) = [record for record in records if record.anomalous]
    mask = bad.truth(SIZE)
    assert 49 <= mask.anomalous.sum() <= 81
    assert mask.anomalous[5:11, 7:13].all()


def test_labelme(tmp_path):
    for name in ("bad", "good", "forgotten"):
        picture(tmp_path / f"set/{name}.png")
    for name, shapes in (
        ("bad", [{"label": "scratch", "points": SQUARE, "shape_type": "polygon"}]),
        ("good", []),
    ):
        content = {"imagePath": f"{name}.png", "imageWidth": SIZE[0], "imageHeight": SIZE[1]}
        (tmp_path / f"set/{name}.json").write_text(json.dumps(content | {"shapes": shapes}))
    made = convert(tmp_path / "set", tmp_path / "out")
    assert (made.good, made.defective) == (1, 1)
    assert "forgotten.png" in made.left_out[0]
    check(made.list)
    with pytest.raises(DataError, match="there already"):
        convert(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("as_runs", [False, True])
def test_coco(tmp_path, as_runs):
    pytest.importorskip("pycocotools")
    for name in ("bad", "good"):
        picture(tmp_path / f"set/images/{name}.png")
    flat = [[coordinate for point in SQUARE for coordinate in point]]
    columns = [0 if 6 <= x < 14 else 1 for x in range(SIZE[0])]
    runs, last, count = [], 0, 0
    for x in range(SIZE[0]):
        for y in range(SIZE[1]):
            value = int(not columns[x] and 4 <= y < 12)
            if value == last:
                count += 1
            else:
                runs.append(count)
                last, count = value, 1
    runs.append(count)
    segments = {"size": [SIZE[1], SIZE[0]], "counts": runs} if as_runs else flat
    size = {"width": SIZE[0], "height": SIZE[1]}
    content = {
        "images": [
            {"id": 1, "file_name": "bad.png"} | size,
            {"id": 2, "file_name": "good.png"} | size,
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": segments}],
        "categories": [{"id": 3, "name": "scratch"}],
    }
    (tmp_path / "set/all.json").write_text(json.dumps(content))
    check(convert(tmp_path / "set/all.json", tmp_path / "out").list)


def test_what_is_neither_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="neither"):
        convert(tmp_path / "a.json", tmp_path / "out")
