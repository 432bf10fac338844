"""The Open Inference Protocol, spoken with a client that was not written here: tritonclient."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from mrad_service.oip.codec import split_bytes
from PIL import Image

http = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture
def triton(make_app, serve) -> Iterator[http.InferenceServerClient]:
    with serve(make_app()) as url:
        client = http.InferenceServerClient(url.removeprefix("http://"))
        yield client
        client.close()


def images_input(files: list[bytes], binary: bool = True) -> http.InferInput:
    tensor = http.InferInput("images", [len(files)], "BYTES")
    if not binary:
        files = [base64.b64encode(file) for file in files]
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_), binary_data=binary)
    return tensor


def test_a_foreign_client_finds_its_way(triton, png, tiny_detector) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert not triton.is_model_ready("none")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata("tiny")
    assert {tensor["name"] for tensor in metadata["inputs"]} == {"images", "pixels"}

    files = [png(1), png(2, (50, 33), defect=True)]
    expected = tiny_detector.predict(files)
    wanted = [
        http.InferRequestedOutput("score", binary_data=True),
        http.InferRequestedOutput("class_score", binary_data=False),
        http.InferRequestedOutput("map", binary_data=True),
        http.InferRequestedOutput("verdict", binary_data=True),
    ]
    for binary in (True, False):
        answer = triton.infer(
            "tiny",
            [images_input(files, binary)],
            outputs=wanted,
            request_id="r-1",
            parameters={"threshold": 0.0},
        )
        assert answer.get_response()["id"] == "r-1"
        np.testing.assert_allclose(answer.as_numpy("score"), [p.score for p in expected], atol=1e-5)
        np.testing.assert_allclose(
            answer.as_numpy("class_score"), [p.class_score for p in expected], atol=1e-5
        )
        assert answer.as_numpy("verdict").tolist() == [b"anomalous"] * 2
        second = Image.open(io.BytesIO(answer.as_numpy("map")[1]))
        np.testing.assert_allclose(np.asarray(second) / 65535, expected[1].anomaly_map, atol=2e-5)


def test_pixels_give_what_files_give(triton, png) -> None:
    file = png(4)
    pixels = np.asarray(Image.open(io.BytesIO(file)))[None]
    tensor = http.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    one = triton.infer("tiny", [tensor]).as_numpy("score")
    other = triton.infer("tiny", [images_input([file])]).as_numpy("score")
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_and_answers(triton, png, coding: str) -> None:
    plain = triton.infer("tiny", [images_input([png(1)])])
    packed = triton.infer(
        "tiny",
        [images_input([png(1)])],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_allclose(packed.as_numpy("score"), plain.as_numpy("score"), atol=1e-6)


def test_a_raw_binary_request(client, png) -> None:
    path, headers = "/v2/models/tiny/infer", {"Inference-Header-Content-Length": "0"}
    answer = client.post(path, content=png(1), headers=headers | {"Accept-Encoding": "identity"})
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    outputs = {one["name"]: one for one in json.loads(answer.content[:length])["outputs"]}
    assert outputs["score"]["parameters"]["binary_data_size"] == 4
    score = np.frombuffer(answer.content[length : length + 4], "<f4")[0]
    plain = client.post("/v1/score", files={"images": png(1)}).json()["results"][0]["score"]
    assert score == pytest.approx(plain, abs=1e-5)


def test_there_is_one_version_of_a_model(triton, png) -> None:
    assert triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("tiny", "7")
    with pytest.raises(InferenceServerException, match="no version 7"):
        triton.infer("tiny", [images_input([png(1)])], model_version="7")


def test_versions_are_whole_numbers(client) -> None:
    for version, status in (("1", 200), ("2", 404), ("x", 422), ("9" * 5000, 404)):
        assert client.get(f"/v2/models/tiny/versions/{version}").status_code == status


def test_errors_reach_the_foreign_client(triton, png) -> None:
    with pytest.raises(InferenceServerException, match="image 1"):
        triton.infer("tiny", [images_input([png(1), b"no image"])])
    with pytest.raises(InferenceServerException, match="no bank 'none'"):
        triton.infer("none", [images_input([png(1)])])
    for output, told in (("colour", "unknown outputs"), ("probability", "calibration")):
        outputs = [http.InferRequestedOutput(output)]
        with pytest.raises(InferenceServerException, match=told):
            triton.infer("tiny", [images_input([png(1)])], outputs=outputs)


def tensor(**changes):
    return {"name": "images", "datatype": "BYTES", "shape": [1], "data": [""]} | changes


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        {"inputs": []},
        {"inputs": [tensor(), tensor()]},
        {"inputs": [tensor(name="x")]},
        {"inputs": [tensor(shape=[2])]},
        {"inputs": [tensor(shape=[-1])]},
        {"inputs": [tensor(shape=[1, 3])]},
        {"inputs": [tensor(data=None)]},
        {"inputs": [tensor(data=[1])]},
        {"inputs": [tensor(data=["%%"])]},
        {"inputs": [tensor(parameters={"binary_data_size": 5})]},
        {"inputs": [tensor(parameters={"binary_data_size": "x"})]},
        {"inputs": [tensor(name="pixels", datatype="UINT8", shape=[1, 2, 2, 3], data=[1])]},
        {"inputs": [tensor(name="pixels", datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 999])]},
        {"inputs": [tensor(name="pixels", datatype="UINT8", shape=[1, 1, 1, 3], data=["a"] * 3)]},
        {"inputs": [tensor()], "parameters": {"threshold": "high"}},
    ],
)
def test_requests_that_make_no_sense(client, body) -> None:
    given = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = client.post("/v2/models/tiny/infer", **given)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == answer.json()["detail"]


def test_limits_hold_here_too(connect, png) -> None:
    coded = base64.b64encode(png(1)).decode()
    body = {"inputs": [tensor(shape=[2], data=[coded] * 2)], "outputs": [{"name": "map"}]}
    for limits, code in (
        ({"max_images": 1}, "too_many_images"),
        ({"max_file_bytes": 1000}, "body_too_large"),
        ({"max_response_bytes": 1000}, "response_too_large"),
    ):
        answer = connect(writable=False, **limits).post("/v2/models/tiny/infer", json=body)
        assert (answer.status_code, answer.json()["code"]) == (413, code)


def test_lengths_that_do_not_fit(client) -> None:
    for length in ("5", "-1", "x", "999999"):
        answer = client.post(
            "/v2/models/tiny/infer",
            content=b"{}",
            headers={"Inference-Header-Content-Length": length},
        )
        assert answer.status_code == 422
    for raw in (b"\x01", b"\x05\0\0\0abc"):
        with pytest.raises(Exception, match="ends inside"):
            list(split_bytes(raw))
