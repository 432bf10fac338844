"""Datasets as they lie on disk -> records. One small module for each family of layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets import dagm, folder, ksdd, manifest, medical, mvtec, visa
from mrad_indexer.datasets.records import Dataset, Record


@dataclass(frozen=True)
class Reader:
    """How one layout is recognised and read."""

    name: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], Dataset]
    about: str


# In the order they are tried: what says most about itself comes first.
READERS: tuple[Reader, ...] = (
    Reader("csv", manifest.detect_csv, manifest.read_csv, "image,label[,mask,object,defect,split]"),
    Reader(
        "jsonl", manifest.detect_jsonl, manifest.read_jsonl, "the same fields, one object a line"
    ),
    Reader("meta", manifest.detect_meta, manifest.read_meta, "meta.json of the paper's code"),
    Reader("visa", visa.detect, visa.read, "VisA, by split_csv/1cls.csv"),
    Reader("head_ct", medical.detect_head_ct, medical.read_head_ct, "HeadCT: labels.csv, head_ct/"),
    Reader("mvtec", mvtec.detect, mvtec.read, "MVTec AD, MPDD, BTAD, DTD-Synthetic"),
    Reader("dagm", dagm.detect, dagm.read, "DAGM 2007: Class1/Train/Label"),
    Reader("ksdd", ksdd.detect, ksdd.read, "KSDD: kos01/Part0.jpg, Part0_label.bmp"),
    Reader("yes_no", medical.detect_yes_no, medical.read_yes_no, "BrainMRI, Br35H: yes/, no/"),
    Reader("folder", folder.detect, folder.read, "good/, defect/[<kind>/], masks/"),
    Reader(
        "segmentation",
        medical.detect_segmentation,
        medical.read_segmentation,
        "CVC-ClinicDB, CVC-ColonDB, Kvasir, Endo, ISIC, TN3K: images and masks",
    ),
)


def read_dataset(path: Path | str, *, layout: str = "auto", split: str | None = None) -> Dataset:
    """Read a dataset's folder or list.

    `layout`: a reader's name, or `auto` for the first that recognises it. `split`: only `train` or
    only `test`. Raises `DataError` when nothing recognises `path` or it holds no image.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    dataset = _reader(path, layout).read(path)
    return dataset if split is None else dataset.select(split=split)


def _reader(path: Path, layout: str) -> Reader:
    if layout == "auto":
        for reader in READERS:
            if reader.detect(path):
                return reader
        known = "; ".join(f"{reader.name} ({reader.about})" for reader in READERS)
        raise DataError(f"{path} has no layout that is known here: {known}")
    for reader in READERS:
        if reader.name == layout:
            if not reader.detect(path):
                raise DataError(f"{path} is not laid out as {layout}: {reader.about}")
            return reader
    raise DataError(f"layout {layout!r} is unknown; choose auto or {[r.name for r in READERS]}")


__all__ = ["READERS", "Dataset", "Reader", "Record", "read_dataset"]
