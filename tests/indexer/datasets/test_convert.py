"""labelme's and COCO's annotations become masks and a list that `mrad build` reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.convert import convert
from PIL import Image

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


def voc(name: str, objects: str = "") -> str:
    width, height = SIZE
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


BOX = "<bndbox><xmin>7</xmin><ymin>5</ymin><xmax>14</xmax><ymax>12</ymax></bndbox>"
OUTLINE = "<polygon>" + "".join(
    f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(SQUARE, start=1)
) + "</polygon>"  # fmt: skip


@pytest.mark.parametrize(("shape", "boxes"), [(BOX, 1), (OUTLINE, 0)])
def test_voc(tmp_path, shape, boxes):
    for name in ("bad", "good", "forgotten"):
        picture(tmp_path / f"set/JPEGImages/{name}.png")
    (tmp_path / "set/Annotations").mkdir()
    defect = f"<object><name>scratch</name>{shape}</object>"
    for name, objects in (("bad", defect), ("good", "")):
        (tmp_path / f"set/Annotations/{name}.xml").write_text(voc(name, objects))
    made = convert(tmp_path / "set", tmp_path / "out")
    assert made.boxes == boxes
    assert [text.partition(":")[0] for text in made.left_out] == ["JPEGImages/forgotten.png"]
    check(made.list)


def test_the_masks_of_voc_go_before_its_boxes(tmp_path):
    for name in ("bad", "good"):
        picture(tmp_path / f"set/JPEGImages/{name}.png")
    (tmp_path / "set/Annotations").mkdir()
    whole = BOX.replace(">14<", ">20<")
    defect = f"<object><name>scratch</name>{whole}</object>"
    for name, objects in (("bad", defect), ("good", "")):
        (tmp_path / f"set/Annotations/{name}.xml").write_text(voc(name, objects))
    levels = np.zeros(SIZE[::-1], np.uint8)
    levels[3:13, 5:15] = 255
    levels[4:12, 6:14] = 1
    drawn = tmp_path / "set/SegmentationClass/bad.png"
    drawn.parent.mkdir()
    Image.fromarray(levels).save(drawn)
    made = convert(tmp_path / "set", tmp_path / "out")
    assert not made.boxes
    check(made.list)
    (bad,) = [record for record in read_dataset(made.list).records if record.anomalous]
    assert bad.truth(SIZE).ignore.sum() == 36


@pytest.mark.parametrize("boxes", [False, True])
def test_yolo(tmp_path, boxes):
    for name in ("bad", "good", "forgotten"):
        picture(tmp_path / f"set/images/train/{name}.png")
    width, height = SIZE
    flat = " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in SQUARE)
    shape = f"{10 / width} {8 / height} {8 / width} {8 / height}" if boxes else flat
    labels = tmp_path / "set/labels/train"
    labels.mkdir(parents=True)
    (labels / "bad.txt").write_text(f"1 {shape}\n")
    (labels / "good.txt").write_text("")
    (tmp_path / "set/classes.txt").write_text("dent\nscratch\n")
    made = convert(tmp_path / "set", tmp_path / "out")
    assert made.boxes == int(boxes)
    assert "forgotten.png" in made.left_out[0]
    check(made.list)
    (labels / "bad.txt").write_text("1 0.5 0.5\n")
    with pytest.raises(DataError, match=r"bad\.txt, line 1"):
        convert(tmp_path / "set", tmp_path / "other")


def test_xml_that_blows_up_is_refused(tmp_path):
    picture(tmp_path / "set/bad.png")
    (tmp_path / "set/bad.xml").write_text('<!DOCTYPE a [<!ENTITY b "bb">]>' + voc("bad"))
    with pytest.raises(DataError, match="entities"):
        convert(tmp_path / "set", tmp_path / "out")
