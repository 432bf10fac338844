"""docs/operations.md names every metric and alert, and only settings that there are; the command lists all."""

from __future__ import annotations

import re
from pathlib import Path

from mrad_indexer.cli.main import app
from mrad_service.settings import Settings
from mrad_service.telemetry.metrics import Metrics
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_is_listed_by_the_command() -> None:
    there = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"\bMRAD_([A-Z_]+)\b", PAGE)) - there <= {"API_KEY", ""}
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    listed = dict(re.findall(r"• MRAD_([A-Z_]+)(?: \[.*?\])?: +(.*\S)", shown))
    assert set(listed) == there
    assert "None" not in listed.values(), "a setting has no description"
    assert "MRAD_MAX_BODY_BYTES [256 MiB]" in shown


def test_every_metric_and_alert_is_named() -> None:
    text = Metrics().text().decode()
    for name in re.findall(r"^# TYPE (mrad_\w+) \w+$", text, re.MULTILINE):
        if not name.endswith("_created"):
            assert f"`{name}`" in PAGE or name in PAGE
    for alert in re.findall(r"alert: (\w+)", (ROOT / "docker" / "alerts.yml").read_text()):
        assert alert in PAGE
