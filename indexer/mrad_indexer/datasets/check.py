"""Opens every image and mask of a dataset and says what is missing, broken or odd."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mrad.errors import ImageError, MaskError
from mrad.images.guard import code_of
from mrad.images.options import ReadOptions
from mrad.images.reader import SAMPLED, Picture, read_image
from mrad.images.survey import depths_of
from mrad_indexer.datasets.records import Dataset, Record, relative

ODD_ASPECT = 1.5
LARGE = 1_600
"""Pixels of the longer side: three times the paper's input, six times the small encoder's."""
REMEDY = "mrad build --tile auto cuts them into tiles"
TINY = 64
PART = 1 << 16
"""Bytes from a file's middle that tell most files of one size apart."""


@dataclass
class Findings:
    """`problems`: what is wrong -> sources of the images concerned."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def check(dataset: Dataset, reading: ReadOptions | None = None) -> Findings:
    """Read everything once. Memory: one image. `reading`: how pictures are read."""
    findings, seen = Findings(), dict[str, Record]()
    reading = reading or ReadOptions()
    if reading.bit_depth is None:
        reading = replace(reading, assume=depths_of((r.image for r in dataset.records), reading))
    for record in dataset.records:
        _check_record(record, findings, reading)
        _check_twice(record, seen, findings)
    if not dataset.counts["normal"]:
        findings.problems["dataset without good images: only pixels can be evaluated"] = [
            str(dataset.root)
        ]
    if not dataset.counts["anomalous"]:
        findings.problems["dataset without defective images: nothing can be evaluated"] = [
            str(dataset.root)
        ]
    for item in dataset.left_out:
        findings.problems["files that are not taken"].append(
            f"{relative(item.path, dataset.root)}: {item.why}"
        )
    findings.problems = dict(findings.problems)
    return findings


def _doubt(problems: dict[str, list[str]], warnings: Iterable[str], source: str) -> None:
    for text in warnings:
        code, _, why = text.partition(": ")
        problems[f"warned of: {code}"].append(f"{source}: {why}")


def looked_at(path: Path, reading: ReadOptions) -> Picture:
    """What is known of a picture; its pixels may be fewer, as a JPEG's decoder scales them.

    Every byte is decoded all the same, so damage shows. Averages vary less than the pixels: what seems of one
    level is read in full.
    """
    picture = read_image(path, options=replace(reading, least_side=SAMPLED))
    if any(code_of(text) == "uniform" for text in picture.warnings):
        return read_image(path, options=reading)
    return picture


def _check_record(record: Record, findings: Findings, reading: ReadOptions) -> None:
    problems = findings.problems
    try:
        picture = looked_at(record.image, reading)
        size = picture.size
        _doubt(problems, picture.warnings, record.source)
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
        mask = record.truth(size, picture.orientation)
    except MaskError as error:
        problems["unusable masks"].append(f"{record.source}: {error}")
        return
    if mask is None:
        problems["defective images without a mask"].append(record.source)
        return
    named = ("mask_empty", "mask_full")
    _doubt(problems, (w for w in mask.warnings if code_of(w) not in named), record.source)
    if not mask.anomalous.any():
        problems["defective images whose mask marks no pixel"].append(record.source)
    elif mask.anomalous.all():
        problems["masks that mark every pixel"].append(record.source)


def under_both_labels(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Pairs of one picture's files, a good one and a defective one, found without reading every file whole."""
    sizes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        try:
            sizes[record.image.stat().st_size].append(record)
        except OSError:  # whoever reads it says so
            continue
    found: list[tuple[Record, Record]] = []
    for size, several in sizes.items():
        parts: dict[bytes, list[Record]] = defaultdict(list)
        for record in several if _both(several) else ():
            with record.image.open("rb") as file:
                file.seek(max(0, size - PART) // 2)
                parts[hashlib.sha256(file.read(PART)).digest()].append(record)
        for alike in filter(_both, parts.values()):
            bad = {_digest(record): record for record in alike if record.anomalous}
            good = [record for record in alike if not record.anomalous]
            found += [(one, bad[key]) for one in good if (key := _digest(one)) in bad]
    return found


def _both(records: Sequence[Record]) -> bool:
    return len({record.anomalous for record in records}) == 2


def _digest(record: Record) -> str:
    return hashlib.sha256(record.image.read_bytes()).hexdigest()


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
