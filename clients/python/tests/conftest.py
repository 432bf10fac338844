"""No test reads the developer's own server address and key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `scripted`, under any import mode


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRAD_URL", raising=False)
    monkeypatch.delenv("MRAD_API_KEY", raising=False)
