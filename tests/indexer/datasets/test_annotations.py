"""Annotations as tools write them: nothing that is drawn makes a good image, and doubt is said."""

from __future__ import annotations

import base64
import csv
import io
import json

import numpy as np
import pytest
from mrad_indexer.cli.main import app
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.convert import convert
from PIL import Image
from typer.testing import CliRunner

from mrad.errors import DataError
from tests.indexer.datasets.test_convert import voc
from tests.indexer.datasets.trees import SIZE, picture

WIDTH, HEIGHT = SIZE


def listed(made) -> dict[str, tuple[str, str, bool]]:
    """Name -> label, defect, whether it has a mask."""
    with made.list.open() as file:
        return {
            row["image"].rpartition("/")[2]: (row["label"], row["defect"], bool(row["mask"]))
            for row in csv.DictReader(file)
        }


def labelme(root, name: str, *shapes, **more) -> None:
    picture(root / f"{name}.png")
    content = {"imagePath": f"{name}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (root / f"{name}.json").write_text(json.dumps(content | {"shapes": shapes} | more))


def shape(kind: str, points, label="scratch", **more) -> dict[str, object]:
    return {"label": label, "shape_type": kind, "points": points} | more


def painted() -> str:
    buffer = io.BytesIO()
    small = np.zeros((4, 6), bool)
    small[1:3, 1:5] = True
    Image.fromarray(small).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mask_of(made, name: str):
    (record,) = [r for r in read_dataset(made.list).records if r.image.name == name]
    return record.truth(SIZE).anomalous


def test_every_shape_of_labelme_marks_a_defect(tmp_path):
    labelme(tmp_path, "line", shape("linestrip", [[2, 2], [10, 2], [10, 8]]))
    labelme(tmp_path, "point", shape("point", [[5, 6]]))
    labelme(tmp_path, "painted", shape("mask", [[8, 4], [13, 7]], mask=painted()))
    labelme(tmp_path, "turned", shape("oriented_rectangle", [[8, 2], [14, 8], [8, 14], [2, 8]]))
    labelme(tmp_path, "strange", shape("spline", [[2, 2], [10, 2]]), shape("point", [[1, 1]]))
    labelme(tmp_path, "outside", shape("rectangle", [[100, 100], [120, 120]]))
    labelme(tmp_path, "good")
    made = convert(tmp_path, tmp_path / "out")
    assert listed(made) == {
        "line.png": ("anomalous", "scratch", True),
        "point.png": ("anomalous", "scratch", True),
        "painted.png": ("anomalous", "scratch", True),
        "turned.png": ("anomalous", "scratch", True),
        "strange.png": ("anomalous", "scratch", False),
        "outside.png": ("anomalous", "scratch", False),
        "good.png": ("normal", "", False),
    }
    assert (made.good, made.defective, made.thin, made.without_mask) == (1, 6, 2, 2)
    assert [text.partition(":")[0] for text in made.left_out] == ["outside.json", "strange.json"]
    assert mask_of(made, "line.png").sum() == 9 + 6
    assert np.argwhere(mask_of(made, "point.png")).tolist() == [[6, 5]]
    marked = np.zeros(SIZE[::-1], bool)
    marked[5:7, 9:13] = True
    assert np.array_equal(mask_of(made, "painted.png"), marked)


def test_flags_of_labelme_are_labels(tmp_path):
    labelme(tmp_path, "bad", flags={"defect": True, "good": False})
    labelme(tmp_path, "good", flags={"good": True, "defect": False})
    labelme(tmp_path, "none", flags={"good": False})
    labelme(tmp_path, "odd", flags={"scratch": True})
    labelme(tmp_path, "both", flags={"good": True, "bad": True})
    made = convert(tmp_path, tmp_path / "out")
    assert listed(made) == {
        "bad.png": ("anomalous", "defect", False),
        "good.png": ("normal", "", False),
        "none.png": ("normal", "", False),
    }
    assert {text.partition(":")[0] for text in made.left_out} == {"odd.json", "both.json"}


def test_labelme_without_a_size(tmp_path):
    labelme(tmp_path, "a", shape("rectangle", [[2, 2], [9, 9]]), imageWidth=None, imageHeight=None)
    made = convert(tmp_path, tmp_path / "out")
    assert mask_of(made, "a.png")[3:8, 3:8].all()


def coco(images, annotations, categories=("scratch", "good")) -> str:
    return json.dumps({
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(images)
        ],
        "annotations": [{"id": i} | item for i, item in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
    })  # fmt: skip


BOX = {"bbox": [4, 4, 6, 5], "category_id": 0}


@pytest.fixture
def two(tmp_path):
    pytest.importorskip("pycocotools")
    for name in ("a", "b"):
        picture(tmp_path / f"set/{name}.png")
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("item", "mask"),
    [
        (BOX, True),
        (BOX | {"image_id": "0"}, True),
        (BOX | {"segmentation": [[4, 4, 9, 4]]}, True),  # two points: its box stands beside
        (BOX | {"segmentation": {"size": [8, 8], "counts": [10, 54]}}, True),
        ({"category_id": 0, "segmentation": [[4, 4, 9, 4]]}, False),
        ({"category_id": 0, "segmentation": [], "bbox": []}, False),
        ({"category_id": 0, "bbox": [90, 90, 5, 5]}, False),
    ],
)
def test_no_annotation_of_coco_makes_a_good_image(two, tmp_path, item, mask):
    (two / "l.json").write_text(coco(["a.png", "b.png"], [{"image_id": 0} | item]))
    made = convert(two / "l.json", tmp_path / "out")
    assert listed(made) == {
        "a.png": ("anomalous", "scratch", mask),
        "b.png": ("normal", "", False),
    }
    doubtful = not mask or "segmentation" in item
    assert bool(made.left_out) == doubtful, "a box in place of segments is said, too"
    assert all(text.startswith("a.png: ") for text in made.left_out)


