"""Thresholds, verdicts, probabilities and regions of a calibrated bank; what `fields` leaves out."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from mrad import MemoryBank
from mrad.calibration import Calibration


@pytest.fixture
def server(connect, calibrated_path):
    return connect()


@pytest.fixture
def calibration(calibrated_path) -> Calibration:
    return Calibration.of(MemoryBank.load(calibrated_path), "tf")


def judge(client, file, **data):
    answer = client.post("/v1/score", files={"images": file}, data=data)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


def test_the_banks_threshold_unless_told(server, calibration, png) -> None:
    files = [png(seed, defect=seed % 5 == 0) for seed in range(100, 110)]
    for file in files:
        result = judge(server, file)
        assert result["threshold"] == calibration.image_threshold
        above = np.float32(result["score"]) >= np.float32(result["threshold"])
        assert result["verdict"] == ("anomalous" if above else "normal")
        assert result["probability"] == pytest.approx(calibration.probability(result["score"]))
    assert judge(server, files[0], threshold=0)["verdict"] == "anomalous"
    assert judge(server, files[0], threshold=1)["verdict"] == "normal"
    assert judge(server, files[0], threshold=1)["threshold"] == 1


def test_thresholds_that_no_score_can_reach_are_refused(server, png) -> None:
    coded = {"images": [base64.b64encode(png(1)).decode()]}
    for name, values in (("threshold", (40, -0.1, True)), ("pixel_threshold", (60, False))):
        for value in values:
            answer = server.post("/v1/score", json=coded | {name: value})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    answer = server.post("/v1/score", json=coded | {"threshold": 40})
    assert "raw score, from 0 to 1, not 40" in answer.json()["detail"]
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    body = {"inputs": [pixels], "parameters": {"threshold": 40}}
    answer = server.post(f"/v2/models/{server.get('/v1/bank').json()['name']}/infer", json=body)
    assert answer.status_code == 422
    assert "from 0 to 1" in answer.text


def test_sensitivity_for_each_request(server, calibration, png) -> None:
    strict, lax = (judge(server, png(1), target_fpr=rate)["threshold"] for rate in (0.0, 0.5))
    assert strict == calibration.threshold_at(0.0) > lax == calibration.threshold_at(0.5)
    told = [judge(server, png(1), target_fpr=rate).get("warnings") or [] for rate in (0.0, 0.5)]
    assert [any("rate_not_promised" in text for text in texts) for texts in told] == [True, False]
    seeds = [seed for seed in range(100, 150) if seed % 5]
    flagged = [judge(server, png(s), target_fpr=0.1)["verdict"] == "anomalous" for s in seeds[:20]]
    assert sum(flagged) <= 4 + 1, "of forty good images at most four"


def test_regions_are_those_of_the_pixel_threshold(server, calibration, png, tiny_detector) -> None:
    file = png(105, defect=True)
    values = tiny_detector.predict([file])[0].anomaly_map
    result = judge(server, file)
    cut = np.float32(calibration.pixel_threshold)
    assert sum(region["area"] for region in result["regions"]) == (values >= cut).sum()
    for region in result["regions"]:
        x0, y0, x1, y1 = region["box"]
        x, y = region["peak_at"]
        assert x0 <= x < x1
        assert y0 <= y < y1
        assert region["peak"] == pytest.approx(values[y, x], abs=1e-6)
        assert len(region["polygon"]) >= 3
    other = judge(server, file, pixel_threshold=1)
    assert other["regions"] == []


def test_only_what_was_asked_for_is_there(server, png) -> None:
    result = judge(server, png(1), fields="verdict,probability")
    assert set(result) == {"index", "name", "status", "verdict", "probability"}
    none = judge(server, png(1), fields="score", map="png16", evidence=3)
    assert set(none) == {"index", "name", "status", "score"}


def test_the_bank_tells_its_thresholds(server, calibration) -> None:
    bank = server.get("/v1/bank").json()
    assert bank["threshold"] == calibration.image_threshold
    assert bank["pixel_threshold"] == calibration.pixel_threshold
    low, high = bank["score_range"]
    assert low < bank["threshold"] < high
    assert (bank["image"]["normal"], bank["image"]["anomalous"]) == (3, 3)


def test_a_calibration_of_other_settings_does_not_apply(connect, calibrated_path, png) -> None:
    client = connect(fusion=0.5)
    result = judge(client, png(1))
    assert result["verdict"] is None
    assert result["probability"] is None
    refused = client.post("/v1/score", files={"images": png(1)}, data={"target_fpr": 0.1})
    assert refused.json()["code"] == "calibration_error"
    assert "fusion" in refused.json()["detail"]
    assert "fusion" in client.get("/v1/bank").json()["calibration"]
