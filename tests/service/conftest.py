"""A server on the tiny bank: in-process for most tests, over a socket where that matters."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image

from mrad import Detector, Encoder, MemoryBank
from mrad.calibration import Calibration, Platt, Reliability, Summary, Tail, Threshold
from mrad.memory.store import save_calibration


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """Tracebacks in colours, with every local, take longer than the tests."""
    chain = [structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
    structlog.configure(processors=chain)


@pytest.fixture
def bank_path(tmp_path: Path, tiny_bank: MemoryBank) -> Path:
    """The tiny bank on disk."""
    tiny_bank.save(tmp_path / "banks" / "tiny")
    return tmp_path / "banks" / "tiny"


@pytest.fixture
def make_app(bank_path: Path, tiny_encoder: Encoder) -> Callable[..., FastAPI]:
    """`make_app(**settings)`: no keys are asked for by default."""

    def make(**given: Any) -> FastAPI:
        settings = {"bank": bank_path, "auth": "off", "batch_wait": 0.005, "request_seconds": 600}
        return create_app(
            Settings(**settings | given), encoder_of=lambda bank, device: tiny_encoder
        )

    return make


@pytest.fixture
def connect(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """`connect(**settings)`: a client of a started application."""
    open_ones: list[TestClient] = []

    def start(**given: Any) -> TestClient:
        client = TestClient(make_app(**given), base_url="http://127.0.0.1")
        client.__enter__()
        open_ones.append(client)
        return client

    yield start
    for client in open_ones:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect: Callable[..., TestClient]) -> TestClient:
    """A client of a server with the defaults."""
    return connect()


@contextmanager
def served(app: FastAPI, **options: Any) -> Iterator[str]:
    """The application behind a real socket; gives its address. `options` are uvicorn's."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture
def serve() -> Callable[..., Any]:
    """`with serve(app) as url:`"""
    return served


@pytest.fixture
def calibrated(tiny_detector: Detector, make_image: Any) -> Callable[[MemoryBank], MemoryBank]:
    """Gives a bank the calibration of forty good images and ten defects."""
    seeds = range(100, 150)
    images = [make_image(seed, defect=seed % 5 == 0)[0] for seed in seeds]
    found = tiny_detector.predict(images, evidence=1)
    truth = np.array([seed % 5 == 0 for seed in seeds])
    scores = np.array([prediction.score for prediction in found])
    near = Summary.of(np.array([prediction.evidence[0].similarity for prediction in found]))
    pixels = np.concatenate([p.anomaly_map.ravel() for p, bad in zip(found, truth) if not bad])
    facts = {"low": 0.0, "high": 1.0, "rule": "f1", "precision": 1, "recall": 1, "f1": 1, "fpr": 0}
    calibration = Calibration(
        head="tf",
        settings={"fusion": 0.7, "sigma": 4.0, "top": 0.01, "retrieval": "exact", "checkpoint": ""},
        scored="held-out",
        made_at="2026-01-01T00:00:00Z",
        normal=int((~truth).sum()),
        anomalous=int(truth.sum()),
        image=Threshold(value=float(np.median(scores)), **facts),
        pixel=Threshold(value=float(np.quantile(pixels, 0.9)), **facts),
        normal_scores=Tail.of(scores[~truth]),
        normal_pixels=Tail.of(pixels),
        model=Platt(slope=2, offset=0, centre=float(scores.mean()), scale=float(scores.std())),
        prevalence=0.2,
        reliability=Reliability(
            predicted=[0.5], observed=[0.5], count=[50], brier=0.1, expected_error=0
        ),
        scores_normal=Summary.of(scores[~truth]),
        scores_anomalous=Summary.of(scores[truth]),
        similarity_image=near,
        similarity_patch=near,
    )
    return calibration.into


@pytest.fixture
def calibrated_path(bank_path: Path, tiny_bank: MemoryBank, calibrated: Any) -> Path:
    """The tiny bank on disk, with a calibration."""
    save_calibration(calibrated(tiny_bank), bank_path)
    return bank_path


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def png(make_image: Any) -> Callable[..., bytes]:
    """`png(seed, size=(w, h), defect=False)`: an image file."""
    return lambda seed=0, *args, **kwargs: encode_png(make_image(seed, *args, **kwargs)[0])
