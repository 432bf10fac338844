"""The product's main line as people walk it: `mrad build`, `mrad serve`, an image, an answer."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from mrad_client import Client
from PIL import Image
from safetensors.torch import save_file

MRAD = Path(__file__).parents[1] / "indexer" / "tiny_mrad.py"
CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 4},
}  # fmt: skip
PER_FOLDER = 6
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_clip) -> Command:
    """`command("build", ...)`: what to run for `mrad build ...`, with the tiny CLIP known to it."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    save_file(tiny_clip.state_dict(), folder / "tiny.safetensors")

    def of(*arguments: object) -> list[str]:
        words = [str(a).replace("WEIGHTS", str(folder / "tiny.safetensors")) for a in arguments]
        return [sys.executable, str(MRAD), str(folder), *words]

    return of


@pytest.fixture(scope="module", params=["magnetic_tile", "deep_pcb"])
def images(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real images in MVTec's layout; magnetic tiles only where they are beside the checkout."""
    target = tmp_path_factory.mktemp("data") / request.param
    if request.param == "deep_pcb":
        return request.getfixturevalue("demo_images") / "memory"
    source = request.getfixturevalue("shared_data") / request.param
    for folder in ("train/good", "test/good", "test/crack", "test/blowhole"):
        for path in sorted((source / folder).iterdir())[:PER_FOLDER]:
            (target / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / folder)
            mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            if mask.exists():
                place = target / "ground_truth" / path.parent.name
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(mask, place)
    return target


@pytest.fixture(scope="module")
def bank(images: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command."""
    out = tmp_path_factory.mktemp("banks") / "line"
    options = ["--encoder", "tiny", "--pretrained", "WEIGHTS", "--image-size", "96"]
    done = subprocess.run(
        command("build", images, "--out", out, *options), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def url(bank: Path, command: Command) -> Iterator[str]:
    """Served by the command, until SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--bank", bank, "--pretrained", "WEIGHTS", "--no-auth", "--port", port]
    server = subprocess.Popen(command("serve", *arguments), stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 240
        while True:
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < end
            try:
                if httpx.get(f"{address}/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=120)
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert any(line["event"] == "ready" for line in lines)
        assert any(line.get("path") == "/v1/score" and line["request_id"] for line in lines)
    finally:
        server.kill()
        server.wait()


def some_image(images: Path) -> Path:
    return next(p for p in sorted(images.rglob("*")) if p.suffix in (".jpg", ".png", ".bmp"))


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
    assert best["similarity"] == pytest.approx(1, abs=1e-3), "it is in the memory itself"
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
