"""What the pages tell people to type: programs run, commands parse, options exist, links resolve.

Programs here talk to a small server of the standard library that answers as the API does; the real
server is tested with the same client in tests/clients.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
OWN = ["quickstart", "batch", "concepts", "faq", "gpu-host", "index", "migrating", "offline"]
PAGES = [ROOT / "docs" / f"{name}.md" for name in OWN] + [ROOT / "clients/python/README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESULT = {"name": "", "status": "ok", "score": 0.5, "class_score": 0.5, "verdict": "normal"}


def blocks(language: str) -> list[pytest.ParameterSet]:
    """Every fenced block of that language, named by page and position."""
    found = []
    for page in PAGES:
        matches = [text for kind, text in FENCE.findall(page.read_text()) if kind == language]
        found += [pytest.param(text, id=f"{page.stem}-{i}") for i, text in enumerate(matches)]
    return found


class Answers(BaseHTTPRequestHandler):
    """One result for each image, one entry for each write."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/score":
            count = body.count(b'name="images"')
            results = [{"index": i} | RESULT | self.map(body) for i in range(count)]
            self.answer(200, {"results": results})
        else:
            self.answer(201, {"entry": {"entry_id": "e", "label": "normal"}})

    def do_DELETE(self) -> None:
        self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(200, {"name": "bank"})

    def map(self, body: bytes) -> dict[str, object]:
        if b"png16" not in body:
            return {}
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((4, 6), np.uint16)).save(buffer, "PNG")
        return {"map": {"format": "png16", "data": base64.b64encode(buffer.getvalue()).decode()}}

    def answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the pages speak of."""
    for name in ("board.jpg", "other.jpg", "photos/a.jpg", "photos/b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    return tmp_path


def environment(url: str) -> dict[str, str]:
    return {"MRAD_URL": url, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


@pytest.mark.parametrize("text", blocks("python"))
def test_every_program_runs(text: str, url: str, desk: Path) -> None:
    program = text.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=desk, env=environment(url), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("sh"))
def test_every_command_parses(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commands(program: str) -> list[list[str]]:
    """Every call of that program in the pages' shell blocks."""
    text = "\n".join(
        block
        for page in PAGES
        for kind, block in FENCE.findall(page.read_text())
        if kind != "python"
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.split()[:1] == [program]]


@pytest.mark.parametrize("command", commands("mrad-client"), ids=" ".join)
def test_every_client_command_runs(command: list[str], url: str, desk: Path) -> None:
    done = subprocess.run(
        command, cwd=desk, env=environment(url), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (desk / command[command.index("--out") + 1]).exists()


@pytest.mark.parametrize("command", commands("make"), ids=" ".join)
def test_every_make_target_exists(command: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(command[1:]) <= set(targets)


def test_pages_name_only_files_that_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"\b(?:docker|docs|tests)/[\w./-]*\w", page.read_text()):
            assert (ROOT / path).exists() or path in ("docker/server.env",), f"{page.name}: {path}"


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    beside = Path(sys.executable).with_name("mkdocs")
    mkdocs = str(beside) if beside.exists() else shutil.which("mkdocs")
    if not mkdocs:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
