"""CSV and JSONL lists, and what is said about bad ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mrad_indexer.datasets import read_dataset
from PIL import Image

from mrad.errors import DataError


@pytest.fixture
def images(tmp_path):
    for name in ("a.png", "b.png", "m.png"):
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / name)
    return tmp_path


def test_csv_with_every_column(images):
    (images / "list.csv").write_text(
        "image,label,mask,object,defect,split\na.png,0,,cap,,train\nb.png,1,m.png,cap,dent,test\n"
    )
    good, bad = read_dataset(images / "list.csv").records
    assert (good.anomalous, good.mask, good.object_name, good.split) == (
        False,
        None,
        "cap",
        "train",
    )
    assert (bad.anomalous, bad.mask, bad.defect) == (True, images / "m.png", "dent")
    assert bad.read_mask((8, 8)).all()
    assert not good.read_mask((8, 8)).any()


def test_csv_as_spreadsheets_write_it(images):
    (images / "list.csv").write_bytes("\ufeffimage,label\r\na.png,Good\r\nb.png,NG\r\n".encode())
    assert [r.anomalous for r in read_dataset(images / "list.csv").records] == [False, True]
    (images / "list.tsv").write_text("image\tlabel\na.png\tok\n")
    assert len(read_dataset(images / "list.tsv")) == 1


def test_jsonl(images):
    lines = [{"image": "a.png", "label": False}, {"image": "b.png", "label": 1, "mask": "m.png"}]
    (images / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    dataset = read_dataset(images / "list.jsonl")
    assert dataset.name == "jsonl"
    assert [r.anomalous for r in dataset.records] == [False, True]
    assert dataset.records[1].defect == "defect"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "picture,label\na.png,0\n", r"lacks the columns \['image'\]"),
        ("l.csv", "image,label\na.png,maybe\n", "line 2: label 'maybe'"),
        ("l.csv", "image,label\nx.png,0\n", "line 2: .*x.png does not exist"),
        ("l.csv", "image,label,mask\nb.png,1,x.png\n", "x.png does not exist"),
        ("l.csv", "image,label\n,0\n", "line 2 names no image"),
        ("l.csv", "image,label\n", "no image"),
        ("l.jsonl", "{\n", "line 1 is not JSON"),
        ("l.jsonl", "[]\n", "line 1 is not a JSON object"),
        ("meta.json", "[]", "not a meta.json"),
        ("meta.json", '{"test": {"x": [{"img_path": "a.png"}]}}', "lacks .*anomaly"),
    ],
)
def test_bad_lists_name_the_line(images, name, text, said):
    (images / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_dataset(images / name)
