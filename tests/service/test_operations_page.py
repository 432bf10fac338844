"""docs/operations.md names every setting, metric and alert that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from mrad_service.settings import Settings
from mrad_service.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_is_listed() -> None:
    named = set(re.findall(r"\bMRAD_([A-Z_]+)\b", PAGE))
    there = {name.upper() for name in Settings.model_fields}
    assert there - named == set()
    assert named - there <= {"API_KEY"}


def test_every_metric_and_alert_is_named() -> None:
    text = Metrics().text().decode()
    for name in re.findall(r"^# TYPE (mrad_\w+) \w+$", text, re.MULTILINE):
        if not name.endswith("_created"):
            assert f"`{name}`" in PAGE or name in PAGE
    for alert in re.findall(r"alert: (\w+)", (ROOT / "docker" / "alerts.yml").read_text()):
        assert alert in PAGE
