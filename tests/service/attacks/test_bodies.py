"""What a body may become: JSON of many values, compressed bombs, many pixels, huge numbers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from mrad_service.errors import DeadlineError, QueueFullError
from mrad_service.scheduler.room import Room, pixels_of
from PIL import Image

MIB = 1 << 20
INFER = "/v2/models/tiny/infer"


def filled(start: str, element: str, end: str, size: int = MIB) -> bytes:
    """`start`, as many elements as fit, `end`."""
    return (start + ",".join([element] * (size // (len(element) + 1))) + end).encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", filled('{"images":[', "[]", "]}")),
        ("/v1/score", filled('{"images":[', "{}", "]}")),
        ("/v1/score", filled('{"images":[', '""', "]}")),
        ("/v1/score", filled('{"fields":[', "[]", '],"images":[""]}')),
        ("/v1/score", filled('{"images":[""],"roi":{"size":[1,1],"polygons":[', "[]", "]}}")),
        ("/v1/score", filled("{", '"a":0', "}")),
        (INFER, filled('{"inputs":[', "[]", "]}")),
        (INFER, filled('{"inputs":[', "{}", "]}")),
        (INFER, filled('{"outputs":[', "{}", '],"inputs":[]}')),
        (
            INFER,
            filled(
                '{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[1,1,1,3],"data":[',
                "[]",
                "]}]}",
            ),
        ),
    ],
)
def test_a_megabyte_of_json_costs_little(client, path: str, body: bytes) -> None:
    client.get("/health/live")
    began = time.process_time()
    tracemalloc.start()
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code in (413, 422), answer.text[:300]
    assert len(answer.content) < 10_000
    assert peak < 80 * MIB, f"{peak / MIB:.0f} MiB"
    assert time.process_time() - began < 6, "it takes a tenth of that; tracing slows it down"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" + "0" * 5000, "1e999", "NaN", '"x"'])
def test_huge_numbers_are_refused(client, png, number: str) -> None:
    for path, body in (
        ("/v1/score", f'{{"images":[""],"threshold":{number}}}'),
        ("/v1/score", f'{{"images":[""],"evidence":{number}}}'),
        ("/v1/score", f'{{"images":[""],"roi":{{"size":[{number},1]}}}}'),
        (INFER, f'{{"inputs":[{INPUT}],"parameters":{{"threshold":{number}}}}}'),
        (INFER, f'{{"inputs":[{INPUT}],"parameters":{{"target_fpr":{number}}}}}'),
        (INFER, f'{{"inputs":[{{"name":"images","datatype":"BYTES","shape":[{number}]}}]}}'),
        (INFER, f'{{"inputs":[{{"name":"pixels","datatype":"UINT8","shape":[1,{number},1,3],'
         '"data":[1]}]}'),
    ):  # fmt: skip
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (413, 422), (path, body[:80], answer.text[:300])
    if number.isdigit():
        headers = {"Inference-Header-Content-Length": number}
        assert client.post(INFER, content=b"{}", headers=headers).status_code == 422
        form = {"threshold": number}
        files = {"images": png(1)}
        assert client.post("/v1/score", files=files, data=form).status_code == 422


INPUT = '{"name":"images","datatype":"BYTES","shape":[1],"data":[""]}'


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"treshold": 0.5}},
        {"parameters": {"timeout": 5}},
        {"inputs": [json.loads(INPUT) | {"parameters": {"shared_memory_region": "x"}}]},
        {"outputs": [{"name": "score", "parameters": {"classification": 3}}]},
        {"colour": "red"},
    ],
)
def test_parameters_that_are_not_known_are_refused(client, body) -> None:
    answer = client.post(INFER, json={"inputs": [json.loads(INPUT)]} | body)
    assert answer.status_code == 422
    assert "unknown" in answer.text or "Extra inputs" in answer.text


def test_a_compressed_bomb_is_cut(connect) -> None:
    client = connect(max_body_bytes=MIB)
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeeze.compress(bytes(MIB)) for _ in range(200)) + squeeze.flush()
    tracemalloc.start()
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = client.post("/v1/score", content=bomb, headers=headers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert peak < 32 * MIB
    for content, status in ((b"no gzip", 422), (gzip.compress(b"{}")[:-9], 422)):
        assert client.post("/v1/score", content=content, headers=headers).status_code == status
    headers["Content-Encoding"] = "br"
    assert client.post("/v1/score", content=b"x", headers=headers).status_code == 415


def test_a_compressed_form_is_read(client, png) -> None:
    request = client.build_request("POST", "/v1/score", files={"images": png(1)})
    packed = gzip.compress(request.read())
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
    answer = client.post("/v1/score", content=packed, headers=headers)
    assert answer.json()["results"][0]["status"] == "ok"
    counted = client.get("/metrics").text
    assert 'mrad_requests_total{code="200",route="/v1/score"} 1.0' in counted
    assert "unmatched" not in counted


@pytest.mark.parametrize(("first", "second"), [("0.9", "0.1"), ("0.1", "0.1")])
def test_an_option_that_is_said_twice_is_refused(client, png, first, second) -> None:
    """One of the two would be lost in silence, and the verdict with it."""
    image = base64.b64encode(png(1)).decode()
    text = f'{{"images": ["{image}"], "threshold": {first}, "threshold": {second}}}'
    pairs = {"threshold": [first, second]}
    form = client.build_request("POST", "/v1/score", files={"images": png(1)}, data=pairs)
    kind = {"Content-Type": "application/json"}
    for answer in (client.post("/v1/score", content=text, headers=kind), client.send(form)):
        assert answer.status_code == 422
        assert "'threshold' twice" in answer.json()["detail"]


def test_routes_without_images_take_no_large_body(client) -> None:
    for path in ("/v1/banks/tiny/activate", "/v1/banks/tiny/calibrate"):
        answer = client.post(path, content=bytes(100_000))
        assert answer.status_code == 413, path


def test_answers_count_as_bytes_in_flight(connect, png) -> None:
    client = connect(max_inflight_bytes=2_000_000)
    files = [("images", png(1, (700, 700)))]
    answer = client.post("/v1/score", files=files, data={"map": "npy"})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert client.post("/v1/score", files=files).status_code == 200
    assert client.app.state.runtime.room.held == 0


# -- the room for pixels ---------------------------------------------------------------------------


def test_a_room_lets_the_first_that_waits_in_before_others() -> None:
    room, first, second = Room(100, "pixels"), object(), object()
    assert room.try_take(60, "a")
    assert not room.try_take(60, first)
    assert not room.try_take(30, second), "it came later and is not small"
    assert room.try_take(5, second)
    room.give(60)
    assert room.try_take(60, first)
    assert room.try_take(30, second)
    with pytest.raises(QueueFullError):
        room.take(20)
    room.give(95)
    assert room.try_take(1000, first), "alone even what is larger than the room"
    with pytest.raises(DeadlineError), room.reserved(1, time.monotonic()):
        pass
    assert not room.try_take(50, first)
    room.forget(first)
    room.give(1000)
    assert room.held == 0


def test_pixels_are_known_before_they_are_decoded(png) -> None:
    assert pixels_of(png(1, (30, 20))) == 600
    assert pixels_of(np.zeros((4, 5, 3), np.uint8)) == 20
    assert pixels_of(b"no image") == pixels_of(b"") == 0


def large(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, "PNG")
    return buffer.getvalue()


def test_large_images_are_judged_one_by_one(connect) -> None:
    client = connect(max_decoded_bytes=64 * MIB, decode_threads=4)
    pixels = client.app.state.runtime.batcher.pixels
    seen, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            seen[0] = max(seen[0], pixels.held)

    watcher = threading.Thread(target=look)
    watcher.start()
    files = [("images", large(1200)) for _ in range(6)]
    answer = client.post("/v1/score", files=files, data={"map": "overlay", "fields": "score,map"})
    stop.set()
    watcher.join()
    assert [r["status"] for r in answer.json()["results"]] == ["ok"] * 6
    assert 0 < seen[0] <= 64 * MIB, "40 bytes for each of 1.44 million pixels: one at a time"
    assert pixels.held == 0
