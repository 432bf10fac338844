"""No label is lost or flipped in silence: masks are no images, good is good, doubt is an error."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from mrad_indexer.cli.main import app
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.check import under_both_labels
from PIL import Image
from typer.testing import CliRunner

from mrad.errors import DataError
from tests.indexer.datasets.trees import SIZE, picture, visa


def photograph(path) -> None:
    """In colour and in JPEG, as a camera writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(3).integers(40, 220, (SIZE[1], SIZE[0], 3))
    Image.fromarray(levels.astype(np.uint8)).save(path)


def labels(root) -> dict[str, tuple[bool, str]]:
    """Source -> whether it is defective, and its mask."""
    return {
        r.source: (r.anomalous, r.mask.relative_to(root).as_posix() if r.mask else "")
        for r in read_dataset(root).records
    }


def test_masks_beside_good_images_are_no_good_images(tmp_path):
    for number in range(2):
        picture(tmp_path / f"good/{number}.png")
        picture(tmp_path / f"good/{number}_mask.png", mask=False)
    picture(tmp_path / "defect/7.png")
    picture(tmp_path / "defect/7_mask.png", mask=True)
    assert labels(tmp_path) == {
        "good/0.png": (False, ""),
        "good/1.png": (False, ""),
        "defect/7.png": (True, "defect/7_mask.png"),
    }
    assert not read_dataset(tmp_path).left_out


@pytest.mark.parametrize("place", ["good/0_mask.png", "masks/good/0.png"])
def test_a_good_image_whose_mask_marks_a_defect_is_refused(tmp_path, place):
    picture(tmp_path / "good/0.png")
    picture(tmp_path / "defect/7.png")
    picture(tmp_path / place, mask=True)
    with pytest.raises(DataError, match=r"good/0\.png: said to be good"):
        read_dataset(tmp_path)
    picture(tmp_path / place, mask=False)
    assert labels(tmp_path)["good/0.png"] == (False, "")


def test_a_list_that_marks_a_good_image_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "m.png", mask=True)
    (tmp_path / "l.csv").write_text("image,label,mask\na.png,good,m.png\n")
    with pytest.raises(DataError, match=r"l\.csv, line 2: said to be good"):
        read_dataset(tmp_path / "l.csv")
    picture(tmp_path / "m.png", mask=False)
    assert read_dataset(tmp_path / "l.csv").counts["normal"] == 1


def test_a_list_with_both_labels_for_an_image_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("image,label\na.png,good\na.png,bad\n")
    with pytest.raises(DataError, match=r"a\.png is named both as good and as defective"):
        read_dataset(tmp_path / "l.csv")


@pytest.mark.parametrize("name", ["labels", "gt", "annotations/scratch", "GroundTruth"])
def test_masks_in_a_folder_of_another_name_are_no_kind_of_defects(tmp_path, name):
    picture(tmp_path / "good/1.png")
    picture(tmp_path / "scratch/7.png")
    picture(tmp_path / name / "7.png", mask=True)
    assert labels(tmp_path) == {
        "good/1.png": (False, ""),
        "scratch/7.png": (True, f"{name}/7.png"),
    }


def test_a_folder_that_looks_like_masks_is_asked_about(tmp_path):
    picture(tmp_path / "good/1.png")
    picture(tmp_path / "scratch/7.png")
    picture(tmp_path / "painted/7.png", mask=True)
    with pytest.raises(DataError, match=r"painted holds pictures that look like masks"):
        read_dataset(tmp_path)
    picture(tmp_path / "painted/7.png")  # a kind of defects after all
    assert read_dataset(tmp_path).counts["anomalous"] == 2
    picture(tmp_path / "labels/7.png")  # defects of labels, not labels of defects
    assert read_dataset(tmp_path).counts["anomalous"] == 3


def test_black_and_white_products_have_black_and_white_defects(tmp_path):
    for place in ("good/1.png", "scratch/7.png"):
        picture(tmp_path / place, mask=True)
    assert read_dataset(tmp_path).counts["anomalous"] == 1


