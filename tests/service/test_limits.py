"""Limits on what is sent: enforced while it streams, each with its own answer."""

from __future__ import annotations

import io
import socket
import time
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

BOUNDARY = "x"


def part(name: str, data: bytes) -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    )
    return head.encode() + data + b"\r\n"


def send(url: str, chunks: Iterator[bytes]) -> httpx.Response:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return httpx.post(f"{url}/v1/score", content=chunks, headers=headers, timeout=60)


def test_an_endless_body_is_cut_while_it_streams(make_app, serve) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield part("a.png", b"")[:-2]
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    with serve(make_app(max_body_bytes=1 << 20)) as url:
        try:
            answer = send(url, endless())
            assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        except httpx.WriteError:
            pass  # the server closed while this side was still sending
        assert sent < 64 << 20, "it was not read to its end"
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_length_that_is_too_large_is_refused_by_its_header(make_app, serve) -> None:
    with serve(make_app(max_body_bytes=1000)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as wire:
            wire.sendall(
                b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n"
            )
            assert b" 413 " in wire.recv(4096), "before a byte of it was sent"


def test_of_a_wrong_address_the_size_is_no_matter(connect) -> None:
    client = connect()
    for method, path, status in (
        ("POST", "/v1/scores", 404),
        ("POST", "/v1/score/", 404),
        ("PUT", "/v1/score", 405),
        ("POST", "/v1/banks/tiny/calibrate", 413),
    ):
        assert client.request(method, path, content=bytes(1 << 20)).status_code == status, path


def test_a_body_that_does_not_arrive_times_out(make_app, serve) -> None:
    with serve(make_app(upload_seconds=0.3)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as wire:
            wire.sendall(
                b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
            )
            assert b" 408 " in wire.recv(4096)


def test_one_file_over_the_limit_spoils_its_own_result(connect, png) -> None:
    client = connect(max_file_bytes=20_000)
    files = [("images", png(1)), ("images", bytes(30_000)), ("images", png(2))]
    results = client.post("/v1/score", files=files).json()["results"]
    assert [r["status"] for r in results] == ["ok", "error", "ok"]
    assert results[1]["problem"]["code"] == "body_too_large"
    assert "max_file_bytes: send it compressed" in results[1]["problem"]["detail"]
    kind = {"content-type": "image/png"}
    alone = client.post("/v1/score", content=bytes(30_000), headers=kind).json()["results"][0]
    assert alone["problem"]["code"] == "body_too_large"
    taught = client.post(
        "/v1/memory/entries", files={"image": bytes(30_000)}, data={"label": "normal"}
    )
    assert (taught.status_code, taught.json()["code"]) == (413, "body_too_large")


def test_too_many_images(connect, png) -> None:
    client = connect(max_images=3)
    answer = client.post("/v1/score", files=[("images", png(1))] * 4)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")
    answer = client.post("/v1/score", json={"images": ["aaaa"] * 4})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")


def test_memory_bodies_have_a_limit_of_their_own(connect) -> None:
    client = connect(max_file_bytes=1000)
    answer = client.post(
        "/v1/memory/entries", files={"image": bytes(3 << 20)}, data={"label": "normal"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_all_requests_together_have_a_limit(make_app, serve, png) -> None:
    with serve(make_app(max_inflight_bytes=50_000)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as wire:
            wire.sendall(
                b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n"
                b"Content-Type: application/json\r\n\r\n" + b" " * 49_000
            )
            time.sleep(0.3)
            refused = httpx.post(f"{url}/v1/score", files={"images": png(1)}, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        end = time.monotonic() + 20
        while (
            httpx.post(f"{url}/v1/score", files={"images": png(1)}, timeout=60).status_code != 200
        ):
            assert time.monotonic() < end, "what a client held is free once it has left"


def bomb() -> bytes:
    """A PNG of 64 million pixels in a few dozen kilobytes."""
    head = io.BytesIO()
    Image.new("L", (1, 1)).save(head, "PNG")
    side = 8_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(side + 1)) for _ in range(side)) + squeeze.flush()
    size = side.to_bytes(4, "big") * 2
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", size + b"\x08\0\0\0\0"), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    )


def test_a_decompression_bomb_is_refused_before_it_is_decoded(connect, png) -> None:
    began = time.process_time()
    client, data = connect(max_pixels=50_000_000), bomb()
    made = time.process_time() - began
    began = time.process_time()
    results = client.post("/v1/score", files=[("images", data), ("images", png(1))]).json()
    assert [r["status"] for r in results["results"]] == ["error", "ok"]
    assert results["results"][0]["problem"]["code"] == "image_too_large"
    assert time.process_time() - began < made + 5
    taught = client.post("/v1/memory/entries", files={"image": data}, data={"label": "normal"})
    assert taught.json()["code"] == "image_too_large"


def test_an_answer_has_a_limit(connect, png) -> None:
    client = connect(max_response_bytes=30_000)
    small = client.post("/v1/score", files=[("images", png(1))] * 3, data={"map": "none"})
    assert small.status_code == 200
    large = client.post("/v1/score", files=[("images", png(1))] * 3, data={"map": "npy"})
    assert (large.status_code, large.json()["code"]) == (413, "response_too_large")


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf"])
def test_a_deadline_that_is_none(client, png, seconds) -> None:
    answer = client.post(
        "/v1/score", files={"images": png(1)}, headers={"X-Request-Timeout": seconds}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
