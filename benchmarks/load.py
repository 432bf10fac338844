"""A load generator that costs little: prebuilt requests over kept connections, on raw sockets; and what
benchmarks ask of a server's process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Run:
    """What one run saw."""

    images: int
    seconds: float
    latencies: Sequence[float]
    """Seconds of each request that was answered with 200."""
    refused: int
    """Answers of 429 or 503."""
    failed: int
    """Everything else, broken connections too."""

    @property
    def rate(self) -> float:
        """Images a second that were answered."""
        return self.images / self.seconds

    def quantile(self, q: float) -> float:
        """Of the latencies, seconds."""
        return float(np.quantile(self.latencies, q)) if self.latencies else float("nan")


def post(path: str, content_type: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def form(files: Sequence[bytes]) -> tuple[str, bytes]:
    """Content type and body of a form with the files in `images`."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="i.jpg"\r\n\r\n'
        + file
        + b"\r\n"
        for file in files
    ]
    return "multipart/form-data; boundary=x", b"".join([*parts, b"--x--\r\n"])


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return status


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], ready: Callable[[], bool], **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process from when it is ready; it is ended afterwards. `options` are `Popen`'s."""
    process = subprocess.Popen(command, **options)
    try:
        while not ready():
            if process.poll() is not None:
                raise SystemExit("a process of the benchmark ended early")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int, request: bytes) -> bool:
    """Whether a server answers the request with 200."""
    try:
        return bool(drive(port, [request], 1, 1).latencies)
    except (OSError, EOFError):
        return False


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no VmRSS")


LONGEST = 300.0
"""Seconds after which a run that hangs is given up."""


def drive(port: int, requests: Sequence[bytes], images_each: int, clients: int) -> Run:
    """Send every request once; each client sends its next when its last was answered.

    Raises `TimeoutError`.
    """
    work = _drive(port, list(requests), images_each, clients)
    return asyncio.run(asyncio.wait_for(work, LONGEST))


async def _drive(port: int, waiting: list[bytes], images_each: int, clients: int) -> Run:
    latencies: list[float] = []
    bad = [0, 0]

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        while waiting:
            request = waiting.pop()
            began = time.perf_counter()
            try:
                writer.write(request)
                await writer.drain()
                status = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                bad[1] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
                continue
            if status == 200:
                latencies.append(time.perf_counter() - began)
            else:
                bad[0 if status in (429, 503) else 1] += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    return Run(images_each * len(latencies), seconds, latencies, *bad)
