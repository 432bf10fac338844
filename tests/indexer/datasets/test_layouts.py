"""Every set that the project names, as a miniature tree in its true layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.datasets import READERS, read_dataset
from PIL import Image

from mrad.errors import DataError

SIZE = (24, 16)


def picture(path: Path, *, mask: bool | None = None) -> None:
    """A small image; `mask`: a mask with (True) or without (False) a marked pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mask is None:
        rng = np.random.default_rng(abs(hash(path.as_posix())) % 2**32)
        Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0]), np.uint8)).save(path)
        return
    pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    pixels[4:12, 6:14] = 255 * mask
    Image.fromarray(pixels).save(path)


def mvtec_ad(root: Path) -> None:
    for name in ("bottle", "cable"):
        picture(root / name / "train/good/000.png")
        picture(root / name / "test/good/000.png")
        for kind in ("broken_large", "contamination"):
            picture(root / name / "test" / kind / "000.png")
            picture(root / name / "ground_truth" / kind / "000_mask.png", mask=True)
        (root / name / "readme.txt").write_text("x")
        (root / name / "license.txt").write_text("x")


def visa(root: Path) -> None:
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for i in range(3):
            good = f"{name}/Data/Images/Normal/{i:04}.JPG"
            picture(root / good)
            lines.append(f"{name},{'train' if i else 'test'},normal,{good},")
        bad, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        picture(root / bad)
        picture(root / mask, mask=True)
        lines.append(f"{name},test,anomaly,{bad},{mask}")
        (root / name / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    (root / "split_csv/2cls_fewshot.csv").write_text("object,split,label,image,mask\n")


def mpdd(root: Path) -> None:
    picture(root / "metal_plate/train/good/000.png")
    picture(root / "metal_plate/test/good/000.png")
    picture(root / "metal_plate/test/major_rust/000.png")
    picture(root / "metal_plate/ground_truth/major_rust/000_mask.png", mask=True)


def btad(root: Path) -> None:
    picture(root / "01/train/ok/0000.bmp")
    picture(root / "01/test/ok/0000.bmp")
    picture(root / "01/test/ko/0000.bmp")
    picture(root / "01/ground_truth/ko/0000.png", mask=True)
    picture(root / "03/train/ok/0001.bmp")
    picture(root / "03/test/ko/0001.bmp")
    picture(root / "03/test/ok/0002.bmp")
    picture(root / "03/ground_truth/ko/0001.bmp", mask=True)


def dtd_synthetic(root: Path) -> None:
    for name in ("Blotchy_099", "Fibrous_183"):
        picture(root / name / "train/good/000.png")
        picture(root / name / "test/good/000.png")
        picture(root / name / "test/bad/000.png")
        picture(root / name / "ground_truth/bad/000_mask.png", mask=True)


def dagm(root: Path) -> None:
    for name in ("Class1", "Class10", "Class2"):
        for split in ("Train", "Test"):
            picture(root / name / split / "0001.PNG")
            picture(root / name / split / "0576.PNG")
            picture(root / name / split / "Label/0576_label.PNG", mask=True)
            (root / name / split / "Label/Labels.txt").write_text("1\n")


def ksdd(root: Path) -> None:
    for part in ("kos01", "kos02"):
        for i in range(3):
            picture(root / part / f"Part{i}.jpg")
            picture(root / part / f"Part{i}_label.bmp", mask=i == 1)


def head_ct(root: Path) -> None:
    lines = ["id, hemorrhage"]
    for i in range(4):
        picture(root / "head_ct" / f"{i:03}.png")
        lines.append(f"{i}, {int(i < 2)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def brain_mri(root: Path) -> None:
    picture(root / "brain_tumor_dataset/yes/Y1.jpg")
    picture(root / "brain_tumor_dataset/yes/Y2.JPG")
    picture(root / "brain_tumor_dataset/no/1 no.jpeg")


def br35h(root: Path) -> None:
    picture(root / "yes/y0.jpg")
    picture(root / "no/no0.jpg")
    picture(root / "pred/pred0.jpg")


def clinic_db(root: Path) -> None:
    for i in (1, 2, 10):
        picture(root / "Original" / f"{i}.tif")
        picture(root / "Ground Truth" / f"{i}.tif", mask=True)


def clinic_db_both_formats(root: Path) -> None:
    for kind in ("PNG", "TIF"):
        picture(root / kind / "Original" / f"1.{kind.lower()}")
        picture(root / kind / "Ground Truth" / f"1.{kind.lower()}", mask=True)


def images_and_masks(suffix: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name in ("a1", "b2"):
            picture(root / "images" / f"{name}{suffix}")
            picture(root / "masks" / f"{name}{suffix}", mask=True)

    return make


def isic(root: Path) -> None:
    for i in range(2):
        picture(root / "ISBI2016_ISIC_Part1_Test_Data" / f"ISIC_000000{i}.jpg")
        mask = f"ISIC_000000{i}_Segmentation.png"
        picture(root / "ISBI2016_ISIC_Part1_Test_GroundTruth" / mask, mask=True)


def tn3k(root: Path) -> None:
    for split in ("test", "trainval"):
        picture(root / f"{split}-image/0000.jpg")
        picture(root / f"{split}-mask/0000.jpg", mask=True)
        (root / f"label4{split}.csv").write_text("0000.jpg,0\n")
    (root / "tn3k-trainval-fold0.json").write_text("{}")


def paper_meta(root: Path) -> None:
    picture(root / "candle/good.png")
    picture(root / "candle/bad.png")
    picture(root / "candle/mask.png", mask=True)
    item = {"cls_name": "candle", "specie_name": "melt", "mask_path": "candle/mask.png"}
    bad = {**item, "img_path": "candle/bad.png", "anomaly": 1}
    good = {**item, "img_path": "candle/good.png", "anomaly": 0, "mask_path": "", "specie_name": ""}
    (root / "meta.json").write_text(
        json.dumps({"train": {"candle": [good]}, "test": {"candle": [bad]}})
    )


def plain_folder(root: Path) -> None:
    picture(root / "good/1.png")
    picture(root / "good/2.png")
    picture(root / "defect/3.png")
    picture(root / "masks/3.png", mask=True)


def folder_of_kinds(root: Path) -> None:
    picture(root / "good/1.png")
    for kind in ("crack", "dent"):
        picture(root / "defect" / kind / "1.png")
        picture(root / "masks" / kind / "1.png", mask=True)


def folder_of_objects(root: Path) -> None:
    for name in ("cap", "ring"):
        picture(root / name / "ok/1.png")
        picture(root / name / "ng/2.png")


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
    assert record.sample().mask.sum() == 64


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
