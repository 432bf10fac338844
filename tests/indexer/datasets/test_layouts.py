"""Every set that the project names is read as it lies."""

from __future__ import annotations

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
    picture(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"mvtec.*folder"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="unknown"):
        read_dataset(tmp_path, layout="magic")
    with pytest.raises(DataError, match="not laid out as visa"):
        read_dataset(tmp_path, layout="visa")
    (tmp_path / "empty/good").mkdir(parents=True)
    with pytest.raises(DataError, match="no image"):
        read_dataset(tmp_path / "empty")


def test_every_reader_is_tested_here():
    listed = {row[2] for row in SETS} | {"csv", "jsonl"}  # those in test_manifests.py
    assert listed == {reader.name for reader in READERS}
