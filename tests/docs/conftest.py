"""A desk with the files that the pages speak of, and a real server with a memory."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrad import Encoder, MemoryBank, Sample

ROOT = Path(__file__).parents[2]
BOARDS = ROOT / "tests" / "parity" / "images"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """`parts/` (good, defect, masks), `photos/`, and single images, all circuit boards."""
    return furnish(tmp_path)


def furnish(folder: Path) -> Path:
    """Copy the images to where the pages have them."""
    for path in BOARDS.glob("*.png"):
        name = path.stem.removesuffix("_mask")
        kind = "good" if name.endswith("good") else "defect"
        if path.stem.endswith("_mask"):
            copy(path, folder / "parts" / "masks" / f"{name}.png")
        else:
            copy(path, folder / "parts" / kind / f"{name}.png")
    photos = {"memory0_defect": "bad.png", "memory3_good": "good.png", "query0_defect": "board.jpg"}
    for source, name in photos.items():
        copy(BOARDS / f"{source}.png", folder / name)
        copy(BOARDS / f"{source}.png", folder / "photos" / name)
    copy(BOARDS / "query2_good.png", folder / "other.jpg")
    copy(BOARDS / "memory0_defect_mask.png", folder / "mask.png")
    return folder


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory, mini_encoder: Encoder) -> Iterator[str]:
    """A server of this release, on the shipped encoder."""
    folder = furnish(tmp_path_factory.mktemp("server"))
    samples = [Sample(path, False) for path in sorted((folder / "parts/good").iterdir())]
    for path in sorted((folder / "parts/defect").iterdir()):
        samples.append(Sample(path, True, folder / "parts/masks" / path.name))
    MemoryBank.from_samples(mini_encoder, samples).save(folder / "bank")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "indexer.cli", "serve", "--bank", "bank", "--no-auth"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], cwd=folder, stderr=log)
    try:
        await_ready(f"http://127.0.0.1:{port}", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def await_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if server.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"{url}/health/ready", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the server was not ready in 120 s: {log.read_text()[-3000:]}")


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    """What a reader's shell has: the programs on the path, and the server's address."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {
        "MRAD_URL": url,
        "PATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": "/nonexistent",
    }
