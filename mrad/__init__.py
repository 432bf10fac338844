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
    "ANOMALOUS": "mrad.types",
    "NORMAL": "mrad.types",
    "Detector": "mrad.detector",
    "Encoder": "mrad.encoder.encoder",
    "EncoderIdentity": "mrad.encoder.identity",
    "Entry": "mrad.memory.entry",
    "Evidence": "mrad.types",
    "Features": "mrad.encoder.encoder",
    "MRADError": "mrad.errors",
    "MemoryBank": "mrad.memory.bank",
    "Prediction": "mrad.types",
    "Sample": "mrad.types",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'mrad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
