"""What one hostile client costs a server: time and memory of each attack, over loopback, bounded.

Each attack runs against a server of its own (the demo's memory), which is then asked whether it still
answers. `MRAD_ATTACKED` is the PYTHONPATH of another tree that is to be attacked, as of an older release.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.load import free_port, resident, running
from benchmarks.tables import Cell, Table

MIB = 1 << 20
LINGERING = 300
"""Connections that stay open."""
MRAD = str(Path(sys.executable).parent / "mrad")
Attack = Callable[[int, "Server"], str]


def environment() -> dict[str, str]:
    """Of the server's process."""
    path = os.environ.get("MRAD_ATTACKED", "")
    return os.environ | ({"PYTHONPATH": path} if path else {})


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.peak, self._stop = self.resident(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def resident(self) -> int:
        """Bytes in memory now."""
        try:
            return resident(self.process.pid)
        except OSError:  # it ended
            return 0

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self.resident())

    def stop(self) -> float:
        """Seconds until it ended after SIGTERM."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._stop.set()
        self._watch.join()
        return time.monotonic() - began


@contextlib.contextmanager
def server(bank: Path) -> Iterator[Server]:
    """Ready, on a free port."""
    port = free_port()
    command = [MRAD, "serve", "--bank", str(bank), "--no-auth"]
    command += ["--port", str(port), "--log-level", "error"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with running(command, lambda: answers(port), env=environment(), **quiet) as process:
        yield Server(process, port)


def answers(port: int) -> bool:
    """Whether a new client is served."""
    with contextlib.suppress(OSError):
        address = f"http://127.0.0.1:{port}/health/ready"
        return urllib.request.urlopen(address, timeout=5).status == 200
    return False


def post(port: int, path: str, body: bytes, kind: str, *more: bytes) -> str:
    """The status of an answer, or what happened instead."""
    head = [f"POST {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Connection: close"]
    head += [b"Content-Type: " + kind.encode(), b"Content-Length: %d" % len(body), *more]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
            with contextlib.suppress(ConnectionError):
                wire.sendall(b"\r\n".join([*head, b"", b""]) + body)
            return [*wire.recv(64).split(b" "), b"", b"closed"][1].decode() or "closed"
    except OSError as error:
        return type(error).__name__


def json_lists(port: int, _: Server) -> str:
    """1 MiB of `{"images":[[],…]}`."""
    body = b'{"images":[' + b",".join([b"[]"] * (MIB // 3)) + b"]}"
    return post(port, "/v1/score", body, "application/json")


def json_inputs(port: int, _: Server) -> str:
    """1 MiB of `/v2` inputs."""
    body = b'{"inputs":[' + b",".join([b"{}"] * (MIB // 3)) + b"]}"
    return post(port, "/v2/models/bank/infer", body, "application/json")


def headers(port: int, _: Server) -> str:
    """A header of 64 MiB."""
    try:
        return post(
            port, "/v1/score", b"", "text/plain", b"X: " + bytes(64 * MIB).replace(b"\0", b"a")
        )
    except MemoryError:
        return "no memory here"


def overlay(port: int, _: Server) -> str:
    """A small PNG of 49 million pixels, its overlay asked for."""
    buffer = io.BytesIO()
    Image.new("L", (7000, 7000)).save(buffer, "PNG")
    form = b'--x\r\nContent-Disposition: form-data; name="map"\r\n\r\noverlay\r\n--x\r\n'
    form += b'Content-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = form + buffer.getvalue() + b"\r\n--x--\r\n"
    return post(port, "/v1/score", body, "multipart/form-data; boundary=x")


def opened(port: int, start: bytes, count: int) -> list[socket.socket]:
    """So many connections that send this and nothing more."""
    wires = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            wires.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            wires[-1].sendall(start)
    return wires


def lingering(start: bytes) -> Attack:
    """300 connections that linger; how many are left after 15 seconds, and whether others get in."""

    def attack(port: int, _: Server) -> str:
        wires = opened(port, start, LINGERING)
        served = answers(port)
        time.sleep(15)
        left = 0
        for wire in wires:
            wire.setblocking(False)
            try:
                left += bool(wire.recv(1 << 16)) and bool(wire.recv(1))
            except BlockingIOError:
                left += 1
            except OSError:
                pass
            wire.close()
        return (
            f"others {'served' if served else 'not served'}, {left} of {LINGERING} left after 15 s"
        )

    return attack


def unread(port: int, own: Server) -> str:
    """Answers that nobody reads, then SIGTERM."""
    buffer = io.BytesIO()
    Image.new("RGB", (1500, 1500)).save(buffer, "PNG")
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    form = b'--x\r\nContent-Disposition: form-data; name="map"\r\n\r\nnpy\r\n'
    body = form + (part + buffer.getvalue() + b"\r\n") * 4 + b"--x--\r\n"
    head = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % len(body)
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    wires = opened(port, head + body, 3)
    time.sleep(8)
    ended = own.stop()
    for wire in wires:
        wire.close()
    return f"ended {ended:.0f} s after SIGTERM"


def lesson(port: int, _: Server) -> str:
    """A lesson of 25 million pixels in a few KiB, with a mask of the same size."""
    files = []
    for level in (0, 255):
        buffer = io.BytesIO()
        picture = Image.new("L", (5000, 5000))
        picture.paste(level or 90, (100, 100, 900, 900))
        picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    form = b'--x\r\nContent-Disposition: form-data; name="label"\r\n\r\nanomalous\r\n'
    for name, data in zip((b"image", b"mask"), files):
        form += b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n' % name
        form += data + b"\r\n"
    kind = "multipart/form-data; boundary=x"
    return post(port, "/v1/memory/entries", form + b"--x--\r\n", kind)


ATTACKS: dict[str, Attack] = {
    '1 MiB of JSON, `{"images":[[],…]}`': json_lists,
    "1 MiB of JSON, `/v2` inputs": json_inputs,
    "one header of 64 MiB": headers,
    "a PNG of 49 megapixels with overlay": overlay,
    "a lesson of 25 megapixels with its mask": lesson,
    "300 silent sockets": lingering(b""),
    "300 half-sent headers": lingering(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX"),
    "3 clients that do not read 36 MB each": unread,
}


def run(quick: bool) -> list[Table]:
    """Every attack, one after the other; the first two when `quick`."""
    rows: list[Sequence[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [MRAD, "demo", "--out", folder], env=environment(), check=True, capture_output=True,
        )  # fmt: skip
        bank = Path(folder) / "bank"
        for name, attack in list(ATTACKS.items())[: 2 if quick else None]:
            with server(bank) as own:
                idle, began = own.resident(), time.monotonic()
                found = attack(own.port, own)
                seconds = time.monotonic() - began
                alive = "stopped" if own.process.poll() is not None else answers(own.port)
                rows.append((name, found, round(seconds, 1), (own.peak - idle) // MIB, str(alive)))
    columns = ["attack", "answer", "seconds", "memory at most, MiB over idle", "serves afterwards"]
    return [Table("One hostile client, on loopback", columns, rows)]
