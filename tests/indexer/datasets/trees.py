"""Every set that the project names, as a miniature tree in its true layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

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
