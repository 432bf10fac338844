"""Images for a first look, bundled: circuit boards of DeepPCB (MIT, see deep_pcb/LICENSE)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "deep_pcb"
"""memory/ and query/, each with good/, defect/ and masks/."""
