"""Thresholds that were chosen for one product outlive lessons and new thresholds of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.routes import lessons
from mrad_service.settings import Settings

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.calibration import Calibration
from mrad.memory.living import save_calibration
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.objects import with_object
from mrad.thresholds.own import score_own
from mrad.thresholds.verdicts import Verdicts


def test_a_products_own_rule_outlives_lessons(
    tiny_encoder: Encoder, make_image: Any, png: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "both"
    samples = [
        Sample(make_image(seed, (80, 64))[0], False, source=f"{name}{seed}", object_name=name)
        for name in ("caps", "nuts")
        for seed in range(8)
    ]
    bank = MemoryBank.from_samples(tiny_encoder, samples).save(path)
    whole, part = Detector(tiny_encoder, bank), Detector(tiny_encoder, bank).of_object("nuts")
    of_all = calibrate(whole, score_own(whole, thorough=True), target_fpr=0.2)
    of_nuts = calibrate(part, score_own(part, thorough=True), target_fpr=0.4)
    save_calibration(with_object(of_all, "nuts", of_nuts, part).into(bank), path)

    settings = Settings(bank=path, auth="off", batch_wait=0.0, request_seconds=600)
    app = create_app(settings, encoder_of=lambda *_: tiny_encoder)
    with TestClient(app, base_url="http://127.0.0.1") as client:

        def held() -> Calibration:
            return Calibration.of(MemoryBank.load(path), "nn").objects["nuts"]

        threshold = client.get("/v1/bank", params={"object": "nuts"}).json()["threshold"]
        assert threshold == of_nuts.image_threshold
        said: list[Verdicts] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                lessons, "against_verdict", lambda _, verdicts, *__: said.append(verdicts)
            )
            answer = client.post(
                "/v1/memory/entries",
                files={"image": ("new.png", png(77, (80, 64)))},
                data={"label": "normal", "object_name": "nuts"},
            )
        assert [v.threshold for v in said] == [of_nuts.image_threshold]
        assert answer.status_code == 201, answer.text
        end = time.monotonic() + 60
        while Calibration.of(MemoryBank.load(path), "nn").origin == "":
            assert time.monotonic() < end, "thresholds follow"
            time.sleep(0.05)
        assert held().image.target_fpr == 0.4
        client.post("/v1/banks/both/calibrate")
        while client.get("/v1/banks/both/calibrate").json()["state"] not in ("done", "failed"):
            time.sleep(0.05)
        assert held().image.target_fpr == 0.4
        after = client.get("/v1/bank", params={"object": "nuts"}).json()
        assert after["threshold"] is not None
        assert after["entries"] == 9

        address, whole = "/v1/banks/both/calibrate", Calibration.of(MemoryBank.load(path), "nn")
        assert client.post(address, params={"object": "pens"}).status_code == 404
        worker = client.app.state.runtime.banks.following("both")._workers
        going = threading.Event()
        worker.submit(going.wait, 20)  # so that the job waits
        asked = {"object": "nuts", "target_fpr": 0.25}
        begun = client.post(address, params=asked)
        for other in ({}, {"object": "caps"}, asked | {"target_fpr": 0.2}, {"rule": "f1"}):
            refused = client.post(address, params=other)
            assert refused.status_code == 409, other
            assert refused.json()["code"] == "calibrating"
            assert "runs already, of 'nuts' (" in refused.json()["detail"]
            assert "ask again when it is done" in refused.json()["detail"]
        again = client.post(address, params=asked)
        assert (again.status_code, again.json()["object"]) == (202, "nuts")
        going.set()
        assert begun.json()["object"] == "nuts", begun.text
        while (job := client.get(address).json())["state"] not in ("done", "failed"):
            time.sleep(0.05)
        assert job["state"] == "done", job
        assert job["images"] == 9
        assert held().image.target_fpr == 0.25
        after = client.get("/v1/bank", params={"object": "nuts"}).json()
        assert after["threshold"] == job["threshold"] == held().image_threshold
        now = Calibration.of(MemoryBank.load(path), "nn")
        assert now.image == whole.image, "that of all stays"


def test_a_rate_alone_asks_for_the_rule_that_keeps_it(connect: Callable[..., TestClient]) -> None:
    """A memory with defects took the best F1, and the rate was lost in silence."""
    client = connect()
    address = "/v1/banks/tiny/calibrate"
    both = client.post(address, params={"rule": "f1", "target_fpr": 0.3})
    assert (both.status_code, "knows no target_fpr" in both.json()["detail"]) == (422, True)
    assert client.post(address, params={"target_fpr": 0.3}).status_code == 202
    job = client.app.state.runtime.banks.following("tiny").job  # type: ignore[attr-defined]
    assert job.asked == ("fpr", 0.3, None)
