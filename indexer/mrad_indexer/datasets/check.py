"""Opens every image and mask of a dataset and says what is missing, broken or odd."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from mrad.errors import ImageError, MaskError
from mrad.images.reader import load_image
from mrad_indexer.datasets.records import Dataset, Record

ODD_ASPECT = 1.5
LARGE = 1_600
"""Pixels of the longer side: three times the paper's input, six times the small encoder's."""
REMEDY = "mrad build --tile auto cuts them into tiles"
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
    longer, shorter = max(size), min(size)
    if longer > ODD_ASPECT * shorter:
        axis = "height" if height > width else "width"
        lost = f"{100 * (1 - shorter / longer):.0f} % of its {axis}"
        problems[f"images that are squeezed to a square ({REMEDY})"].append(
            f"{record.source}: {width} x {height} loses {lost}"
        )
    if longer > LARGE:
        problems[
            f"large images, whose smallest details are lost when they are shrunk ({REMEDY})"
        ].append(f"{record.source}: {width} x {height}")
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
