"""Several devices: one queue feeds them all, and they judge alike."""

from __future__ import annotations

import threading

import pytest
import torch
from fastapi.testclient import TestClient
from mrad_service.models.loading import devices_of
from mrad_service.settings import Settings

from mrad import Encoder


def scores(client: TestClient, files: list[bytes]) -> list[float]:
    parts = [("images", file) for file in files]
    return [r["score"] for r in client.post("/v1/score", files=parts).json()["results"]]


def test_two_devices_share_the_work_and_judge_alike(
    connect, png, tiny_encoder: Encoder, monkeypatch
) -> None:
    files = [png(seed, defect=seed % 2 == 0) for seed in range(12)]
    alone = scores(connect(), files)
    both, seen = threading.Barrier(2), []
    encode = tiny_encoder.encode_pixels

    def encode_pixels(pixels: torch.Tensor, **options: object) -> object:
        name = threading.current_thread().name
        if name not in seen:
            seen.append(name)
            both.wait(60)  # each waits inside for the other: they run at the same time
        return encode(pixels, **options)

    client = connect(device="cpu,cpu", max_batch=3, writable=False)
    assert len(client.app.state.runtime.model().detectors) == 2
    monkeypatch.setattr(tiny_encoder, "encode_pixels", encode_pixels)
    assert scores(client, files) == pytest.approx(alone, abs=1e-5)
    assert sorted(seen) == ["device-0", "device-1"]


def test_several_devices_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MRAD_DEVICE", "cuda:0, cuda:1")
    assert devices_of(Settings(auth="off")) == ["cuda:0", "cuda:1"]
