"""A desk with the files that the pages speak of, and a real server with a memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mrad_service.serving import make_server
from mrad_service.settings import Settings
from PIL import Image

from mrad import Encoder, MemoryBank, Sample

ROOT = Path(__file__).parents[2]
BOARDS = ROOT / "mrad" / "demo" / "deep_pcb"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """`parts/` and `photo-set/` (good, defect, masks), `good-parts/`, `photos/`, `list.csv`, single images."""
    return furnish(tmp_path)


def furnish(folder: Path) -> Path:
    """Copy the bundled boards to where the pages have them."""
    for source in sorted((BOARDS / "memory").glob("*/*.*")):
        copy(source, folder / "parts" / source.parent.name / f"{source.stem}.png")
    for source in sorted((BOARDS / "memory" / "good").iterdir())[:12]:
        copy(source, folder / "good-parts" / f"{source.stem}.png")
    good = sorted((BOARDS / "query" / "good").iterdir())
    bad = sorted((BOARDS / "query" / "defect").iterdir())
    singles = {"good.png": good[0], "bad.png": bad[0], "board.jpg": bad[1], "other.jpg": good[1]}
    for name, source in singles.items():
        copy(source, folder / name)
        copy(source, folder / "photos" / name)
    mask = BOARDS / "query" / "masks" / f"{bad[0].stem}.png"
    copy(mask, folder / "mask.png")
    copy(good[0], folder / "photo-set/good/good.png")
    copy(bad[0], folder / "photo-set/defect/bad.png")
    copy(mask, folder / "photo-set/masks/bad.png")
    rows = ["image,label,mask,defect"]
    for path in sorted(folder.glob("parts/*/*.png")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name == "good":
            rows.append(f"{name},good,,")
        elif path.parent.name == "defect":
            rows.append(f"{name},defect,parts/masks/{path.name},short")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder


def copy(source: Path, target: Path) -> None:
    """The same picture, in the format that the new name says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.save(target)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory, mini_encoder: Encoder) -> Iterator[str]:
    """A server of this release, on the shipped encoder and the memory `bank`."""
    folder = furnish(tmp_path_factory.mktemp("server"))
    samples = [Sample(path, False) for path in sorted((folder / "parts/good").iterdir())]
    for path in sorted((folder / "parts/defect").iterdir()):
        samples.append(Sample(path, True, folder / "parts/masks" / path.name))
    MemoryBank.from_samples(mini_encoder, samples).save(folder / "bank")
    server = make_server(Settings(bank=folder / "bank", auth="off", port=0, device="cpu"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def runner() -> Iterator[subprocess.Popen[str]]:
    """Runs pages; see `run_page.py`."""
    command = [sys.executable, Path(__file__).with_name("run_page.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def environment(url: str, tmp_path: Path) -> dict[str, str]:
    """What a reader's shell has: the programs on the path, and the server's address."""
    return {
        "MRAD_URL": url,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
