"""A bridge to anomalib: reads its folder layouts, gives predictions in the fields of its batches.

anomalib itself is not imported, nor needed. MVTec AD's layout is read by `mrad_indexer.datasets` already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mrad.calibration import refuse_unreachable
from mrad.detector import Detector
from mrad.errors import DataError
from mrad.maps import resize_map
from mrad_indexer.datasets.pairing import pair
from mrad_indexer.datasets.records import (
    Dataset,
    Record,
    images_below,
    relative,
    require,
)
from mrad_indexer.evaluation.judging import mask_at

Batch = dict[str, Any]
Folders = str | Path | Sequence[str | Path] | None


def read_folder(
    root: Path | str,
    *,
    normal_dir: Folders,
    abnormal_dir: Folders = None,
    normal_test_dir: Folders = None,
    mask_dir: Folders = None,
) -> Dataset:
    """The layout of anomalib's `Folder`, by the names of its arguments.

    `normal_dir` becomes the split `train`, the others `test`. Masks belong to the images of the same
    name. Raises `DataError` for a folder that is missing or without images.
    """
    root = Path(root).absolute()
    masks = [mask for folder in _folders(root, mask_dir) for mask in images_below(folder)]
    records = []
    for dirs, anomalous, split in (
        (normal_dir, False, "train"),
        (normal_test_dir, False, "test"),
        (abnormal_dir, True, "test"),
    ):
        for folder in _folders(root, dirs):
            found = images_below(folder)
            own = pair(found, masks) if anomalous else {}
            for image in found:
                mask = own.get(image)
                source, defect = relative(image, root), folder.name if anomalous else ""
                records.append(Record(image, anomalous, mask, source, root.name, defect, split))
    return require("anomalib Folder", root, records)


def _folders(root: Path, dirs: Folders) -> list[Path]:
    names = [] if dirs is None else [dirs] if isinstance(dirs, str | Path) else list(dirs)
    folders = [root / name for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder")
    return folders


def batches(
    detector: Detector,
    dataset: Dataset,
    *,
    side: int = 256,
    batch_size: int = 8,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
) -> Iterator[Batch]:
    """Predictions and truth as the fields of `anomalib.data.ImageBatch`: `ImageBatch(**batch)`.

    Yields dictionaries of CPU tensors for B images:
        image [B, 3, side, side] float32 in [0, 1]; image_path list of str; gt_label [B] bool;
        gt_mask [B, side, side] bool; pred_score [B] float32; anomaly_map [B, side, side] float32;
        pred_label [B] bool with `threshold`; pred_mask [B, side, side] bool with `pixel_threshold`.

    Defective images without a mask come last, in batches without gt_mask, which pixel metrics must
    leave out. Raises `ImageError`, `MaskError`, `CalibrationError` for a threshold outside [0, 1].
    """
    refuse_unreachable(threshold)
    refuse_unreachable(pixel_threshold, "pixel_threshold")
    known = [r for r in dataset.records if r.mask is not None or not r.anomalous]
    unknown = [r for r in dataset.records if r.mask is None and r.anomalous]
    for records in (known, unknown):
        for start in range(0, len(records), batch_size):
            chunk = records[start : start + batch_size]
            yield _batch(detector, chunk, side, threshold, pixel_threshold)


def _batch(
    detector: Detector,
    records: Sequence[Record],
    side: int,
    threshold: float | None,
    pixel_threshold: float | None,
) -> Batch:
    decoded = [detector.decode(record.image) for record in records]
    if detector.layout.plain:
        found = detector.finish(detector.encode(decoded), [(side, side)] * len(decoded))
    else:
        found = list(detector.judge(decoded))
    masks = [
        mask_at(record, item.size, side, item.orientation) for record, item in zip(records, decoded)
    ]
    images = [
        np.asarray(item.image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB"))
        for item in decoded
    ]
    maps = np.stack(
        [
            resize_map(torch.from_numpy(item.anomaly_map), (side, side))
            for item in found
            if item.anomaly_map is not None
        ]
    )
    batch: Batch = {
        "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255,
        "image_path": [str(record.image) for record in records],
        "gt_label": torch.tensor([record.anomalous for record in records]),
        "pred_score": torch.tensor([item.score for item in found], dtype=torch.float32),
        "anomaly_map": torch.from_numpy(maps),
    }
    if all(mask is not None for mask in masks):
        batch["gt_mask"] = torch.from_numpy(
            np.stack([mask.anomalous for mask in masks if mask is not None])
        )
    if threshold is not None:
        batch["pred_label"] = batch["pred_score"] >= threshold
    if pixel_threshold is not None:
        batch["pred_mask"] = batch["anomaly_map"] >= pixel_threshold
    return batch
