"""Ten times the rate that a server can do: what is accepted stays fast, what is not is refused cleanly.

The offered load does not wait for answers (open loop), as cameras do not. A request brings eight
images, the queue holds twelve and a device batch four: the next request is let in when half of the
one before is done, so it takes half as long again as alone. That is how a line that wants bounded
latency sets it (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.load import answers, drive, form, free_port, post, resident, running
from benchmarks.service_worker import detector, queries
from benchmarks.tables import Table

IMAGES = 8
"""Of each request."""
BATCH = IMAGES // 2
QUEUE = IMAGES + BATCH
FACTOR = 10
MIB = 1 << 20


@dataclass
class Seen:
    """What an open-loop run saw."""

    seconds: float = 0.0
    accepted: list[float] = field(default_factory=list)
    """Seconds of each request answered with 200."""
    refused: list[float] = field(default_factory=list)
    """Seconds until each 429."""
    unclean: list[str] = field(default_factory=list)
    """Whatever was neither a 200 nor a 429 with code and Retry-After."""
    memory: list[int] = field(default_factory=list)
    """Bytes of the server, sampled along the run."""

    def quantile(self, q: float) -> float:
        """Of the accepted requests, seconds."""
        return float(np.quantile(self.accepted, q)) if self.accepted else float("nan")

    @property
    def growth(self) -> float:
        """MiB: the highest of the last half above the highest of the first half."""
        half = len(self.memory) // 2
        return (max(self.memory[half:]) - max(self.memory[:half])) / MIB if half else float("nan")


def serve(port: int) -> None:
    """The server: the shipped encoder (a seeded one when quick) on the bundled boards."""
    from mrad_service.serving import make_server
    from mrad_service.settings import Settings
    from mrad_service.telemetry.logs import configure

    judge = detector()
    configure("json", "error")
    with tempfile.TemporaryDirectory() as folder:
        judge.bank.save(Path(folder) / "bank")
        settings = Settings(
            bank=Path(folder) / "bank", auth="off", port=port, max_batch=BATCH,
            queue_images=QUEUE,
        )  # fmt: skip
        make_server(settings, encoder_of=lambda bank, device: judge.encoder).run()


@contextmanager
def server(quick: bool) -> Iterator[tuple[int, int]]:
    """Its process id and port, once it answers."""
    port = free_port()
    code = f"from benchmarks.overload import serve; serve({port})"
    with running(
        [sys.executable, "-c", code],
        lambda: answers(port, _request(1)),
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MRAD_BENCH_QUICK": str(int(quick))},
    ) as process:
        yield process.pid, port


def _request(images: int) -> bytes:
    files = queries()
    return post("/v1/score", *form([files[i % len(files)] for i in range(images)]))


async def offer(port: int, pid: int, rate: float, seconds: float) -> Seen:
    """`rate` requests a second for so long, whether answers come or not; waits for the last."""
    seen, request = Seen(), _request(IMAGES)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one() -> None:
        began = time.perf_counter()
        try:
            reader, writer = idle.pop() if idle else await _connect(port)
            writer.write(request)
            await writer.drain()
            status, headers, body = await _answer(reader)
        except (OSError, EOFError) as error:
            seen.unclean.append(repr(error))
            return
        took = time.perf_counter() - began
        if status == 200:
            seen.accepted.append(took)
        elif status == 429 and headers.get("retry-after", "").isdigit() and _code(body):
            seen.refused.append(took)
        else:
            seen.unclean.append(f"{status} {body[:200]!r}")
        if headers.get("connection") == "close":
            writer.close()
        else:
            idle.append((reader, writer))

    began = time.perf_counter()
    tasks = []
    for number in range(max(1, int(rate * seconds))):
        wait = began + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        if len(seen.memory) <= 2 * (time.perf_counter() - began):
            seen.memory.append(resident(pid))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    seen.seconds = time.perf_counter() - began
    for _, writer in idle:
        writer.close()
    return seen


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


def _code(body: bytes) -> bool:
    try:
        return json.loads(body)["code"] == "queue_full"
    except (ValueError, KeyError, TypeError):
        return False


def measure(seconds: float, quick: bool) -> tuple[Seen, Seen, float]:
    """Unloaded at a fifth of the rate, overloaded at ten times it, and the rate in images/s."""
    with server(quick) as (pid, port):
        drive(port, [_request(IMAGES)] * 4, IMAGES, 1)
        run = drive(port, [_request(BATCH)] * (16 if quick else 120), BATCH, 3)
        rate = run.rate / IMAGES
        calm = asyncio.run(offer(port, pid, rate / 5, seconds))
        flood = asyncio.run(offer(port, pid, FACTOR * rate, seconds))
    return calm, flood, run.rate


def run(quick: bool) -> list[Table]:
    """A minute each, unloaded and overloaded."""
    calm, flood, rate = measure(6 if quick else 60, quick)
    rows = [
        (
            name,
            round((len(s.accepted) + len(s.refused) + len(s.unclean)) / s.seconds, 1),
            len(s.accepted), len(s.refused), len(s.unclean),
            1e3 * s.quantile(0.5), 1e3 * s.quantile(0.99),
            max(s.memory) / MIB, f"{s.growth:+.1f}",
        )
        for name, s in (("a fifth of the rate", calm), (f"{FACTOR} times the rate", flood))
    ]  # fmt: skip
    slower = flood.quantile(0.99) / calm.quantile(0.99)
    notes = [
        f"The rate is {rate:.1f} images/s: three clients that wait, {BATCH} images a request.",
        f"Accepted requests' p99 under overload is {slower:.2f} times the unloaded one, and the "
        f"server judges {IMAGES * len(flood.accepted) / flood.seconds / rate:.0%} of the rate.",
        f"{IMAGES} images a request, max_batch {BATCH}, queue_images {QUEUE}, otherwise the defaults.",
        "Load generator and server share the machine's cores; growth is the memory's highest value "
        "of the second half of the run above that of the first.",
    ]
    columns = ("offered", "requests/s", "200", "429, clean", "anything else", "p50, ms", "p99, ms",
               "memory, MiB", "growth, MiB")  # fmt: skip
    return [Table("Overload", columns, rows, notes)]
