"""Writes dashboards/mrad.json: `python docker/grafana/build.py`. Panels are one line each here."""

from __future__ import annotations

import json
from pathlib import Path

TARGET = Path(__file__).parent / "dashboards" / "mrad.json"


def quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    """Median and 99th percentile of a histogram."""
    group = f", {by}" if by else ""
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        (
            f"histogram_quantile({q}, sum by (le{group}) (rate({metric}_bucket[5m])))",
            f"{legend}p{int(q * 100)}",
        )
        for q in (0.5, 0.99)
    ]


PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Images a second", "short", [("sum by (status) (rate(mrad_images_total[1m]))", "{{status}}")]),
    ("Requests a second", "reqps", [("sum by (code) (rate(mrad_requests_total[1m]))", "{{code}}")]),
    ("Time of a request", "s", quantiles("mrad_request_seconds")),
    ("Time of each stage", "s", quantiles("mrad_stage_seconds", "stage")),
    ("Images waiting", "short", [("sum(mrad_queue_images)", "waiting")]),
    ("Images in a batch", "short", quantiles("mrad_batch_images")),
    ("Scores (drift: compare with last week)", "percentunit", quantiles("mrad_score")),
    ("Keys in the memory", "short", [("sum by (level) (mrad_memory_keys)", "{{level}}")]),
    (
        "Drift of scores and of likeness (over the limit: look)",
        "short",
        [
            ("max by (signal) (mrad_drift_distance)", "{{signal}}"),
            ("max by (signal) (mrad_drift_limit)", "{{signal}} limit"),
        ],
    ),
    ("GPU memory", "bytes", [("max by (device) (mrad_gpu_memory_bytes)", "{{device}}")]),
]


def panel(number: int, title: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, object]:
    """One time series, three in a row."""
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": source}
            for i, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, object]:
    """The whole."""
    return {
        "uid": "mrad",
        "title": "MRAD",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": [panel(number, *facts) for number, facts in enumerate(PANELS)],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n")
