"""Silent sockets, half-sent headers, clients that do not read: over real sockets, few and short."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from mrad_service.app import create_app
from mrad_service.serving import make_server
from mrad_service.settings import Settings

WAIT = 20.0
"""Longest wait, seconds, for what should come soon; on a busy machine too."""


@pytest.fixture
def guarded(bank_path, tiny_encoder) -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with guarded(**settings) as url:` the server as `mrad serve` starts it."""

    @contextmanager
    def start(**given) -> Iterator[str]:
        settings = Settings(bank=bank_path, auth="off", port=0, batch_wait=0.005, **given)
        server = make_server(settings, encoder_of=lambda bank, device: tiny_encoder)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "stopping was held up"

    return start


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    return socket.create_connection((where.hostname, where.port), timeout=WAIT)


def all_of(wire: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := wire.recv(1 << 16):
            found += data
    return found


def test_silent_sockets_are_closed_and_others_get_in(guarded) -> None:
    with guarded(max_connections=8, max_peer_connections=100, header_seconds=1.0) as url:
        silent = [connect(url) for _ in range(30)]
        assert httpx.get(f"{url}/health/live", timeout=WAIT).status_code == 200
        for wire in silent:
            assert all_of(wire) == b""
            wire.close()
        text = httpx.get(f"{url}/metrics").text
        assert 'mrad_connections_cut_total{reason="evicted"}' in text
        assert 'mrad_connections_cut_total{reason="silent"}' in text


def test_one_peer_does_not_take_all_connections(guarded) -> None:
    with guarded(max_peer_connections=5, header_seconds=WAIT) as url:
        idle = [connect(url) for _ in range(5)]
        assert httpx.get(f"{url}/health/live", timeout=WAIT).status_code == 200, (
            "idle ones give way"
        )
        wires = [connect(url) for _ in range(5)]
        sending = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        for wire in wires:
            wire.sendall(sending + b"Content-Type: application/json\r\n\r\n{")
        assert all(all_of(wire) == b"" for wire in idle)
        time.sleep(0.5)
        with connect(url) as extra:
            answer = all_of(extra)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in answer
        assert b'"peer_connections"' in answer
        for wire in wires:
            wire.close()
    proxied = {"max_peer_connections": 1, "trusted_proxies": ("127.0.0.0/8",)}
    with guarded(**proxied) as url, connect(url), connect(url):
        assert httpx.get(f"{url}/health/live").status_code == 200


@pytest.mark.parametrize("start", [b"GET / HT", b"\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX"])
def test_headers_have_their_time(guarded, start: bytes) -> None:
    with guarded(header_seconds=0.5) as url, connect(url) as wire:
        wire.sendall(start)
        assert b" 408 " in all_of(wire)
        with connect(url) as again:  # and on a connection that is kept alive
            again.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in again.recv(4096)
            again.sendall(start)
            assert b" 408 " in all_of(again)


def test_idle_connections_are_closed(guarded) -> None:
    with guarded(keep_alive_seconds=0.3) as url, connect(url) as wire:
        wire.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in all_of(wire)


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 2_000_000,
        b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(90)),
        b"".join(b"X-%d: a\r\n" % i for i in range(500)),
    ],
)
def test_headers_have_a_total(guarded, headers: bytes) -> None:
    with guarded() as url, connect(url) as wire:
        with contextlib.suppress(ConnectionError):
            wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + b"\r\n\r\n")
        assert all_of(wire)[:12] in (b"HTTP/1.1 431", b"")  # or reset while it was still sending
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert "headers_too_large" in httpx.get(f"{url}/metrics").text


def test_trailers_and_chunk_extensions_are_counted(guarded) -> None:
    head = (
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n"
    )
    for framing in (b"1;" + b"a" * 4_000_000, b"0\r\nX: " + b"a" * 4_000_000):
        with guarded() as url, connect(url) as wire:
            with contextlib.suppress(ConnectionError):
                wire.sendall(head + framing)
            assert b" 200 " not in all_of(wire)
            assert "framing" in httpx.get(f"{url}/metrics").text


def test_requests_do_not_pile_up_on_a_connection(guarded, png) -> None:
    get = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with guarded() as url, connect(url) as wire:
        wire.sendall(get * 10)
        wire.settimeout(WAIT)
        found = b""
        while found.count(b" 200 ") < 10:
            found += wire.recv(1 << 16)
        with connect(url) as many:
            with contextlib.suppress(ConnectionError):
                many.sendall(get * 5000)
            assert all_of(many).count(b" 200 ") < 1000


def ask_for_maps(wire: socket.socket, image: bytes, count: int) -> None:
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n%s\r\n' % image
        for _ in range(count)
    )
    body = (
        b'--x\r\nContent-Disposition: form-data; name="map"\r\n\r\nnpy\r\n' + parts + b"--x--\r\n"
    )
    wire.sendall(
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n%s" % (len(body), body)
    )


def test_a_client_that_does_not_read_is_cut(guarded, png) -> None:
    with guarded(stall_seconds=0.5) as url:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", urlsplit(url).port))
        ask_for_maps(wire, png(1, (1000, 1000)), 8)
        end = time.monotonic() + WAIT
        while 'reason="stalled"' not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.1)
        wire.close()


def test_a_stop_is_not_held_up_by_who_does_not_send_or_read(guarded, png) -> None:
    began = time.monotonic()
    with guarded(stall_seconds=100, header_seconds=100, upload_seconds=100) as url:
        half = connect(url)
        half.sendall(b"GET / HT")
        body = connect(url)
        body.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", urlsplit(url).port))
        ask_for_maps(reader, png(1, (1000, 1000)), 8)
        time.sleep(1.0)
    assert time.monotonic() - began < 30, "longer than two looks at who does not read"
    for wire in (half, body, reader):
        wire.close()


def test_an_application_can_be_made_without_the_server_around_it(bank_path) -> None:
    assert create_app(Settings(bank=bank_path, auth="off")).state.runtime.metrics.text()
