"""Every set that the project names is read as it lies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mrad_indexer.datasets import READERS, read_dataset
from PIL import Image

from mrad.errors import DataError
from tests.indexer.datasets.trees import (
    SIZE,
    br35h,
    brain_mri,
    btad,
    clinic_db,
    clinic_db_both_formats,
    dagm,
    dtd_synthetic,
    folder_of_kinds,
    folder_of_objects,
    head_ct,
    images_and_masks,
    isic,
    ksdd,
    mpdd,
    mvtec_ad,
    paper_meta,
    picture,
    plain_folder,
    tn3k,
    visa,
)

# name, tree, reader, normal, anomalous, masks, objects
SETS = [
    ("MVTec AD", mvtec_ad, "mvtec", 4, 4, 4, ["bottle", "cable"]),
    ("VisA", visa, "visa", 6, 2, 2, ["candle", "pcb1"]),
    ("MPDD", mpdd, "mvtec", 2, 1, 1, ["metal_plate"]),
    ("BTAD", btad, "mvtec", 4, 2, 2, ["01", "03"]),
    ("DTD-Synthetic", dtd_synthetic, "mvtec", 4, 2, 2, ["Blotchy_099", "Fibrous_183"]),
    ("DAGM", dagm, "dagm", 6, 6, 6, ["Class1", "Class2", "Class10"]),
    ("KSDD", ksdd, "ksdd", 4, 2, 2, ["commutator"]),
    ("HeadCT", head_ct, "head_ct", 2, 2, 0, ["head"]),
    ("BrainMRI", brain_mri, "yes_no", 1, 2, 0, ["brain"]),
    ("Br35H", br35h, "yes_no", 1, 1, 0, ["brain"]),
    ("CVC-ClinicDB", clinic_db, "segmentation", 0, 3, 3, None),
    ("CVC-ClinicDB, PNG and TIF", clinic_db_both_formats, "segmentation", 0, 1, 1, None),
    ("CVC-ColonDB", images_and_masks(".png"), "segmentation", 0, 2, 2, None),
    ("Kvasir", images_and_masks(".jpg"), "segmentation", 0, 2, 2, None),
    ("Endo", images_and_masks(".jpg"), "segmentation", 0, 2, 2, None),
    ("ISIC", isic, "segmentation", 0, 2, 2, None),
    ("TN3K", tn3k, "segmentation", 0, 2, 2, None),
    ("the paper's meta.json", paper_meta, "meta", 1, 1, 1, ["candle"]),
    ("folder", plain_folder, "folder", 2, 1, 1, None),
    ("folder of kinds", folder_of_kinds, "folder", 1, 2, 2, None),
    ("folder of objects", folder_of_objects, "folder", 2, 2, 0, ["cap", "ring"]),
]


@pytest.mark.parametrize(
    ("make", "reader", "normal", "anomalous", "masks", "objects"),
    [pytest.param(*row[1:], id=row[0]) for row in SETS],
)
def test_true_layout(tmp_path, make, reader, normal, anomalous, masks, objects):
    make(tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.name == reader
    counts = dataset.counts
    assert (counts["normal"], counts["anomalous"], counts["masks"]) == (normal, anomalous, masks)
    if objects is not None:
        assert list(dataset.objects) == objects
    assert len({record.source for record in dataset.records}) == len(dataset)
    for record in dataset.records:
        assert record.image.is_file()
        assert (tmp_path / record.source) == record.image
        assert bool(record.defect) == record.anomalous
        mask = record.read_mask(SIZE)
        if record.mask is not None:
            assert mask.sum() == pytest.approx(64, abs=12)  # lossy masks keep their area
    read_dataset(tmp_path, layout=reader)


def test_each_mask_belongs_to_its_image(tmp_path):
    mvtec_ad(tmp_path)
    for record in read_dataset(tmp_path).records:
        if record.anomalous:
            assert record.defect == record.image.parent.name == record.mask.parent.name
            assert record.object_name == record.mask.parents[2].name


def test_splits(tmp_path):
    mvtec_ad(tmp_path)
    test = read_dataset(tmp_path, split="test")
    assert {record.split for record in test.records} == {"test"}
    assert (test.counts["normal"], test.counts["anomalous"]) == (2, 4)
    assert read_dataset(tmp_path, split="train").counts["anomalous"] == 0
    with pytest.raises(DataError, match="validation"):
        read_dataset(tmp_path, split="validation")


def test_one_object_alone_is_a_dataset_too(tmp_path):
    mvtec_ad(tmp_path)
    assert read_dataset(tmp_path / "bottle").objects == ("bottle",)
    dagm(tmp_path / "dagm")
    assert read_dataset(tmp_path / "dagm/Class1").counts["anomalous"] == 2


def test_masks_that_mirror_the_whole_defect_folder(tmp_path):
    picture(tmp_path / "good/1.png")
    picture(tmp_path / "defect/crack/1.png")
    picture(tmp_path / "masks/defect/crack/1_mask.png", mask=True)
    assert read_dataset(tmp_path).counts["masks"] == 1


def test_same_name_in_two_kinds_gets_its_own_mask_or_none(tmp_path):
    folder_of_kinds(tmp_path)
    (tmp_path / "masks/dent/1.png").unlink()
    masks = {r.defect: r.mask for r in read_dataset(tmp_path).records if r.anomalous}
    assert masks["crack"].parent.name == "crack"
    assert masks["dent"] is None


def test_leftovers_of_operating_systems_are_no_images(tmp_path):
    plain_folder(tmp_path)
    (tmp_path / "good/._1.png").write_bytes(b"x")
    (tmp_path / "good/Thumbs.db").write_bytes(b"x")
    (tmp_path / "good/notes.txt").write_text("x")
    assert read_dataset(tmp_path).counts["normal"] == 2


def test_ringing_of_lossy_masks_is_not_a_defect(tmp_path):
    images_and_masks(".jpg")(tmp_path)
    record = read_dataset(tmp_path).records[0]
    raw = np.asarray(Image.open(record.mask))
    assert (raw > 0).sum() > 64 or record.read_mask(SIZE).sum() == 64
    assert record.read_mask(SIZE).sum() == 64
    assert record.sample().mask == record.mask


def test_unknown_things_are_refused_with_what_is_known(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    picture(tmp_path / "odd" / "1.png")
    with pytest.raises(DataError, match=r"nearest are: .*mvtec.*folder"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="unknown"):
        read_dataset(tmp_path, layout="magic")
    with pytest.raises(DataError, match="not laid out as visa"):
        read_dataset(tmp_path, layout="visa")
    (tmp_path / "empty/good").mkdir(parents=True)
    with pytest.raises(DataError, match="no image"):
        read_dataset(tmp_path / "empty")


def test_every_reader_is_tested_here():
    listed = {row[2] for row in SETS} | {
        "csv",
        "jsonl",
        "ksdd2",
        "flat",
    }  # test_manifests.py, and below
    assert listed == {reader.name for reader in READERS}


def counts_of(root) -> tuple[str, int, int, int]:
    dataset = read_dataset(root)
    counts = dataset.counts
    return dataset.name, counts["normal"], counts["anomalous"], counts["masks"]


def test_kinds_beside_good_are_defects(tmp_path):
    for place in ("good/1.png", "good/2.png", "scratch/1.png", "dent/1.png"):
        picture(tmp_path / place)
    picture(tmp_path / "masks/scratch/1.png", mask=True)
    assert counts_of(tmp_path) == ("folder", 2, 2, 1)
    assert {r.defect for r in read_dataset(tmp_path).records if r.anomalous} == {"scratch", "dent"}


def test_zero_is_good_and_one_is_not(tmp_path):
    for place in ("train/0/1.png", "test/0/1.png", "test/0/2.png", "test/1/1.png"):
        picture(tmp_path / place)
    assert counts_of(tmp_path) == ("mvtec", 3, 1, 0)
    (tmp_path / "test/1").rename(tmp_path / "test/2")
    with pytest.raises(DataError, match=r"no folder of good images|no layout"):
        read_dataset(tmp_path)


def test_loco_and_ad_2(tmp_path):
    loco = tmp_path / "loco/box"
    for place in ("train/good/000.png", "validation/good/000.png", "test/good/000.png"):
        picture(loco / place)
    picture(loco / "test/logical_anomalies/000.png")
    for part in ("000.png", "001.png"):
        picture(loco / "ground_truth/logical_anomalies/000" / part, mask=True)
    dataset = read_dataset(tmp_path / "loco")
    assert counts_of(tmp_path / "loco") == ("mvtec", 3, 1, 1)
    assert {record.split for record in dataset.records} == {"train", "validation", "test"}
    (bad,) = [record for record in dataset.records if record.anomalous]
    assert bad.read_mask(SIZE).sum() == 64
    assert not dataset.left_out

    second = tmp_path / "ad2/can"
    for place in ("train/good/0.png", "validation/good/0.png", "test_public/good/0.png"):
        picture(second / place)
    picture(second / "test_public/bad/0.png")
    picture(second / "test_public/ground_truth/bad/0_mask.png", mask=True)
    picture(second / "test_private/7.png")
    assert counts_of(tmp_path / "ad2") == ("mvtec", 3, 1, 1)
    assert [item.path.name for item in read_dataset(tmp_path / "ad2").left_out] == ["7.png"]


def test_ksdd2_isic_and_meta_by_product(tmp_path):
    for split, bad in (("train", False), ("test", True)):
        picture(tmp_path / "ksdd2" / split / "10.png")
        picture(tmp_path / "ksdd2" / split / "10_GT.png", mask=bad)
    assert counts_of(tmp_path / "ksdd2") == ("ksdd2", 1, 1, 1)
    isic(tmp_path / "isic")
    folder = next((tmp_path / "isic").glob("*Data*"), None) or next(
        (tmp_path / "isic").glob("*Input*")
    )
    before = len(read_dataset(tmp_path / "isic"))
    picture(folder / "ISIC_0_superpixels.png")
    assert len(read_dataset(tmp_path / "isic")) == before
    paper_meta(tmp_path / "meta")
    path = tmp_path / "meta/meta.json"
    content = json.loads(path.read_text())
    swapped: dict = {}
    for split, objects in content.items():
        for name, items in objects.items():
            swapped.setdefault(name, {})[split] = items
    wanted = read_dataset(tmp_path / "meta").records
    path.write_text(json.dumps(swapped))
    found = read_dataset(tmp_path / "meta").records
    assert {(r.source, r.split, r.object_name) for r in found} == {
        (r.source, r.split, r.object_name) for r in wanted
    }


def test_tables_as_spreadsheets_write_them(tmp_path):
    for name in ("Prüfung.png", "b.png"):
        picture(tmp_path / name)
    table = "Image;Label;Defect\nPrüfung.png;1;Kratzer\nb.png;0;\n"
    (tmp_path / "list.csv").write_bytes(table.encode("cp1252"))
    assert counts_of(tmp_path / "list.csv")[1:3] == (1, 1)


def test_an_unknown_layout_names_the_three_nearest(tmp_path):
    for place in ("training/good_parts/1.png", "testing/good_parts/1.png", "ground-truth/x/1.png"):
        picture(tmp_path / place)
    with pytest.raises(DataError, match=r"ground-truth, testing, training.*nearest are: .*mvtec"):
        read_dataset(tmp_path)


def test_a_flat_folder_of_photographs_is_all_good_parts(tmp_path):
    for name in ("1.png", "b.JPG", "good_3.bmp"):
        picture(tmp_path / "parts" / name)
    (tmp_path / "parts" / "notes.txt").write_text("of last week")
    (tmp_path / "parts" / "empty").mkdir()
    dataset = read_dataset(tmp_path / "parts")
    assert dataset.name == "flat"
    assert [r.source for r in dataset.records] == ["1.png", "b.JPG", "good_3.bmp"]
    assert not any(r.anomalous for r in dataset.records)
    assert dataset.objects == ("parts",)


@pytest.mark.parametrize(
    "beside", ["labels.csv", "a.json", "a.xml", "a.txt", "a_mask.png", "x/b.png"]
)
def test_a_folder_with_labels_or_more_folders_is_not_taken_for_good_parts(tmp_path, beside):
    picture(tmp_path / "a.png")
    if beside.endswith(".png"):
        picture(tmp_path / beside)
    else:
        (tmp_path / beside).write_text("{}")
    with pytest.raises(DataError, match="no layout"):
        read_dataset(tmp_path)


def test_names_of_defects_in_a_flat_folder_are_asked_about(tmp_path):
    for name in ("ok_1.png", "ng_2.png", "engine.png"):
        picture(tmp_path / name)
    with pytest.raises(
        DataError, match=r"1 of 3 are called as defects \(ng_2.png\).*--layout flat"
    ):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path, layout="flat")) == 3
