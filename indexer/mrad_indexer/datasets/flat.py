"""A folder of photographs and nothing else: good parts, as people have them on the first day.

It has no folders with pictures and no labels: no list, no masks or annotations beside the pictures.
"""

from __future__ import annotations

import re
from pathlib import Path

from mrad.errors import DataError
from mrad_indexer.datasets.folder import BAD_NAMES
from mrad_indexer.datasets.pairing import apart
from mrad_indexer.datasets.records import (
    GOOD_NAMES,
    Dataset,
    Record,
    folders_in,
    images_below,
    images_in,
    require,
)

NAME = "flat"
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
"""May say which picture shows what."""
NOTES = (".txt", ".xml")
"""Say it where they are called as a picture."""
SHOWN = 3


def detect(root: Path) -> bool:
    """Pictures here, none below, and nothing that may label them."""
    pictures = images_in(root)
    if not pictures or any(images_below(folder) for folder in folders_in(root)):
        return False
    stems = {picture.stem.lower() for picture in pictures}
    for file in root.iterdir():
        kind = file.suffix.lower()
        if kind in LISTS or (kind in NOTES and file.stem.lower() in stems):
            return False
    return not apart(pictures)[1]


def read(root: Path) -> Dataset:
    """Every picture, as a good part of the product that the folder, or the one around `good/`, names."""
    whole = root.resolve()
    product = whole.parent.name if whole.name.lower() in GOOD_NAMES else whole.name
    found = [Record(p, False, None, p.name, product) for p in images_in(root)]
    return require(NAME, root, found)


def check_names(dataset: Dataset) -> None:
    """Raise `DataError` where names speak of defects: nobody may take those for good in silence."""
    odd = [r.source for r in dataset.records if _words(r.image) & set(BAD_NAMES)]
    if odd:
        raise DataError(
            f"{dataset.root} has no folders, so its pictures would all be taken as good parts, but "
            f"{len(odd)} of {len(dataset)} are called as defects ({', '.join(odd[:SHOWN])}): put them "
            "into good/ and defect/, or, where all are good, say --layout flat"
        )


def _words(path: Path) -> set[str]:
    return set(re.findall(r"[a-z]+", path.stem.lower()))
