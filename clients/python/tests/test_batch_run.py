"""Whole runs: refusals, bad files, and kills at any moment."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import httpx
import mrad_client
import numpy as np
import pyarrow.parquet as pq
import pytest
from mrad_client import AsyncClient, Retry
from mrad_client.batch import Journal, Places, find_items, run
from mrad_client.batch.http import HTTPTransport
from PIL import Image
from scripted import field, ok_results, png16, problem


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 files; the first byte is the score that the scripted server gives."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03d}.png").write_bytes(bytes([number, 1, 2, 3]))
    return folder


def batch(
    photos: Path,
    server,
    journal: Path,
    *,
    size: int = 4,
    patience: float = 300.0,
    places: Places = Places(),  # noqa: B008
) -> list[dict]:
    """One run through a scripted server."""

    async def main() -> list[dict]:
        transport = httpx.MockTransport(server)
        client = AsyncClient("http://s", retry=Retry(attempts=1), transport=transport)
        judge = HTTPTransport(client, pictures=places.wanted)
        with Journal(journal, {}) as log:
            async with client:
                items = find_items([str(photos)])
                await run(judge, items, log, places, size=size, patience=patience)
            return list(log.rows())

    return anyio.run(main)


def test_every_file_once(photos: Path, tmp_path: Path) -> None:
    rows = batch(photos, ok_results, tmp_path / "j", size=3)
    assert {row["name"]: row["score"] for row in rows} == {
        f"{n:03d}.png": n / 255 for n in range(40)
    }


def test_refusals_are_waited_out_and_nothing_is_lost(photos: Path, tmp_path: Path) -> None:
    counter = collections.Counter()

    def server(request: httpx.Request) -> httpx.Response:
        counter["all"] += 1
        if counter["all"] in (2, 5):
            return problem(429, "queue_full", {"retry-after": "0.1"})
        if counter["all"] == 7:
            raise httpx.ReadError("cut")
        return ok_results(request)

    rows = batch(photos, server, tmp_path / "j")
    assert sorted(row["name"] for row in rows) == [f"{n:03d}.png" for n in range(40)]
    assert counter["all"] == 10 + 3


def test_a_refused_request_is_halved_until_the_file_at_fault_stands_alone(
    photos: Path, tmp_path: Path
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        first = [data[0] for data in field(request, "images")]
        return problem(413, "file_too_large") if 7 in first else ok_results(request)

    rows = {row["name"]: row for row in batch(photos, server, tmp_path / "j", size=8)}
    assert len(rows) == 40
    assert {n for n, row in rows.items() if row["status"] == "error"} == {"007.png"}
    assert rows["007.png"]["code"] == "file_too_large"


def test_a_file_that_makes_the_server_fail_does_not_stop_the_run(
    photos: Path, tmp_path: Path
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        first = [data[0] for data in field(request, "images")]
        return problem(500, "internal") if 3 in first else ok_results(request)

    rows = batch(photos, server, tmp_path / "j")
    assert [row["name"] for row in rows if row["status"] == "error"] == ["003.png"]
    again = batch(photos, ok_results, tmp_path / "j")
    assert {row["status"] for row in again} == {"ok"}, "a server that works again is asked again"


def test_a_manifests_missing_file_is_a_row(photos: Path, tmp_path: Path) -> None:
    manifest = photos / "m.txt"
    manifest.write_text("000.png\ngone.png\n")
    rows = {row["name"]: row for row in batch(manifest, ok_results, tmp_path / "j")}
    assert rows["gone.png"]["code"] == "unreadable_file"
    assert rows["000.png"]["status"] == "ok"


def test_a_wrong_key_ends_the_run_and_the_journal_stays_usable(
    photos: Path, tmp_path: Path
) -> None:
    counter = collections.Counter()

    def server(request: httpx.Request) -> httpx.Response:
        counter["all"] += 1
        return problem(401, "unauthorized") if counter["all"] > 4 else ok_results(request)

    with pytest.raises(mrad_client.AuthenticationError):
        batch(photos, server, tmp_path / "j")
    rows = batch(photos, ok_results, tmp_path / "j")
    assert len(rows) == 40


def test_patience_ends(photos: Path, tmp_path: Path) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    began = time.monotonic()
    with pytest.raises(mrad_client.ConnectionFailedError):
        batch(photos, server, tmp_path / "j", patience=0.3)
    assert time.monotonic() - began < 5


def test_maps_and_overlays_are_written_where_the_rows_say(tmp_path: Path) -> None:
    photos = tmp_path / "in"
    (photos / "a").mkdir(parents=True)
    for name in ("a/x.png", "a/x.jpg"):
        Image.new("RGB", (30, 20)).save(photos / name)
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    places = Places(tmp_path / "maps", tmp_path / "overlays")
    server = lambda request: ok_results(request, map=png16(values))  # noqa: E731
    rows = batch(photos, server, tmp_path / "j", places=places)
    assert len({row["map"] for row in rows}) == 2  # x.png and x.jpg do not collide
    for row in rows:
        stored = np.asarray(Image.open(row["map"]), dtype=np.float32) / 65535
        assert np.abs(stored - values).max() < 1e-4
        assert Image.open(row["overlay"]).size == (30, 20)


class SlowServer:
    """A real HTTP server of the standard library that counts how often it scored each image."""

    def __init__(self, seconds: float) -> None:
        self.scored: collections.Counter[bytes] = collections.Counter()
        self.memory, self.threshold = "bank", 0.5
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer({"name": outer.memory})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
                parts = BytesParser().parsebytes(head + body).get_payload()
                images = [
                    part.get_payload(decode=True)
                    for part in parts
                    if part.get_param("name", header="content-disposition") == "images"
                ]
                time.sleep(seconds)
                outer.scored.update(images)
                self.answer({"results": [
                    {"index": i, "name": "", "status": "ok", "score": data[0] / 255,
                     "threshold": outer.threshold}
                    for i, data in enumerate(images)
                ]})  # fmt: skip

            def answer(self, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # type: ignore[method-assign]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


def test_killed_again_and_again_nothing_is_lost_and_nothing_acknowledged_is_scored_twice(
    tmp_path: Path,
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(200):
        (photos / f"{number:03d}.png").write_bytes(bytes([number]) + os.urandom(8))
    server = SlowServer(seconds=0.05)
    out, journal = tmp_path / "r.parquet", tmp_path / "r.parquet.journal"
    command = [sys.executable, "-m", "mrad_client.cli", "score", str(photos), "--out", str(out)]
    command += ["--server", server.url, "--most-requests", "2", "--per-request", "2"]
    kills, acknowledged = 0, set()
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if lines >= before + 40:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.communicate()
        lines = journal.read_bytes().rpartition(b"\n")[0].splitlines()
        rows = [json.loads(line) for line in lines[1:]]
        names = [row["name"] for row in rows]
        assert len(names) == len(set(names)), "a file that was in the journal was scored again"
        assert acknowledged <= set(names), "the journal lost a row"
        acknowledged = set(names)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 3
    table = pq.read_table(out).to_pylist()
    assert sorted(r["name"] for r in table) == [f"{n:03d}.png" for n in range(200)]
    assert all(r["score"] == pytest.approx(int(r["name"][:3]) / 255) for r in table)
    again = sum(server.scored.values()) - 200
    assert again <= kills * 2 * 2, "more was scored again than can have been in flight at the kills"


def test_rows_of_another_memory_are_not_mixed_in_silence(photos: Path, tmp_path: Path) -> None:
    """The server was restarted with another bank, or its memory has learned meanwhile."""
    server = SlowServer(seconds=0)
    command = [sys.executable, "-m", "mrad_client.cli", "score", str(photos)]
    command += ["--out", str(tmp_path / "r.csv"), "--server", server.url]

    def run() -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, " ".join(done.stderr.split())

    status, said = run()
    assert status == 0
    assert "thresholds" not in said
    (photos / "new.png").write_bytes(bytes([7]) + os.urandom(8))
    server.threshold = 0.6
    status, said = run()
    assert status == 0
    assert "judged by 2 thresholds, 0.50000 to 0.60000" in said
    server.memory = "other"
    status, said = run()
    assert status == 2
    assert "memory bank → other" in said
    assert "--restart" in said


def test_the_command_end_to_end(photos: Path, tmp_path: Path) -> None:
    server = SlowServer(seconds=0)
    outs = [tmp_path / f"r.{kind}" for kind in ("parquet", "csv", "jsonl")]
    command = [sys.executable, "-m", "mrad_client.cli", "score", str(photos)]
    command += [part for out in outs for part in ("--out", str(out))]
    command += ["--summary", str(tmp_path / "s.html"), "--server", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "40 images" in done.stderr
    assert str(tmp_path / "s.html") in done.stderr.replace("\n", "")
    assert all(out.stat().st_size for out in outs)
    assert "By score" in (tmp_path / "s.html").read_text()


def test_no_server_is_one_line(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mrad_client.cli", "score", str(photos)]
    command += ["--out", str(tmp_path / "r.csv"), "--server", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
