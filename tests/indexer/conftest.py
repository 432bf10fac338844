"""The tiny CLIP as weights on disk, labelled images in a folder, and `mrad` as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
from click.testing import Result
from mrad_indexer.cli.main import app
from safetensors.torch import save_file
from typer.testing import CliRunner

from mrad.images.align import Reference
from mrad.images.layout import Layout
from mrad.images.regions import Area
from tests.plates import LEFT, SIZE, moved, plate

WORKER = Path(__file__).with_name("tiny_mrad.py")
CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 64,
        "patch_size": 16,
        "width": 64,
        "layers": 4,
        "head_width": 16,
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 4},
}

Mrad = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_clip) -> Path:
    """tiny.json and tiny.safetensors; open_clip of this process knows the name `tiny`."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    save_file(tiny_clip.state_dict(), folder / "tiny.safetensors")
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_options(tiny_folder: Path) -> list[str]:
    """What makes `mrad build` take the tiny encoder."""
    weights = str(tiny_folder / "tiny.safetensors")
    return ["--encoder", "tiny", "--pretrained", weights, "--image-size", "96", "--device", "cpu"]


@pytest.fixture(scope="session")
def mrad() -> Mrad:
    """`mrad("build", ...)` in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def spawn(tiny_folder: Path) -> Spawn:
    """`spawn("build", ..., slow=0.1)` as a process of its own."""

    def start(*arguments: object, slow: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKER), str(tiny_folder), *map(str, arguments)]
        environment = {**os.environ, "MRAD_TEST_SLOW": str(slow)}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory, make_image) -> Path:
    """good/ (8), defect/blob/ (8), masks/blob/ (7), and one file that is no image."""
    root = tmp_path_factory.mktemp("boards") / "boards"
    for seed in range(16):
        image, mask = make_image(seed, (80 + seed, 64), defect=seed % 2 == 1)
        folder = root / ("defect/blob" if mask else "good")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{seed:02}.png")
        if mask is not None and seed != 15:
            (root / "masks/blob").mkdir(parents=True, exist_ok=True)
            mask.save(root / f"masks/blob/{seed:02}.png")
    (root / "good/broken.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="session")
def board_bank(tmp_path_factory, mrad: Mrad, boards: Path, tiny_options: list[str]) -> Path:
    """A bank built of `boards` and calibrated on them. Not to be written to."""
    out = tmp_path_factory.mktemp("banks") / "boards"
    for arguments in (
        ("build", boards, "--out", out, *tiny_options),
        ("calibrate", out, boards, "--draws", "10"),
    ):
        done = mrad(*arguments)
        assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def aligned_plates(tmp_path):
    """A folder of three plates and one other picture, and what aligns them by the first."""
    data = tmp_path / "data"
    (data / "good").mkdir(parents=True)
    for number, shift in enumerate(((0, 0), (12, 7), (-8, 5))):
        moved(plate(), shift).save(data / "good" / f"{number}.png")
    plate(5).save(data / "good" / "other.png")
    return data, Layout(None, None, (Area.of_box(LEFT, SIZE, "left"),), Reference.of(plate()))
