"""Good parts alone over Ray: built by workers, calibrated, judged by replicas, as one machine does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mrad_indexer.build.build import BuildOptions, build
from mrad_indexer.datasets import read_dataset
from mrad_indexer.scoring.judge import Judge

from mrad import Detector, Encoder, MemoryBank
from mrad.memory.store import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.own import score_own
from tests.ray.test_serve import encoder_for, unused_port

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mrad[ray]'")
from mrad_indexer.build.ray import RayEngine

__all__ = ["unused_port"]
OPTIONS = BuildOptions(batch_size=2, shard=4)
Load = Callable[[], Encoder]


@pytest.fixture
def good_only(tmp_path: Path, make_image: Any) -> Path:
    """Two products, good pictures alone."""
    root = tmp_path / "good_only"
    for name, size in (("caps", (96, 64)), ("nuts", (64, 96))):
        (root / name / "good").mkdir(parents=True)
        for seed in range(12):
            make_image(seed, size)[0].save(root / name / "good" / f"{seed:02}.png")
    return root


@pytest.fixture
def bank(ray_cluster: Any, good_only: Path, load: Load, tmp_path: Path) -> Path:
    """Built by two workers, calibrated on its own images."""
    encoder, path = load(), tmp_path / "on-ray"
    built = build(
        encoder, read_dataset(good_only), path, OPTIONS, engine=RayEngine(load, workers=2)
    )
    detector = Detector(encoder, built.bank)
    assert detector.head.name == "nn"
    made = calibrate(detector, score_own(detector, thorough=True), target_fpr=0.1)
    save_calibration(made.into(built.bank), path)
    return path


@pytest.fixture
def url(bank: Path, load: Load, unused_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two replicas."""
    from mrad_service.ray import Scale, deployment
    from mrad_service.settings import Settings
    from ray import serve

    settings = Settings(bank=bank, auth="off", device="cpu", request_seconds=600)
    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 600)
    serve.start(http_options={"host": "127.0.0.1", "port": unused_port})
    scale = Scale(replicas=2, cpus=0.5)
    serve.run(deployment(settings, scale, partial(encoder_for, load)), name="mrad")
    yield f"http://127.0.0.1:{unused_port}"
    serve.shutdown()


@pytest.mark.nightly
def test_good_parts_alone_from_workers_to_replicas(
    url: str, bank: Path, good_only: Path, load: Load, pids: Path, make_image: Any, tmp_path: Path
) -> None:
    encoder, held = load(), MemoryBank.load(bank)
    local = build(encoder, read_dataset(good_only), tmp_path / "local", OPTIONS).bank
    for level in ("image", "patch", "local"):
        assert np.array_equal(getattr(held, level).keys, getattr(local, level).keys), level
        assert np.array_equal(getattr(held, level).entry, getattr(local, level).entry), level
    assert len({int(path.name) for path in pids.iterdir()} - {os.getpid()}) >= 2, "workers encoded"

    pictures = []
    for seed in range(6):
        image, _ = make_image(300 + seed, (96, 64), defect=seed % 2 == 0)
        pictures.append(tmp_path / f"{seed}.png")
        image.save(pictures[-1])
    for product in (None, "caps"):
        judge = Judge.of(encoder, held, product=product)
        wanted = judge.detector.predict([str(path) for path in pictures])

        def ask(path: Path, product: str | None = product) -> dict[str, Any]:
            data = {} if product is None else {"object": product}
            answer = httpx.post(
                f"{url}/v1/score",
                files={"images": (path.name, path.read_bytes())},
                data=data,
                timeout=600,
            )
            assert answer.status_code == 200, answer.text
            result: dict[str, Any] = answer.json()["results"][0]
            return result

        with ThreadPoolExecutor(4) as pool:  # both replicas have something to do
            found = list(pool.map(ask, pictures))
        for one, result in zip(wanted, found):
            assert result["score"] == pytest.approx(one.score, abs=1e-5)
            assert result["verdict"] == judge.verdict(one.score)
            assert result["p_value"] == pytest.approx(judge.p_value(one.score))
    bad = httpx.get(f"{url}/v1/bank", params={"object": "bolts"}, timeout=600)
    assert (bad.status_code, bad.json()["code"]) == (404, "unknown_object")
    shown = httpx.get(f"{url}/v1/bank", params={"object": "caps"}, timeout=600).json()
    assert (shown["head"], shown["entries"]) == ("nn", 12)
