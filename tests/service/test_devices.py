"""Several devices: one queue feeds them all, and they judge alike."""

from __future__ import annotations

import threading

import pytest
import torch
from fastapi.testclient import TestClient
from mrad_service.models.loading import devices_of, warm
from mrad_service.settings import Settings

from mrad import Detector, Encoder
from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average


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


@pytest.mark.parametrize(
    ("device", "batches"), [("cpu", [1]), ("cuda:1", [1, 2, 4, 8, 12])], ids=["cpu", "card"]
)
@pytest.mark.parametrize("head", ["tf", "nn"])
def test_warming_up_goes_through_every_stage_and_on_a_card_every_batch_size(
    tiny_encoder: Encoder, tiny_bank, monkeypatch, head: str, device: str, batches: list[int]
) -> None:
    """FAISS and CUDA graphs are asked before the first customer is; the card is only pretended."""
    tiny_detector = Detector(tiny_encoder, tiny_bank, head)
    tiny_detector.retriever("image")  # made before the card is pretended
    seen, asked, searched, named = [], [], [], []
    if head == "nn":
        good_patches = tiny_detector.head.good_patches
        nearest, several = good_patches.nearest, good_patches.several
        monkeypatch.setattr(
            good_patches, "nearest", lambda q, *o: searched.append(len(q)) or nearest(q, *o)
        )
        monkeypatch.setattr(
            good_patches, "several", lambda q, *o: named.append(len(q)) or several(q, *o)
        )
    encode, finish = tiny_detector.encode, tiny_detector.finish
    monkeypatch.setattr(tiny_detector.encoder, "device", torch.device(device))
    monkeypatch.setattr(
        tiny_detector, "encode", lambda decoded: seen.append(len(decoded)) or encode(decoded)
    )
    monkeypatch.setattr(
        tiny_detector,
        "finish",
        lambda *given, **options: asked.append(options["evidence"]) or finish(*given, **options),
    )
    encoder = tiny_detector.encoder
    monkeypatch.setattr(
        encoder,
        "encode_prepared",
        lambda pixels, **options: encoder.encode_pixels(torch.stack(list(pixels)), **options),
    )
    run = encoder.run

    def encode_pixels(pixels: torch.Tensor, **options: object) -> Features:
        whole, raw = run(pixels)
        return Features(whole, neighbourhood_average(raw, encoder.grid), raw)

    monkeypatch.setattr(encoder, "encode_pixels", encode_pixels)
    warm(tiny_detector, 12)
    assert seen == batches
    assert asked == [1] * len(batches)
    if head == "nn":  # its search, and its evidence for each image
        assert searched == [count * encoder.grid**2 for count in batches]
        assert len(named) == sum(batches)


def test_several_devices_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MRAD_DEVICE", "cuda:0, cuda:1")
    assert devices_of(Settings(auth="off")) == ["cuda:0", "cuda:1"]
