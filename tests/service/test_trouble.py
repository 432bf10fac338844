"""Devices out of memory, clients that leave, deadlines, full queues, the end: through HTTP."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog
import torch
from fastapi.testclient import TestClient
from mrad_service import problems
from mrad_service.scheduler import retry
from structlog.testing import capture_logs

from mrad import Encoder


@pytest.fixture
def choke(tiny_encoder: Encoder, monkeypatch) -> dict[str, Any]:
    """A hold on the device: how many images fit, and an event that it waits for."""
    hold: dict[str, Any] = {"fits": 1000, "go": threading.Event(), "entered": threading.Event()}
    hold["go"].set()
    encode = tiny_encoder.encode_pixels

    def encode_pixels(pixels: torch.Tensor, **options: Any) -> Any:
        hold["entered"].set()
        assert hold["go"].wait(60)
        if len(pixels) > hold["fits"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(pixels, **options)

    monkeypatch.setattr(tiny_encoder, "encode_pixels", encode_pixels)
    return hold


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


def post(client: Any, *files: bytes, **options: Any) -> httpx.Response:
    return client.post("/v1/score", files=[("images", file) for file in files], **options)


def test_out_of_memory_halves_then_refuses_and_the_process_lives(client, png, choke) -> None:
    files = [png(seed) for seed in range(8)]
    whole = [r["score"] for r in post(client, *files).json()["results"]]
    choke["fits"] = 3
    halved = [r["score"] for r in post(client, *files).json()["results"]]
    assert halved == pytest.approx(whole, abs=1e-5)
    choke["fits"] = 0
    refused = post(client, *files)
    assert (refused.status_code, refused.json()["code"]) == (503, "device_out_of_memory")
    assert int(refused.headers["retry-after"]) >= 1
    taught = client.post("/v1/memory/entries", files={"image": png(1)}, data={"label": "normal"})
    assert taught.json()["code"] == "device_out_of_memory"
    choke["fits"] = 1000
    assert post(client, *files).status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_a_device_that_breaks_is_told_without_its_insides(connect, png, choke, monkeypatch) -> None:
    client = connect()
    choke["fits"] = 1000
    encoder = client.app.state.runtime.model().detectors[0].encoder

    def broken(*given: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm")

    monkeypatch.setattr(encoder, "encode_pixels", broken)
    answer = post(client, png(1))
    assert (answer.status_code, answer.json()["code"]) == (500, "device_failed")
    assert "CUBLAS" not in answer.text


def test_a_fault_of_the_program_is_none_of_the_device_and_is_logged_with_the_request(
    connect, png, choke, monkeypatch
) -> None:
    client = connect()
    detector = client.app.state.runtime.model().detectors[0]
    head, number = type(detector.head), itertools.count()
    judge = head.__call__

    def faulty(*given: Any, **options: Any) -> Any:
        if len(given[1]) > 1 or next(number) % 2:
            raise KeyError("no such cell")
        return judge(*given, **options)

    def asked(*files: bytes) -> tuple[httpx.Response, dict[str, Any]]:
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
            answer = post(client, *files, headers={"X-Request-ID": "a-request-of-ours"})
        (told,) = (one for one in logs if one.get("exc_info"))
        return answer, told

    # A logger that was used before holds on to the settings of that time.
    monkeypatch.setattr(problems, "log", structlog.get_logger())
    monkeypatch.setattr(head, "__call__", faulty)
    one = asked(png(1), png(2))
    number = itertools.count(1)
    for answer, told in (one, asked(png(1))):
        assert told["request_id"] == "a-request-of-ours"
        assert isinstance(told["exc_info"].__cause__, KeyError)
        assert told["code"] == "internal_error"
        assert "no such cell" not in answer.text
    # Either may be judged first, where they were no batch together.
    failed, judged = sorted(one[0].json()["results"], key=lambda result: str(result["status"]))
    assert (failed["status"], judged["status"]) == ("error", "ok")
    assert failed["problem"]["code"] == "internal_error"
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert client.get("/health/ready").status_code == 200


def test_a_device_that_fails_for_good_fails_liveness(
    client, png, tiny_encoder, monkeypatch
) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert client.get("/health/live").status_code == 200
    monkeypatch.setattr(tiny_encoder, "encode_pixels", broken)
    monkeypatch.setattr(retry, "why_lost", lambda device: "CUDA error: an illegal memory access")
    for _ in range(2):  # the second one is refused before it is queued
        answer = post(client, png(1))
        assert (answer.status_code, answer.json()["code"]) == (503, "device_lost")
        assert int(answer.headers["retry-after"]) > 1
    for path, code in (("live", "not_live"), ("ready", "not_ready")):
        told = client.get(f"/health/{path}")
        assert (told.status_code, told.json()["code"]) == (503, code)
        assert "illegal memory access" in told.json()["detail"]


def test_a_worker_thread_that_ended_fails_liveness(connect, png, monkeypatch) -> None:
    client = connect(drain_seconds=0.5)  # what is inside never comes out
    runtime = client.app.state.runtime
    monkeypatch.setattr(runtime.metrics.batches, "observe", lambda size: 1 / 0)
    post(client, png(1), headers={"X-Request-Timeout": "1"})
    until(lambda: client.get("/health/live").status_code == 503)
    assert "device-0" in client.get("/health/live").json()["detail"]


def test_memory_short_while_decoding_is_503(client, png, tiny_encoder, monkeypatch) -> None:
    def full(image: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(tiny_encoder, "prepare", full)
    for path, files, data in (
        ("/v1/score", {"images": png(1)}, None),
        ("/v1/memory/entries", {"image": png(1)}, {"label": "normal"}),
    ):
        answer = client.post(path, files=files, data=data)
        assert (answer.status_code, answer.json()["code"]) == (503, "device_out_of_memory"), path
    monkeypatch.undo()
    assert post(client, png(1)).status_code == 200


def test_a_deadline_drops_the_request(client: TestClient, png, choke) -> None:
    choke["go"].clear()
    late = post(client, png(1), headers={"X-Request-Timeout": "0.2"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    choke["go"].set()
    until(lambda: client.app.state.runtime.batcher.inside == 0)
    assert post(client, png(1)).status_code == 200


def test_a_client_that_leaves_takes_its_images_along(make_app, serve, png, choke) -> None:
    app = make_app(max_batch=1)
    with serve(app) as url:
        choke["go"].clear()
        where = urlsplit(url)
        request = httpx.Request("POST", f"{url}/v1/score", files=[("images", png(1))] * 40)
        with socket.create_connection((where.hostname, where.port), timeout=20) as wire:
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            wire.sendall(f"POST /v1/score HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            until(lambda: app.state.runtime.batcher.inside == 40)
        until(lambda: app.state.runtime.batcher.inside < 10)
        choke["go"].set()
        until(lambda: app.state.runtime.batcher.inside == 0)
        assert httpx.get(f"{url}/health/ready").status_code == 200


def test_a_full_queue_refuses_cleanly_and_recovers(make_app, serve, png, choke) -> None:
    app = make_app(queue_images=8, max_batch=2)
    answers: list[httpx.Response] = []

    with serve(app) as url:

        def ask() -> None:
            files = [("images", png(1))] * 2
            answers.append(httpx.post(f"{url}/v1/score", files=files, timeout=120))

        choke["go"].clear()
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) == 4)
        assert {answer.status_code for answer in answers} == {429}
        assert all(answer.json()["code"] == "queue_full" for answer in answers)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        choke["go"].set()
        for thread in threads:
            thread.join(120)
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 4
        ask()
        assert answers[-1].status_code == 200


def test_the_end_readiness_first_then_no_work_then_gone(connect, png) -> None:
    client = connect()
    runtime = client.app.state.runtime
    runtime.announce_stop()
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert client.get("/health/live").status_code == 200
    assert post(client, png(1)).status_code == 200, "the balancer has not noticed yet"
    runtime.batcher.drain(0)
    refused = post(client, png(1))
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")


def test_what_is_not_done_by_the_drain_limit_is_told_so(make_app, serve, png, choke) -> None:
    app, answers = make_app(drain_seconds=0.2), []
    with serve(app, timeout_graceful_shutdown=1) as url:
        choke["go"].clear()
        ask = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/v1/score", files={"images": png(1)}, timeout=120)
            )
        )
        ask.start()
        until(lambda: app.state.runtime.batcher.inside == 1)
        threading.Timer(3, choke["go"].set).start()
    ask.join(60)
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "draining")
