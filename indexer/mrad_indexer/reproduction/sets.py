"""The paper's sixteen sets: what each is called on disk, and which memory judges it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets import Dataset, read_dataset
from mrad_indexer.datasets.records import folders_in
from mrad_indexer.loading import choose

INDUSTRIAL, MEDICAL = "industrial", "medical"


@dataclass(frozen=True)
class PaperSet:
    """One set of the paper."""

    key: str
    """For files and `--set`."""
    name: str
    domain: str
    folders: tuple[str, ...]
    """Names of its folder as people keep it: letters and digits, lower case."""
    memory: str = "visa"
    """The set whose images fill the memory that judges it: never its own."""
    note: str = ""


SETS: tuple[PaperSet, ...] = (
    PaperSet("mvtec", "MVTec AD", INDUSTRIAL, ("mvtec", "mvtecad", "mvtecanomalydetection")),
    PaperSet("visa", "VisA", INDUSTRIAL, ("visa", "visa20220922"), memory="mvtec"),
    PaperSet("mpdd", "MPDD", INDUSTRIAL, ("mpdd",)),
    PaperSet("btad", "BTAD", INDUSTRIAL, ("btad", "btechdatasettransformed")),
    PaperSet("dtd", "DTD-Synthetic", INDUSTRIAL, ("dtd", "dtdsynthetic")),
    PaperSet("dagm", "DAGM", INDUSTRIAL, ("dagm", "dagm2007", "dagmkaggleupload")),
    PaperSet(
        "ksdd", "KSDD", INDUSTRIAL, ("ksdd", "kolektorsdd", "sdd"),
        note="all images in the set's own layout; the paper's code reads a re-arranged copy of it",
    ),
    PaperSet(
        "head_ct", "HeadCT", MEDICAL, ("headct", "headcthemorrhage", "headctanomalydetection")
    ),
    PaperSet(
        "brain_mri", "BrainMRI", MEDICAL,
        ("brainmri", "braintumordataset", "brainmriimagesforbraintumordetection"),
    ),
    PaperSet("br35h", "Br35H", MEDICAL, ("br35h", "br35", "braintumordetection")),
    PaperSet("clinic_db", "CVC-ClinicDB", MEDICAL, ("clinicdb", "cvcclinicdb")),
    PaperSet("colon_db", "CVC-ColonDB", MEDICAL, ("colondb", "cvccolondb")),
    PaperSet("kvasir", "Kvasir", MEDICAL, ("kvasir", "kvasirseg")),
    PaperSet(
        "endo", "Endo", MEDICAL,
        ("endo", "endotect", "endotect2020", "endotect2020segmentationtestdataset"),
    ),
    PaperSet("isic", "ISIC", MEDICAL, ("isic", "isic2016", "isbi", "isbi2016")),
    PaperSet("tn3k", "TN3K", MEDICAL, ("tn3k",)),
)  # fmt: skip
BY_KEY = {item.key: item for item in SETS}


@dataclass(frozen=True)
class Found:
    """A set on disk: what is evaluated, and what would fill a memory."""

    set: PaperSet
    dataset: Dataset


def find(root: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """The sets below `root`, and for each other one why it is missing.

    A test split is taken where there is one, else every image. Raises `DataError` when `root` is no
    folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; it should hold the paper's sets, a folder each")
    folders = {re.sub(r"[^a-z0-9]", "", path.name.lower()): path for path in folders_in(root)}
    found: dict[str, Found] = {}
    missing: dict[str, str] = {}
    for item in SETS:
        folder = next((folders[name] for name in item.folders if name in folders), None)
        if folder is None:
            missing[item.key] = f"no folder {' or '.join(item.folders)} in {root}"
            continue
        try:
            found[item.key] = Found(item, choose(read_dataset(folder)))
        except DataError as error:
            missing[item.key] = str(error)
    return found, missing
