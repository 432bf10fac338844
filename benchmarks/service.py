"""Through HTTP against the bare detector, LitServe and OpenVINO: rate and latency, in pairs."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from statistics import median

from benchmarks.load import Run, answers, drive, form, free_port, post
from benchmarks.service_worker import queries
from benchmarks.tables import Table, middle, ratio

BATCH = 8
LARGEST = 32
"""Images of the largest request."""
RAW = "1 image file as the body, 1 client"
SHAPES = [
    ("8 images a request, 2 clients", BATCH, 2),
    (f"{LARGEST} images a request, 1 client", LARGEST, 1),
    ("1 image a request, 16 clients", 1, 16),
    ("1 image a request, 1 client", 1, 1),
    (RAW, 1, 1),
]
OTHERS = ("litserve", "openvino")
OTHER_TITLES = {
    "litserve": ("Against LitServe", "LitServe around the same detector."),
    "openvino": (
        "Against OpenVINO",
        "LitServe around the same detector, whose tower OpenVINO runs, float32.",
    ),
}
WAITING = (1, 4, 16)
"""Clients, each of which waits for its answer."""
COLUMNS = ("", "images/s", "time", "p50 ms", "p99 ms")


@contextmanager
def worker(
    kind: str, threads: int, batch: int = BATCH
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of benchmarks.service_worker, ready; its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.service_worker", kind]
    if kind != "bare":
        command += [str(port), str(batch)]
    # As `mrad` sets it, for all sides alike: left to spin, threads of one take the cores of the other.
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "1000"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment | os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    try:
        if kind == "bare":
            assert process.stdout is not None
            while process.stdout.readline().strip() != "ready":
                _check(process)
        else:
            (probe,) = requests_of("json" if kind == "mrad" else "litserve", 1, 1)
            while not answers(port, probe):
                _check(process)
        yield process, port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        raise SystemExit("a worker of the benchmark ended early")
    time.sleep(0.2)


def requests_of(kind: str, images: int, each: int) -> list[bytes]:
    """Enough requests for so many images."""
    files = queries()
    made = []
    for start in range(0, images, each):
        chosen = [files[(start + i) % len(files)] for i in range(each)]
        if kind == "file":
            made.append(post("/v1/score", "image/jpeg", chosen[0]))
            continue
        if kind == "form":
            made.append(post("/v1/score", *form(chosen)))
            continue
        coded = [base64.b64encode(file).decode() for file in chosen]
        body = {"image": coded[0]} if kind == "litserve" else {"images": coded}
        path = "/predict" if kind == "litserve" else "/v1/score"
        made.append(post(path, "application/json", json.dumps(body).encode()))
    return made


def judge_bare(process: subprocess.Popen[str], images: int, batch: int = BATCH) -> float:
    """Seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(images, batch, file=process.stdin, flush=True)
    return float(json.loads(process.stdout.readline()))


def row(name: str, images: int, times: list[float], seen: list[Run]) -> list[str | float]:
    """A line of a table; latencies are those of all runs together."""
    every = Run(0, 1, [value for run in seen for value in run.latencies], 0, 0)
    assert not any(run.refused or run.failed for run in seen), "every request must be answered"
    shown: list[str | float] = [name, images / median(times), middle(times)]
    if not seen:
        return [*shown, "-", "-"]
    return [*shown, 1000 * every.quantile(0.5), 1000 * every.quantile(0.99)]


def run(quick: bool) -> list[Table]:
    """All tables; `quick` checks the script."""
    runs, seconds = (1, 0.0) if quick else (3, 1.2)
    os.environ["MRAD_BENCH_QUICK"] = str(int(quick))
    threads = len(os.sched_getaffinity(0))
    tables = []
    with worker("mrad", threads) as (_, port):
        with worker("bare", threads) as (bare, _):
            images = images_for(bare, seconds)
            tables.append(against_bare(bare, port, images, runs, threads))
        for kind in OTHERS[: 1 if quick else None]:
            if find_spec(kind) is None:
                print(f"{kind} is not installed (extra `bench`): left out", file=sys.stderr)
                continue
            with worker(kind, threads) as (_, other):
                tables.append(against(kind, port, other, images, runs, threads))
    return tables


def images_for(bare: subprocess.Popen[str], seconds: float) -> int:
    """Images that the bare detector judges in about so long: whole requests of every shape."""
    judge_bare(bare, BATCH)
    rate = 2 * BATCH / judge_bare(bare, 2 * BATCH)
    return LARGEST * max(1, round(rate * seconds / LARGEST))


def against_bare(
    bare: subprocess.Popen[str], port: int, images: int, runs: int, threads: int
) -> Table:
    """The same images through HTTP in several shapes, each right after the bare detector.

    The bare one judges in batches as large as that shape fills.
    """
    rows, ratios, shown = [], {}, 0
    for name, each, clients in SHAPES:
        requests = requests_of("file" if name == RAW else "form", images, each)
        batch = min(BATCH, each * clients)
        judge_bare(bare, batch, batch)
        drive(port, requests[: 2 * clients], each, clients)
        base, ours, seen = [], [], []
        for turn in range(runs):
            steps = [
                partial(judge_bare, bare, images, batch),
                partial(drive, port, requests, each, clients),
            ]
            for step in steps if turn % 2 == 0 else steps[::-1]:
                found = step()
                if isinstance(found, Run):
                    seen.append(found)
                    ours.append(found.seconds)
                else:
                    base.append(found)
        if batch != shown:
            rows.append(row(f"bare detector, batches of {batch}", images, base, []))
            shown = batch
        rows.append(row(name, images, ours, seen))
        ratios[f"http against bare, {name}"] = ratio(base, ours)
    notes = [f"{name}: {found}" for name, found in ratios.items()] + [
        f"{images} JPEGs of 640 x 640 (DeepPCB) a run, mrad-mini, `combined`, no maps; {threads} torch "
        "threads on both sides; the load generator runs on the same cores. The bare detector reads "
        "the same files and judges them in a process of its own.",
    ]
    return Table("HTTP against the bare detector", COLUMNS, rows, notes, ratios)


def against(kind: str, port: int, other: int, images: int, runs: int, threads: int) -> Table:
    """One image a request as JSON, same batch size and wait; in turn, for each number of clients."""
    sides = {
        "mrad": (port, requests_of("json", images, 1)),
        kind: (other, requests_of("litserve", images, 1)),
    }
    rows, ratios = [], {}
    for clients in WAITING:
        seen: dict[str, list[Run]] = {name: [] for name in sides}
        for where, requests in sides.values():
            drive(where, requests[: 2 * clients], 1, clients)
        for turn in range(runs):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                where, requests = sides[name]
                seen[name].append(drive(where, requests, 1, clients))
        times = {name: [found.seconds for found in seen[name]] for name in seen}
        shown = f"{clients} client" + "s" * (clients > 1)
        rows += [row(f"{name}, {shown}", images, times[name], seen[name]) for name in seen]
        ratios[f"{kind}, {shown}"] = ratio(times[kind], times["mrad"])
    title, about = OTHER_TITLES[kind]
    notes = [f"mrad against {name}: {found}" for name, found in ratios.items()] + [
        f"{about} One JPEG a request as base64 in JSON, batches of {BATCH}, wait 20 ms, one worker, "
        f"{threads} threads, {images} images a run."
    ]
    return Table(title, COLUMNS, rows, notes, ratios)
