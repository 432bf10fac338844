"""A detector with its thresholds and its colour scale: what turns a prediction into a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrad.calibration import Calibration
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder, Features
from mrad.errors import CalibrationError
from mrad.files import sha256_file
from mrad.heads.choose import AUTO
from mrad.heads.nn import NNHead
from mrad.images.align import Reference
from mrad.images.options import ReadOptions
from mrad.images.regions import Area
from mrad.memory.bank import MemoryBank
from mrad.thresholds.objects import calibration_of_object
from mrad.thresholds.verdicts import Verdicts
from mrad.types import ANOMALOUS, Prediction
from mrad_indexer.loading import HeadChoice, detector_of, encoder_of

KEYS = 2_048
"""Of the memory, at most, to choose colours from."""


@dataclass(frozen=True, kw_only=True)
class Judge(Verdicts):
    """Everything that decides a verdict."""

    detector: Detector
    low: float
    high: float
    """Map values of the coldest and hottest colour, the same for every image."""
    checkpoint: Path | None
    product: str | None = None
    """Of whose images alone the memory was asked."""

    @classmethod
    def load(
        cls,
        bank_path: Path,
        *,
        head: str = AUTO,
        checkpoint: Path | None = None,
        threshold: float | None = None,
        target_fpr: float | None = None,
        pretrained: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        roi: Area | None = None,
        parts: tuple[Area, ...] = (),
        align: Reference | bool = False,
        closely: float | None = None,
        reading: ReadOptions | None = None,
        product: str | None = None,
    ) -> Judge:
        """From a bank's folder, on the encoder that it names; see `of`.

        `roi`, `parts`, `align` (`Layout.with_regions`), `closely` (`Tiling.closely`): instead of the bank's own. `product`: judged by what the bank holds of it alone, with thresholds of its own images. Raises `UnknownObjectError` too.
        """
        bank = MemoryBank.load(bank_path)
        encoder = encoder_of(bank, pretrained=pretrained, device=device, precision=precision)
        judge = cls.of(
            encoder,
            bank,
            head=head,
            checkpoint=checkpoint,
            threshold=threshold,
            target_fpr=target_fpr,
            reading=reading,
            product=product,
        )
        layout = bank.layout
        if roi is not None or parts:
            layout = layout.with_regions(roi, parts, align)
        if closely is not None:
            layout = layout.looked_at_closely(closely)
        return replace(judge, detector=judge.detector.with_layout(layout))

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        bank: MemoryBank,
        *,
        head: str = AUTO,
        checkpoint: Path | None = None,
        threshold: float | None = None,
        target_fpr: float | None = None,
        reading: ReadOptions | None = None,
        product: str | None = None,
    ) -> Judge:
        """From what is loaded already.

        The detector takes the settings that the head was calibrated with. `threshold` or
        `target_fpr` wins over the calibration's own; a bank without calibration gives scores but
        no verdict. Raises `CalibrationError` when `target_fpr` cannot be had, or when the head's
        checkpoint is not the one calibrated.
        """
        chosen = HeadChoice(head, checkpoint).of(bank).name
        calibration = _calibration(bank, chosen, checkpoint)
        if calibration is None and target_fpr is not None:
            raise CalibrationError(
                f"--target-fpr needs a calibration, and the bank has none for head {chosen!r}: run "
                "mrad calibrate first"
            )
        settings = calibration.settings if calibration else {}
        names = ("fusion", "sigma", "top", "retrieval")
        options = {name: settings[name] for name in names if name in settings}
        if product is not None:
            part = replace(bank.of_object(product), digest=bank.digest)
            chosen = HeadChoice(head, checkpoint).of(bank, part).name
            bank = part
        detector = detector_of(
            encoder, bank, HeadChoice(chosen, checkpoint), reading=reading, **options
        )
        missing = None
        if product is not None and calibration is not None:
            try:
                calibration = calibration_of_object(detector, calibration, product)
            except CalibrationError as error:
                calibration = None
                missing = f"no_threshold: there is none for {product!r} alone: {error}"
        found = Verdicts.of(calibration, threshold=threshold, target_fpr=target_fpr)
        low, high = colour_scale(detector, calibration, found.pixel_threshold)
        return cls(
            found.threshold,
            found.pixel_threshold,
            calibration,
            missing or found.note,
            detector=detector,
            low=low,
            high=high,
            checkpoint=checkpoint,
            product=product,
        )

    def parts(self, prediction: Prediction) -> dict[str, dict[str, Any]]:
        """Name of each part -> its score and verdict."""
        return {
            part.name: {"score": part.score, "verdict": self.verdict(part.score)}
            for part in prediction.parts
        }

    def asked(self) -> dict[str, Any]:
        """What decides scores and verdicts, for a journal."""
        detector = self.detector
        return {
            "bank": detector.bank.digest,
            "head": detector.head.name,
            "checkpoint": sha256_file(self.checkpoint) if self.checkpoint else None,
            "precision": str(detector.encoder.dtype).removeprefix("torch."),
            **not_default(detector.reading),
            "threshold": self.threshold,
            "pixel_threshold": self.pixel_threshold,
            "layout": detector.layout.to_json(),
            **({} if self.product is None else {"object": self.product}),
        }


def not_default(reading: ReadOptions) -> dict[str, Any]:
    """What was said of reading pictures, where it differs from the default."""
    standard = ReadOptions()
    names = ("bit_depth", "strict", "allow_truncated", "max_pixels")
    given = {name: getattr(reading, name) for name in names}
    return {name: value for name, value in given.items() if value != getattr(standard, name)}


def _calibration(bank: MemoryBank, head: str, checkpoint: Path | None) -> Calibration | None:
    if head not in (bank.calibration or {}):
        return None
    calibration = Calibration.of(bank, head)
    known = calibration.settings.get("checkpoint") or ""
    given = checkpoint.name if checkpoint else ""
    if known != given:
        raise CalibrationError(
            f"head {head!r} was calibrated with the checkpoint {known or '(none)'}, this run uses "
            f"{given or '(none)'}; calibrate again, or give the same checkpoint"
        )
    return calibration


def colour_scale(
    detector: Detector, calibration: Calibration | None, pixel_threshold: float | None
) -> tuple[float, float]:
    """Map values of the coldest and hottest colour: one scale for all, so that colours compare.

    With a pixel threshold it sits in the middle, and three quarters of the good pixels stay cold.
    Without, the middle is the high end of what the head says of the memory's own anomalous keys,
    and cold is the median of its normal ones.
    """
    known = calibration.map_range(pixel_threshold) if calibration is not None else None
    if known is not None:
        return known
    head = detector.head
    low, middle = head.typical() if isinstance(head, NNHead) else _of_own_keys(detector)
    if pixel_threshold is not None:
        low, middle = min(low, pixel_threshold), pixel_threshold
    return (low, 2 * middle - low) if middle > low else (0.0, 1.0)


@torch.inference_mode()
def _of_own_keys(detector: Detector) -> tuple[float, float]:
    """Median over normal, 95 % quantile over anomalous patch keys of what the head says of them."""
    memory, device = detector.bank.patch, detector.encoder.device
    rows = np.linspace(0, len(memory) - 1, min(KEYS, len(memory))).astype(int)
    keys = torch.from_numpy(memory.keys[rows]).to(device)
    whole = torch.from_numpy(detector.bank.image.keys[:1]).to(device)
    values = detector.head(Features(whole, keys[None])).patch[0].cpu().numpy()
    bad = memory.labels[rows] == ANOMALOUS
    return float(np.median(values[~bad])), float(np.quantile(values[bad], 0.95))
