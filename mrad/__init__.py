"""Visual anomaly detection by memory-driven retrieval (MRAD, ICLR 2026).

encoder = Encoder.load("mrad-mini")
bank = MemoryBank.from_samples(encoder, [Sample(image, anomalous=True, mask=mask), ...])
prediction = Detector(encoder, bank).predict([image])[0]
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrad.detector import Detector
    from mrad.encoder.encoder import Encoder, Features
    from mrad.encoder.identity import EncoderIdentity
    from mrad.errors import MRADError
    from mrad.memory.bank import MemoryBank
    from mrad.memory.entry import Entry
    from mrad.types import ANOMALOUS, NORMAL, Evidence, Prediction, Sample

__version__ = version("mrad")

_HOMES = {
    "mrad.detector": ("Detector",),
    "mrad.encoder.encoder": ("Encoder", "Features"),
    "mrad.encoder.identity": ("EncoderIdentity",),
    "mrad.errors": ("MRADError",),
    "mrad.memory.bank": ("MemoryBank",),
    "mrad.memory.entry": ("Entry",),
    "mrad.types": ("ANOMALOUS", "NORMAL", "Evidence", "Prediction", "Sample"),
}

__all__ = [  # noqa: RUF022 - the order of the story, not of the alphabet
    "Detector",
    "Encoder",
    "MemoryBank",
    "Sample",
    "Prediction",
    "Evidence",
    "Entry",
    "EncoderIdentity",
    "Features",
    "MRADError",
    "NORMAL",
    "ANOMALOUS",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `mrad --help` and the errors cost no torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'mrad' has no attribute {name!r}")
