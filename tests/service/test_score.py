"""`POST /v1/score`: schema, order, maps in every format, errors that spoil only their own image."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from mrad_service.schemas.score import FIELDS
from PIL import Image

from mrad.maps import SPOT


def post(client, *files, **data):
    parts = [("images", (f"{i}.png", file)) for i, file in enumerate(files)]
    return client.post("/v1/score", files=parts, data=data)


def test_results_come_in_order_and_equal_the_detectors(client, png, make_image, tiny_detector):
    sizes = [(80, 64), (33, 47), (120, 90)]
    files = [png(i, size) for i, size in enumerate(sizes)]
    answer = post(client, *files)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-mrad-api-version"] == "1"
    results = answer.json()["results"]
    expected = tiny_detector.predict(files)
    assert [r["index"] for r in results] == [0, 1, 2]
    assert [r["name"] for r in results] == ["0.png", "1.png", "2.png"]
    for result, prediction in zip(results, expected):
        assert result["status"] == "ok"
        assert result["score"] == pytest.approx(prediction.score, abs=1e-5)
        assert result["class_score"] == pytest.approx(prediction.class_score, abs=1e-5)


def test_json_and_multipart_say_the_same(client, png):
    file = png(3)
    coded = base64.b64encode(file).decode()
    body = {"images": [coded, {"name": "b.png", "data": coded}], "fields": ["score"]}
    both = client.post("/v1/score", json=body).json()["results"]
    form = post(client, file, fields="score").json()["results"][0]
    assert set(form) == {"index", "name", "status", "score"}
    assert both[1]["name"] == "b.png"
    assert both[0]["score"] == pytest.approx(form["score"], abs=1e-5)


def test_a_broken_image_spoils_its_own_result_only(client, png):
    results = post(client, png(1), b"no image", png(2)[:100], png(4)).json()["results"]
    assert [r["status"] for r in results] == ["ok", "error", "error", "ok"]
    assert results[1]["problem"]["code"] == "invalid_image"
    assert results[1]["problem"]["status"] == 422


@pytest.mark.parametrize("kind", ["png16", "npy"])
def test_maps_hold_the_raw_probabilities_at_the_inputs_size(client, png, tiny_detector, kind):
    file = png(5, (70, 41), defect=True)
    found = post(client, file, map=kind).json()["results"][0]["map"]
    data = io.BytesIO(base64.b64decode(found["data"]))
    expected = tiny_detector.predict([file])[0].anomaly_map
    if kind == "npy":
        values = np.load(data, allow_pickle=False)
    else:
        values = np.asarray(Image.open(data)).astype(np.float64) / 65535
    assert values.shape == (41, 70)
    np.testing.assert_allclose(values, expected, atol=1e-5 if kind == "npy" else 2e-5)


def test_overlay_rle_and_polygons(client, png, tiny_detector):
    file = png(6, (70, 41), defect=True)
    shown = post(client, file, map="overlay").json()["results"][0]["map"]["data"]
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (70, 41)
    values = tiny_detector.predict([file])[0].anomaly_map
    cut = float(np.quantile(values, 0.7))
    answer = post(client, file, map="rle", pixel_threshold=cut).json()["results"][0]
    lengths = answer["map"]["data"]
    inside = np.repeat(np.arange(len(lengths["counts"])) % 2, lengths["counts"])
    inside = inside.reshape(lengths["size"], order="F").astype(bool)
    assert (inside == (values >= np.float32(cut))).mean() > 0.999
    assert sum(region["area"] for region in answer["regions"]) == inside.sum()
    polygons = post(client, file, map="polygons", pixel_threshold=cut).json()["results"][0]
    assert len(polygons["map"]["data"]) == len(answer["regions"])


def test_an_overlay_frames_the_strongest_place_of_an_anomalous_image(client, png):
    """As those of `mrad score`; where nothing is anomalous, or nobody can say so, nothing is framed."""
    file = png(6, (140, 82), defect=True)

    def framed(**options) -> tuple[list[int], np.ndarray]:
        (found,) = post(client, file, map="overlay", **options).json()["results"]
        data = base64.b64decode(found["map"]["data"])
        shown = np.asarray(Image.open(io.BytesIO(data)))
        return found["peak_box"], (shown == SPOT).all(axis=2)

    (left, top, right, bottom), frame = framed(threshold=0.0)
    assert frame[top, left:right].all()
    assert frame[top:bottom, right - 1].all()
    assert not frame[top + 2 : bottom - 2, left + 2 : right - 2].any()
    for options in ({"threshold": 1.0}, {}):
        assert not framed(**options)[1].any()


def test_warnings_may_be_asked_for_by_name(client, png):
    (result,) = post(client, png(3, (3, 3)), fields="score,warnings").json()["results"]
    assert any(text.startswith("too_small") for text in result["warnings"])
    (alone,) = post(client, png(3, (3, 3)), fields="warnings").json()["results"]
    assert set(alone) == {"index", "name", "status", "warnings"}


def test_evidence_names_the_nearest_entries(client, png, tiny_detector, tiny_bank):
    file = png(0, defect=True)
    evidence = post(client, file, evidence=2).json()["results"][0]["evidence"]
    assert [found["level"] for found in evidence] == ["image", "image", "patch", "patch"]
    assert evidence[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert evidence[0]["source"] == "0.png"
    assert evidence[0]["label"] == "anomalous"
    x0, y0, x1, y1 = evidence[2]["query_box"]
    assert 0 <= x0 < x1 <= 80
    assert 0 <= y0 < y1 <= 64


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"map": "jpeg"}, "invalid_request"),
        ({"evidence": "-1"}, "invalid_request"),
        ({"threshold": "nan"}, "invalid_request"),
        ({"threshold": "0.5", "target_fpr": "0.1"}, "invalid_request"),
        ({"fields": "score,colour"}, "invalid_request"),
        ({"colour": "red"}, "invalid_request"),
        ({"target_fpr": "0.1"}, "calibration_error"),
        ({"map": "rle"}, "calibration_error"),
        ({"bank": "none"}, "unknown_bank"),
    ],
)
def test_options_that_make_no_sense(client, png, data, code):
    answer = post(client, png(1), **data)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_bodies_that_are_none(client):
    for arguments in (
        {"content": b"x", "headers": {"content-type": "text/plain"}},
        {"content": b"{", "headers": {"content-type": "application/json"}},
        {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}},
        {"json": {"images": []}},
        {"json": {"images": ["%%%"], "url": "http://127.0.0.1/x.png"}},
        {"content": b"--a", "headers": {"content-type": "multipart/form-data; boundary=a"}},
        {"content": b"--a", "headers": {"content-type": "multipart/form-data"}},
        {"data": {"threshold": "1"}, "files": {"other": b"x"}},
    ):
        answer = client.post("/v1/score", **arguments)
        assert answer.status_code in (415, 422), answer.text
        assert answer.json()["code"] in ("unsupported_media_type", "invalid_request")
    misnamed = client.post("/v1/score", files={"image": bytes(100_000)}).json()
    assert (
        misnamed["detail"] == "form field 'image' holds a file: send images in the field `images`"
    )
    coded = client.post("/v1/score", json={"images": ["%%%"]}).json()["results"][0]
    assert coded["problem"]["code"] == "invalid_request"


def test_the_body_may_be_one_image_file_with_its_options_in_the_query(client, png):
    whole = post(client, png(1), evidence="2").json()["results"][0]
    sent = {"content": png(1), "headers": {"content-type": "image/png"}}
    answer = client.post("/v1/score", params={"evidence": 2, "name": "a.png"}, **sent)
    (alone,) = answer.json()["results"]
    assert alone["name"] == "a.png"
    assert {**alone, "name": ""} == {**whole, "name": ""}
    parts = client.post("/v1/score?fields=score", **sent).json()["results"][0]
    assert set(parts) == {"index", "name", "status", "score"}


def test_options_of_the_query_go_with_any_body_and_are_said_once(client, png):
    coded = base64.b64encode(png(1)).decode()
    form = {"files": {"images": png(1)}}
    for body in (form, {"json": {"images": [coded]}}):
        answer = client.post("/v1/score?fields=score", **body)
        assert set(answer.json()["results"][0]) == {"index", "name", "status", "score"}
    for path, body in {
        "/v1/score?threshold=1": form | {"data": {"threshold": "1"}},
        "/v1/score?map=npy": {"json": {"images": [coded], "map": "npy"}},
        "/v1/score?map=npy&map=none": form,
        "/v1/score?colour=red": form,
        "/v1/score?name=a": form,
    }.items():
        answer = client.post(path, **body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), path


def test_a_body_that_is_no_image_file_says_so(client):
    kind = {"content-type": "image/jpeg"}
    empty = client.post("/v1/score", content=b"", headers=kind)
    assert (empty.status_code, empty.json()["code"]) == (422, "invalid_request")
    broken = client.post("/v1/score", content=b"none", headers=kind).json()["results"][0]
    assert broken["problem"]["code"] == "invalid_image"


def test_the_description_names_every_field_and_needs_no_network(client):
    document = client.get("/openapi.json").json()
    schema = document["components"]["schemas"]["Result"]["properties"]
    assert set(FIELDS) <= set(schema)
    content = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "image/*"}
    example = content["application/json"]["examples"]["one"]["value"]
    assert client.post("/v1/score", json=example).json()["results"][0]["status"] == "ok"
