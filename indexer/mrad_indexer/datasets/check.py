"""Opens every image and mask of a dataset and says what is missing, broken or odd."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from mrad.errors import ImageError, MaskError
from mrad.images.preprocess import load_image
from mrad_indexer.datasets.records import Dataset, Record

ODD_ASPECT = 3.0
TINY = 64


@dataclass
class Findings:
    """`problems`: what is wrong -> sources of the images concerned."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def check(dataset: Dataset) -> Findings:
    """Read everything once. Memory: one image."""
    findings, seen = Findings(), dict[str, Record]()
    for record in dataset.records:
        _check_record(record, findings)
        _check_twice(record, seen, findings)
    if not dataset.counts["normal"]:
        findings.problems["dataset without good images: only pixels can be evaluated"] = [
            str(dataset.root)
        ]
    if not dataset.counts["anomalous"]:
        findings.problems["dataset without defective images: nothing can be evaluated"] = [
            str(dataset.root)
        ]
    findings.problems = dict(findings.problems)
    return findings


def _check_record(record: Record, findings: Findings) -> None:
    problems = findings.problems
    try:
        size = load_image(record.image).size
    except ImageError as error:
        problems["unreadable images"].append(f"{record.source}: {error}")
        return
    findings.sizes[size] += 1
    width, height = size
    if max(width / height, height / width) > ODD_ASPECT:
        problems[f"images longer than {ODD_ASPECT:.0f} : 1 (they are squeezed to a square)"].append(
            f"{record.source}: {width} x {height}"
        )
    if min(size) < TINY:
        problems[f"images smaller than {TINY} px"].append(f"{record.source}: {width} x {height}")
    if not record.anomalous:
        return
    try:
        mask = record.read_mask(size)
    except MaskError as error:
        problems["unusable masks"].append(f"{record.source}: {error}")
        return
    if mask is None:
        problems["defective images without a mask"].append(record.source)
    elif not mask.any():
        problems["defective images whose mask marks no pixel"].append(record.source)
    elif mask.all():
        problems["masks that mark every pixel"].append(record.source)


def _check_twice(record: Record, seen: dict[str, Record], findings: Findings) -> None:
    """The same file under both labels, or in both splits, spoils every figure."""
    try:
        digest = hashlib.sha256(record.image.read_bytes()).hexdigest()
    except OSError:
        return
    first = seen.setdefault(digest, record)
    if first is record:
        return
    pair = f"{first.source} = {record.source}"
    if first.anomalous != record.anomalous:
        findings.problems["images that are both good and defective"].append(pair)
    elif first.split != record.split:
        findings.problems["images in two splits"].append(pair)
    else:
        findings.problems["images that occur twice"].append(pair)
