"""The product's main line as people walk it: `mrad build`, `mrad serve`, an image, an answer."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import open_clip
import pytest
from mrad_client import Client
from mrad_indexer.cli.main import app as mrad
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

MRAD = Path(__file__).parents[1] / "indexer" / "tiny_mrad.py"
CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 4},
}  # fmt: skip
PER_FOLDER = 6
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_clip) -> Path:
    """A folder with the tiny CLIP's config and weights; this process knows its name."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    save_file(tiny_clip.state_dict(), folder / "tiny.safetensors")
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, demo_images: Path) -> Path:
    """A few magnetic tiles in MVTec's layout where they are beside the checkout, else boards."""
    source = SHARED / "magnetic_tile"
    if not source.is_dir():
        return demo_images / "memory"
    target = tmp_path_factory.mktemp("data") / "magnetic_tile"
    for folder in ("train/good", "test/good", "test/fray", "test/uneven"):
        for path in sorted((source / folder).iterdir())[:PER_FOLDER]:
            place(path, target / folder)
            mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            if mask.exists():
                place(mask, target / "ground_truth" / path.parent.name)
    return target


def place(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)


@pytest.fixture(scope="module")
def bank(images: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command."""
    out = tmp_path_factory.mktemp("banks") / "line"
    weights = ["--encoder", "tiny", "--pretrained", str(encoder / "tiny.safetensors")]
    arguments = ["build", str(images), "--out", str(out), *weights, "--image-size", "512"]
    done = CliRunner().invoke(mrad, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def server(
    bank: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Served by the command, in a process of its own: the process, its address, its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(MRAD), str(encoder), "serve", "--bank", str(bank), "--no-auth"]
    command += ["--pretrained", str(encoder / "tiny.safetensors"), "--port", str(port)]
    settings = {"MRAD_TEST_SLOW": "1", "MRAD_NOTICE_SECONDS": "5"}
    settings["MRAD_DRAIN_SECONDS"] = "240"
    log = tmp_path_factory.mktemp("log") / "log"
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env=os.environ | settings)
    try:
        end = time.monotonic() + 1200
        while not answers(f"{url}/health/ready", 200):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield process, url, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(server) -> str:
    return server[1]


def answers(url: str, status: int) -> bool:
    try:
        return httpx.get(url, timeout=60).status_code == status
    except httpx.TransportError:
        return False


def some_image(images: Path) -> Path:
    """A good one of the memory."""
    return next(path for path in sorted(images.rglob("good/*")) if path.suffix != ".txt")


def test_an_image_comes_back_with_score_map_and_evidence(url: str, images: Path) -> None:
    path = some_image(images)
    with path.open("rb") as file:
        answer = httpx.post(
            f"{url}/v1/score",
            files={"images": (path.name, file)},
            data={"map": "png16", "evidence": 2},
            timeout=120,
        )
    assert answer.status_code == 200, answer.text
    result = answer.json()["results"][0]
    assert result["name"] == path.name
    assert 0 < result["score"] < 1
    shown = Image.open(io.BytesIO(base64.b64decode(result["map"]["data"])))
    with Image.open(path) as sent:
        assert shown.size == sent.size
    assert len(result["evidence"]) == 4
    best = result["evidence"][0]
    assert best["similarity"] == pytest.approx(1, abs=1e-5), "it is in the memory itself"
    assert best["source"].endswith(path.name)
    assert base64.b64decode(best["thumbnail"])[:2] == b"\xff\xd8"


def test_the_client_scores_and_teaches(url: str, images: Path) -> None:
    path = some_image(images)
    with Client(url, timeout=120) as client:
        assert client.ready()
        assert client.bank().name == "line"
        result = client.score_image(path, map="npy", evidence=1)
        with Image.open(path) as sent:
            assert result.anomaly_map.shape == sent.size[::-1]
        assert np.isfinite(result.anomaly_map).all()
        assert result.evidence[0].image() is not None
        assert client.score_image(path, map="overlay").overlay.size == sent.size
        scores = client.score([path, b"no image"], threshold=0.0, fields=["verdict"])
        assert [r.verdict for r in scores] == ["anomalous", None]
        assert scores[1].error.code == "invalid_image"
        before = client.entry_page().total
        entry = client.add_entry(path, "normal", tags=["again"])
        assert client.entry_page().total == before + 1
        client.remove_entry(entry.entry_id)
        with Image.open(path) as sent:
            turned = sent.convert("RGB").rotate(90, expand=True)
        assert client.score_image(turned, map="png16").anomaly_map.shape == turned.size[::-1]


def test_sighup_opens_logs_anew_and_ends_nothing(server) -> None:
    process, url, log = server
    process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 60
    while '"reloaded"' not in log.read_text():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    assert answers(f"{url}/health/ready", 200)


def test_sigterm_lets_requests_in_flight_finish(server, images: Path) -> None:
    """The last one here: it ends the server."""
    process, url, log = server
    files = [("images", some_image(images).read_bytes())] * 20
    found: list[httpx.Response] = []
    ask = threading.Thread(
        target=lambda: found.append(httpx.post(f"{url}/v1/score", files=files, timeout=300))
    )
    ask.start()
    end = time.monotonic() + 120
    while not found and "mrad_queue_images 0.0" in httpx.get(f"{url}/metrics", timeout=60).text:
        assert time.monotonic() < end
    process.send_signal(signal.SIGTERM)
    while not answers(f"{url}/health/ready", 503):
        assert time.monotonic() < end, "readiness goes off first"
    ask.join(300)
    assert found[0].status_code == 200
    assert len(found[0].json()["results"]) == 20
    assert process.wait(120) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert any(line["event"] == "ready" for line in lines)
    assert any(line.get("path") == "/v1/score" and line["request_id"] for line in lines)