def test_masks_beside_the_defects_of_mvtecs_layout(tmp_path):
    for place in ("train/good/0.png", "test/good/0.png", "test/scratch/7.png"):
        picture(tmp_path / place)
    picture(tmp_path / "test/scratch/7_mask.png", mask=True)
    picture(tmp_path / "test/good/0_mask.png", mask=False)
    assert labels(tmp_path)["test/scratch/7.png"] == (True, "test/scratch/7_mask.png")
    assert read_dataset(tmp_path).counts == {
        "images": 3, "normal": 2, "anomalous": 1, "masks": 1, "unmasked": 0
    }  # fmt: skip


def test_masks_called_as_their_image_but_for_the_suffix(tmp_path):
    """As Real-IAD is distributed."""
    photograph(tmp_path / "audiojack/OK/S0001/audiojack_0001_OK_C1_2023.jpg")
    bad = tmp_path / "audiojack/NG/BX/S0003/audiojack_0003_NG_BX_C1_2023"
    photograph(bad.with_suffix(".jpg"))
    picture(bad.with_suffix(".png"), mask=True)
    assert [place for place, _ in labels(tmp_path).values()] == [False, True]
    (record,) = [r for r in read_dataset(tmp_path).records if r.anomalous]
    assert (record.image.suffix, record.mask.suffix, record.defect) == (".jpg", ".png", "BX")


def test_an_image_whose_mask_marks_nothing_is_good(tmp_path):
    for number in range(2):
        picture(tmp_path / f"images/{number}.png")
        picture(tmp_path / f"masks/{number}.png", mask=bool(number))
    assert labels(tmp_path) == {
        "images/0.png": (False, ""),
        "images/1.png": (True, "masks/1.png"),
    }
    picture(tmp_path / "images/2.png")
    with pytest.raises(DataError, match=r"1 of 3 images .* have no mask .*2\.png"):
        read_dataset(tmp_path)


def test_annotations_beside_images_are_named(tmp_path):
    picture(tmp_path / "good/1.png")
    picture(tmp_path / "defect/7.png")
    (tmp_path / "defect/7.json").write_text(json.dumps({"shapes": []}))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/7.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "defect/notes.txt").write_text("x")
    found = {item.path.name: item.why for item in read_dataset(tmp_path).left_out}
    assert set(found) == {"7.json", "7.txt"}
    assert "mrad data convert" in found["7.json"]


def test_a_list_as_spreadsheets_save_unicode(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "l.tsv").write_bytes("image\tlabel\na.png\tgood\n".encode("utf-16"))
    assert read_dataset(tmp_path / "l.tsv").counts["normal"] == 1


def test_one_picture_under_both_labels_is_found_whatever_it_is_called(tmp_path):
    for name in ("good/1.png", "good/2.png", "defect/7.png"):
        picture(tmp_path / name)
    assert under_both_labels(read_dataset(tmp_path).records) == []
    shutil.copy(tmp_path / "good/2.png", tmp_path / "defect/8.png")
    ((good, bad),) = under_both_labels(read_dataset(tmp_path).records)
    assert (good.source, bad.source) == ("good/2.png", "defect/8.png")
    # Of one size, and the same in the middle alone.
    for name, last in (("good/3.bmp", b"a"), ("defect/9.bmp", b"b")):
        (tmp_path / name).write_bytes(last + b"x" * 100_000)
    assert len(under_both_labels(read_dataset(tmp_path).records)) == 1


def test_a_build_says_that_its_memory_contradicts_itself(tmp_path):
    for name in ("good/1.png", "good/2.png", "defect/7.png"):
        picture(tmp_path / "set" / name)
    shutil.copy(tmp_path / "set/good/2.png", tmp_path / "set/defect/8.png")
    command = ["build", str(tmp_path / "set"), "--out", str(tmp_path / "bank")]
    shown = " ".join(CliRunner().invoke(app, command).output.split())
    assert "1 picture as good and as defective" in shown
    assert "good/2.png = defect/8.png" in shown


def test_labels_of_visa_are_words_that_are_known(tmp_path):
    visa(tmp_path)
    path = tmp_path / "split_csv/1cls.csv"
    text = path.read_text()
    path.write_text(text.replace(",normal,", ",Normal,"))  # all were defective, then
    assert read_dataset(tmp_path).counts["normal"] == 6
    path.write_text(text.replace(",normal,", ",fine,"))
    with pytest.raises(DataError, match=r"line 2: label 'fine' is neither"):
        read_dataset(tmp_path)
    path.write_text(text)
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(DataError, match=r"Masks/Anomaly/000\.png does not exist"):
        read_dataset(tmp_path)
