"""Which encoder made a feature. Imports nothing heavy: a bank names its encoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made a feature: the same weights from any file are the same encoder."""

    architecture: str
    image_size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.architecture} at {self.image_size} px (weights {self.digest[:12]})"