def test_classes_that_say_good_mark_nothing(two, tmp_path):
    items = [BOX | {"image_id": 0}, BOX | {"image_id": 1, "category_id": 1}]
    (two / "l.json").write_text(coco(["a.png", "b.png"], items))
    made = convert(two / "l.json", tmp_path / "out")
    assert listed(made)["b.png"] == ("normal", "", False)
    assert made.good_shapes == 1
    shown = CliRunner().invoke(app, ["data", "convert", str(two), "--out", str(tmp_path / "other")])
    assert "no defect by its name; they mark nothing: 1" in " ".join(shown.output.split())
    labelme(tmp_path / "labelme", "ok", shape("rectangle", [[1, 1], [20, 14]], label="No-Defect"))
    assert convert(tmp_path / "labelme", tmp_path / "third").good == 1


def test_annotations_of_unlisted_images_are_counted(two, tmp_path):
    items = [BOX | {"image_id": 0}, BOX | {"image_id": 77}]
    (two / "l.json").write_text(coco(["a.png", "a.png"], items))
    made = convert(two, tmp_path / "out")
    assert listed(made) == {
        "a.png": ("anomalous", "scratch", True)
    }  # listed twice, and once drawn on
    assert any("1 annotations of images that it does not list" in text for text in made.left_out)
    assert any(text.startswith("b.png: in no list") for text in made.left_out)


@pytest.mark.parametrize(
    ("place", "images"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT, Datumaro
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances.json", "images"),
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("result.json", "images"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_where_tools_put_the_images_of_coco(tmp_path, place, images, whole):
    pytest.importorskip("pycocotools")
    picture(tmp_path / "set" / images / "a.png")
    path = tmp_path / "set" / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(coco(["a.png"], [BOX | {"image_id": 0}]))
    made = convert(tmp_path / "set" if whole else path, tmp_path / "out")
    assert (made.defective, made.left_out) == (1, ())


def test_one_name_in_two_folders_of_voc(tmp_path):
    crack = "<object><name>crack</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for place, objects in (("train", crack), ("test", "")):
        picture(tmp_path / f"set/{place}/1.png")
        (tmp_path / f"set/{place}/1.xml").write_text(voc("1", objects))
    made = convert(tmp_path / "set", tmp_path / "out")
    labels = {r.image.parent.name: r.anomalous for r in read_dataset(made.list).records}
    assert labels == {"train": True, "test": False}


def test_an_xml_that_names_another_image_is_doubtful(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"set/{name}.png")
    (tmp_path / "set/a.xml").write_text(voc("b"))  # renamed by hand
    (tmp_path / "set/b.xml").write_text(voc("b"))
    made = convert(tmp_path / "set", tmp_path / "out")
    assert set(listed(made)) == {"b.png"}
    assert made.left_out[0] == "a.xml: fits a.png and b.png alike"


def test_an_object_of_voc_without_a_place_is_defective(tmp_path):
    picture(tmp_path / "set/a.png")
    turned = "<object><name>crack</name><robndbox><cx>5</cx></robndbox></object>"
    (tmp_path / "set/a.xml").write_text(voc("a", turned))
    made = convert(tmp_path / "set", tmp_path / "out")
    assert listed(made) == {"a.png": ("anomalous", "crack", False)}
    assert made.left_out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "names: [scratch, good]\n"),
        ("set/data.yaml", "names:\n  0: scratch\n  1: good\n"),
        ("set/labels/classes.txt", "scratch\ngood\n"),
        ("set/obj.names", "scratch\ngood\n"),
    ],
)
def test_classes_of_yolo(tmp_path, name, text):
    for n in range(2):
        picture(tmp_path / f"set/images/{n}.png")
        (tmp_path / "set/labels").mkdir(exist_ok=True)
        (tmp_path / f"set/labels/{n}.txt").write_text(f"{n} 0.5 0.5 0.4 0.4\n")
    (tmp_path / name).write_text(text)
    made = convert(tmp_path / "set", tmp_path / "out")
    assert listed(made) == {
        "0.png": ("anomalous", "scratch", True),
        "1.png": ("normal", "", False),
    }


def test_labels_of_yolo_without_an_image_or_with_two(tmp_path):
    for name in ("a.png", "a.bmp", "b.png"):
        picture(tmp_path / "set/images" / name)
    (tmp_path / "set/labels").mkdir()
    for name in "abc":
        (tmp_path / f"set/labels/{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    made = convert(tmp_path / "set", tmp_path / "out")
    assert set(listed(made)) == {"b.png"}
    assert made.left_out == (
        "labels/a.txt: fits images/a.bmp and images/a.png alike; give each its own",
        "labels/c.txt: its image is not there",
    )


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        ("annotations.xml", "<annotations><version>1.1</version></annotations>", "CVAT"),
        ("e.json", '[{"data": {"image": "a.png"}, "annotations": []}]', "Label Studio"),
        ("v.json", '{"a.png1": {"filename": "a.png", "regions": []}}', "VIA"),
        ("ds0/ann/a.png.json", '{"size": {}, "tags": [], "objects": []}', "Supervisely"),
    ],
)
def test_formats_of_other_tools_are_named_with_the_way_out(tmp_path, name, text, tool):
    picture(tmp_path / "set/ds0/img/a.png")
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (tmp_path / "set/meta.json").write_text('{"classes": []}')
    for source in (tmp_path / "set", path):
        with pytest.raises(DataError, match=f"{tool}'s own format.*as COCO"):
            convert(source, tmp_path / "out")
    with pytest.raises(DataError, match="mrad data convert"):
        read_dataset(tmp_path / "set")
