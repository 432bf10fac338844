"""A bank's name -> what serves it: memory, detectors on every device, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
import torch
from PIL import Image

from mrad.calibration import Calibration
from mrad.detector import Decoded, Detector
from mrad.encoder.cuda import buckets
from mrad.encoder.encoder import Encoder, precision_for
from mrad.encoder.identity import EncoderIdentity
from mrad.encoder.named import weights_named
from mrad.errors import CalibrationError
from mrad.images.layout import PLAIN
from mrad.memory.bank import MemoryBank
from mrad_service.settings import BankSpec, Settings

log = structlog.get_logger(__name__)
EncoderOf = Callable[[MemoryBank, str], Encoder]
"""The encoder of a bank on a device; tests bring their own."""


@dataclass(frozen=True)
class Model:
    """One bank with one head at one moment. Requests keep the one that they began with."""

    name: str
    spec: BankSpec
    detectors: tuple[Detector, ...]
    calibration: Calibration | None
    why_uncalibrated: str
    """Why there is none."""
    part: str = ""
    """The product whose images alone it asks; empty for all."""

    @property
    def bank(self) -> MemoryBank:
        """The memory."""
        return self.detectors[0].bank

    def calibrated(self) -> Calibration:
        """The calibration. Raises `CalibrationError`."""
        if self.calibration is None:
            raise CalibrationError(self.why_uncalibrated)
        return self.calibration


class Encoders:
    """Encoders by identity, device and precision: banks of the same encoder share it."""

    def __init__(self, settings: Settings, encoder_of: EncoderOf | None = None) -> None:
        self._settings, self._encoder_of = settings, encoder_of or self._load
        self._held: dict[tuple[EncoderIdentity, str, str], Encoder] = {}

    def get(self, bank: MemoryBank, device: str) -> Encoder:
        """Raises `WeightsNotFoundError`, `EncoderMismatchError`, `EncoderError`."""
        place = (bank.identity, device, self._precision(bank, device))
        if place not in self._held:
            encoder = self._encoder_of(bank, device)
            bank.check(encoder)
            self._held[place] = encoder
        return self._held[place]

    def keep_only(self, identities: set[EncoderIdentity]) -> None:
        """Let go of the others."""
        self._held = {place: e for place, e in self._held.items() if place[0] in identities}

    def _load(self, bank: MemoryBank, device: str) -> Encoder:
        return Encoder.load(
            bank.identity.architecture,
            self._settings.pretrained
            or weights_named(bank.identity, bank.metadata.get("pretrained")),
            image_size=bank.identity.image_size,
            device=device,
            precision=self._precision(bank, device),
        )

    def _precision(self, bank: MemoryBank, device: str) -> str:
        return precision_for(self._settings.precision, bank.precision, device)


def build_model(
    name: str, spec: BankSpec, bank: MemoryBank, encoders: Encoders, settings: Settings
) -> Model:
    """Wire it on every device, and let it judge one image, so that a failure shows now."""
    detectors = tuple(
        Detector(
            encoders.get(bank, device),
            bank,
            spec.head,
            checkpoint=spec.checkpoint,
            fusion=settings.fusion,
            retrieval=settings.retrieval,
            reading=settings.reading,
        )
        for device in devices_of(settings)
    )
    for detector in detectors:
        warm(detector, settings.max_batch)
    return Model(name, spec, detectors, *calibration_of(bank, spec, detectors[0]))


def follow(model: Model, bank: MemoryBank) -> Model:
    """The model on a memory that changed; its thresholds follow (`mrad_service.models.following`)."""
    if holds_the_same(model.bank, bank):
        return replace(model, detectors=tuple(d.with_facts_of(bank) for d in model.detectors))
    return replace(model, detectors=tuple(d.with_bank(bank) for d in model.detectors))


def holds_the_same(one: MemoryBank, other: MemoryBank) -> bool:
    """Whether two states of a memory differ in their thresholds at most."""
    return one.entries == other.entries


def calibration_of(
    bank: MemoryBank, spec: BankSpec, detector: Detector
) -> tuple[Calibration | None, str]:
    """The bank's calibration for this head where it holds for these settings, else why not."""
    try:
        calibration = Calibration.of(bank, detector.head.name)
    except CalibrationError as error:
        return None, str(error)
    here: dict[str, Any] = {
        "fusion": detector.fusion,
        "sigma": detector.sigma,
        "top": detector.top,
        "checkpoint": spec.checkpoint.name if spec.checkpoint else "",
    }
    for key, value in here.items():
        there = calibration.settings.get(key, value)
        if there != value:
            why = (
                f"the bank was calibrated with {key} = {there!r} but is served with {value!r}; "
                "run mrad calibrate with the server's settings, or pass a threshold"
            )
            log.warning("the calibration does not apply", bank=spec.path.name, why=why)
            return None, why
    return calibration, ""


def warm(detector: Detector, batch: int) -> None:
    """One grey image through every stage, the nearest keys too, so that what fails does so now.

    On a GPU a batch of each size up to `batch`: recordings are made, kernels chosen, memory reserved.
    """
    on_gpu = detector.encoder.device.type == "cuda"
    side = detector.encoder.image_size
    grey = Image.fromarray(np.full((side, side, 3), 128, np.uint8))
    one = Decoded(detector.encoder.prepare(grey), grey, PLAIN.places(grey.size))
    for count in buckets(batch) if on_gpu else [1]:
        features = detector.encode([one] * count)
        found = detector.finish(features, [grey.size] * count, evidence=1)
        if not np.isfinite([prediction.score for prediction in found]).all():
            raise CalibrationError("the head gives no finite score")


def devices_of(settings: Settings) -> Sequence[str]:
    """`auto` or `cuda:0,cuda:1` -> the devices by name."""
    if settings.device == "auto" and torch.cuda.is_available():
        return ["cuda:0"]
    return [name.strip() for name in settings.device.split(",") if name.strip()] or ["auto"]
