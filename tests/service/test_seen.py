"""What an operator sees: metrics under the names that the dashboard reads, logs, drift, spans."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch
from mrad_service.telemetry.drift import compare
from mrad_service.telemetry.logs import configure

from mrad.calibration import Summary

ROOT = Path(__file__).parents[2]


def value(text: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found, f"{sample} is not among the metrics"
    return float(found[1])


def test_metrics_count_what_happened(client, png) -> None:
    client.post("/v1/score", files=[("images", png(1)), ("images", b"bad"), ("images", png(2))])
    client.get("/nothing")
    text = client.get("/metrics").text
    assert value(text, 'mrad_images_total{status="ok"}') == 2
    assert value(text, 'mrad_images_total{status="invalid_image"}') == 1
    assert value(text, 'mrad_requests_total{code="200",route="/v1/score"}') == 1
    assert value(text, 'mrad_requests_total{code="404",route="unmatched"}') == 1
    assert value(text, "mrad_batch_images_sum") == 2
    assert value(text, "mrad_queue_images") == 0
    assert value(text, 'mrad_score_count{bank="tiny"}') == 2
    for stage in ("decode", "encode", "retrieve", "render"):
        assert value(text, f'mrad_stage_seconds_count{{stage="{stage}"}}') >= 1
    before = value(text, 'mrad_memory_keys{level="image"}')
    client.post("/v1/memory/entries", files={"image": png(3)}, data={"label": "normal"})
    after = value(client.get("/metrics").text, 'mrad_memory_keys{level="image"}')
    assert after == before + 1


def test_dashboard_and_alerts_name_metrics_that_exist(client, png) -> None:
    client.post("/v1/score", files={"images": png(1)})
    text = client.get("/metrics").text
    there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    asked = set()
    for path in ("grafana/dashboards/mrad.json", "alerts.yml"):
        asked |= set(re.findall(r"\bmrad_\w+", (ROOT / "docker" / path).read_text()))
    bare = {name.removesuffix("_bucket") for name in asked}
    assert bare, "nothing was found to compare"
    assert bare <= there | {name + "_total" for name in there}


def test_metrics_can_be_turned_off(connect) -> None:
    assert connect(metrics=False).get("/metrics").status_code == 404


def test_drift_says_when_other_images_come(connect, calibrated_path, make_image, png) -> None:
    client = connect(drift_every=1, drift_window=60)
    seeds = [seed for seed in range(100, 150) if seed % 5][:32]
    assert client.get("/v1/bank").json()["drift"] == {"scores": None, "similarity": None}
    client.post("/v1/score", files=[("images", png(seed)) for seed in seeds])
    usual = client.get("/v1/bank").json()["drift"]
    assert not usual["scores"]["drifted"], "these are the calibration's own good images"
    assert usual["similarity"]["images"] >= 30
    odd = [png(seed, defect=True) for seed in range(300, 360)]
    client.post("/v1/score", files=[("images", file) for file in odd])
    changed = client.get("/v1/bank").json()["drift"]
    assert changed["scores"]["images"] == 60
    assert changed["scores"]["drifted"]
    text = client.get("/metrics").text
    assert value(text, 'mrad_drift_distance{signal="scores"}') == changed["scores"]["distance"]


@pytest.mark.parametrize("seed", range(5))
def test_the_drift_limit_is_rarely_reached_by_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    expected = Summary.of(rng.normal(0.5, 0.01, 500))
    alike = [compare(rng.normal(0.5, 0.01, 200), expected).drifted for _ in range(50)]
    other = [compare(rng.normal(0.505, 0.01, 200), expected).drifted for _ in range(50)]
    assert sum(alike) <= 5
    assert sum(other) >= 45
    assert compare([0.5] * 10, expected) is None


def test_logs_are_json_lines_with_the_requests_id(capsys) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        configure("json", "info")
        structlog.contextvars.bind_contextvars(request_id="r-1")
        structlog.get_logger("mrad_service.test").info("request", status=200)
        logging.getLogger("uvicorn.error").warning("from the library")
        logging.getLogger("faiss.loader").info("of no interest")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert len(lines) == 2
        assert (lines[0]["event"], lines[0]["status"]) == ("request", 200)
        assert {line["request_id"] for line in lines} == {"r-1"}
        assert lines[1]["level"] == "warning"
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()
        root.handlers, root.level = handlers, level
        for name in ("mrad_service", "mrad", "uvicorn"):
            logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger("uvicorn.access").disabled = False


def test_every_stage_is_a_span_of_its_request(make_app, png, monkeypatch) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from fastapi.testclient import TestClient
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("mrad_service.telemetry.tracing._exporting_provider", lambda: provider)
    app = make_app(tracing=True)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.post("/v1/score", files={"images": png(1)}, headers={"traceparent": parent})
        client.get("/health/live")
        spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans["POST /v1/score"]
    assert set(spans) == {"POST /v1/score", "decode", "encode", "retrieve", "render"}
    assert f"{request.context.trace_id:032x}" == parent.split("-")[1]
    assert request.attributes["http.response.status_code"] == 200
    for name in ("decode", "encode", "retrieve", "render"):
        assert spans[name].parent.span_id == request.context.span_id
        assert request.start_time <= spans[name].start_time <= spans[name].end_time


def test_memory_of_each_gpu(client, monkeypatch) -> None:
    held = [3 << 30, 5 << 30]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(held))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held[device])
    shown = client.get("/metrics").text
    for device, size in enumerate(held):
        assert value(shown, f'mrad_gpu_memory_bytes{{device="cuda:{device}"}}') == size
