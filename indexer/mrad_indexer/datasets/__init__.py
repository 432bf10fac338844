"""Datasets as they lie on disk -> records. One small module for each family of layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from mrad.errors import DataError
from mrad.images.masks import Orientation
from mrad_indexer.datasets import dagm, flat, folder, ksdd, manifest, medical, mvtec, visa
from mrad_indexer.datasets.records import Dataset, Record, folders_in
from mrad_indexer.datasets.walk import ANNOTATIONS, left_out, walk


@dataclass(frozen=True)
class Reader:
    """How one layout is recognised and read."""

    name: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Dataset]
    about: str
    signs: tuple[str, ...] = ()
    """Names of its folders and lists, to say which layouts are near."""


# In the order they are tried: what says most about itself comes first.
READERS: tuple[Reader, ...] = (
    Reader(
        "csv",
        manifest.detect_csv,
        manifest.read_csv,
        "a file image,label[,mask,object,defect,split]",
    ),
    Reader(
        "jsonl", manifest.detect_jsonl, manifest.read_jsonl, "the same fields, one object a line"
    ),
    Reader(
        "meta",
        manifest.detect_meta,
        manifest.read_meta,
        "meta.json of the paper's code",
        ("meta.json",),
    ),
    Reader(
        "visa",
        visa.detect,
        visa.read,
        "VisA, by split_csv/1cls.csv",
        ("split_csv", "data", "images", "normal", "anomaly"),
    ),
    Reader(
        "head_ct",
        medical.detect_head_ct,
        medical.read_head_ct,
        "HeadCT: labels.csv, head_ct/",
        ("labels.csv", "head_ct"),
    ),
    Reader(
        "mvtec",
        mvtec.detect,
        mvtec.read,
        "MVTec AD, LOCO and AD 2, MPDD, BTAD, DTD-Synthetic: train/good, test/<kind>, ground_truth/<kind>",
        ("train", "test", "ground_truth", "good"),
    ),
    Reader(
        "dagm",
        dagm.detect,
        dagm.read,
        "DAGM 2007: Class1/Train/Label",
        ("class1", "train", "test", "label"),
    ),
    Reader(
        "ksdd",
        ksdd.detect,
        ksdd.read,
        "KSDD: kos01/Part0.jpg, Part0_label.bmp",
        ("kos01",),
    ),
    Reader(
        "ksdd2",
        ksdd.detect_2,
        ksdd.read_2,
        "KSDD2: train/10000.png, train/10000_GT.png",
        ("train", "test"),
    ),
    Reader(
        "yes_no",
        medical.detect_yes_no,
        medical.read_yes_no,
        "BrainMRI, Br35H: yes/, no/",
        ("yes", "no"),
    ),
    Reader(
        "folder",
        folder.detect,
        folder.read,
        "good/ with defect/[<kind>/], or with a folder for each kind; masks/",
        ("good", "defect", "masks"),
    ),
    Reader(
        "segmentation",
        medical.detect_segmentation,
        medical.read_segmentation,
        "CVC-ClinicDB, CVC-ColonDB, Kvasir, Endo, ISIC, TN3K: images/ and masks/",
        ("images", "masks"),
    ),
    Reader(
        flat.NAME,
        flat.detect,
        flat.read,
        "photographs in one folder and nothing else: all are good parts",
    ),
)
NEAREST = 3
LOOKED_AT = 2_000
"""Names in a folder that are compared with those of known layouts."""


def read_dataset(
    path: Path | str,
    *,
    layout: str = "auto",
    split: str | None = None,
    mask_orientation: Orientation = "auto",
) -> Dataset:
    """Read a dataset's folder or list.

    Args:
        layout: a reader's name, or `auto` for the first that recognises `path`.
        split: only this one.
        mask_orientation: how masks lie on images with an orientation tag.

    Raises `DataError` when nothing recognises `path`, when it holds no image, or when it cannot be
    told which mask belongs to which image.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    dataset = _reader(path, layout).read(path)
    _require_one_label(dataset)
    if layout == "auto" and dataset.name == flat.NAME:
        flat.check_names(dataset)
    if mask_orientation != "auto":
        turned = (replace(r, mask_orientation=mask_orientation) for r in dataset.records)
        dataset = replace(dataset, records=tuple(turned))
    if path.is_dir():
        taken = {r.image for r in dataset.records} | {r.mask for r in dataset.records if r.mask}
        dataset = replace(dataset, left_out=left_out(path, taken | dataset.used))
    return dataset if split is None else dataset.select(split=split)


def _require_one_label(dataset: Dataset) -> None:
    """Raises `DataError` where a list names an image as good and as defective."""
    labels: dict[Path, bool] = {}
    for record in dataset.records:
        if labels.setdefault(record.image, record.anomalous) != record.anomalous:
            raise DataError(
                f"{record.source} is named both as good and as defective in {dataset.root}: keep one"
            )


def _reader(path: Path, layout: str) -> Reader:
    if layout == "auto":
        for reader in READERS:
            if reader.detect(path):
                return reader
        raise DataError(_unknown(path))
    for reader in READERS:
        if reader.name == layout:
            if not reader.detect(path):
                raise DataError(f"{path} is not laid out as {layout}: {reader.about}")
            return reader
    raise DataError(f"layout {layout!r} is unknown; choose auto or {[r.name for r in READERS]}")


def _unknown(path: Path) -> str:
    """What lies there, and the layouts that are nearest to it."""
    names = {part.lower() for part in islice(_names(path), LOOKED_AT)}

    def likeness(reader: Reader) -> float:
        if not reader.signs or not names:
            return 0.1 * (reader.name in ("folder", "mvtec", "csv"))
        best = (max(SequenceMatcher(None, sign, n).ratio() for n in names) for sign in reader.signs)
        return sum(best) / len(reader.signs)

    near = sorted(READERS, key=likeness, reverse=True)[:NEAREST]
    nearest = "; ".join(f"{reader.name} ({reader.about})" for reader in near)
    here = sorted(child.name for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    holds = f"its folders are {', '.join(here[:8])}" if here else "it has no folders"
    return (
        f"{path} has no layout that is known here: {holds}. {_annotated(path)}The nearest are: {nearest}. Name "
        "folders so, or give a .csv with the columns image,label (mrad data layouts lists all)"
    )


def _annotated(path: Path) -> str:
    """The way out where annotations seem to lie there."""
    files = islice(walk(path), LOOKED_AT) if path.is_dir() else [path]
    if not any(file.suffix.lower() in ANNOTATIONS for file in files):
        return ""
    return "If its labels are annotations of labelme, COCO, VOC or YOLO, mrad data convert reads them. "


def _names(path: Path) -> Iterator[str]:
    for place in (path, *folders_in(path)):
        for child in sorted(place.iterdir()) if place.is_dir() else ():
            if child.is_dir() or child.suffix.lower() in (".csv", ".json"):
                yield child.name
        for below in folders_in(place)[:50]:
            yield from (child.name for child in folders_in(below))


__all__ = ["READERS", "Dataset", "Reader", "Record", "read_dataset"]
