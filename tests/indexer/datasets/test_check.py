"""`mrad data check` finds what spoils figures."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import typer
from mrad_indexer.cli import data as cli_data
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.check import check
from PIL import Image
from typer.testing import CliRunner


@pytest.fixture
def root(tmp_path, make_image):
    for seed in range(4):
        bad = seed >= 2
        image, mask = make_image(seed, (80, 64), defect=bad)
        place = tmp_path / ("defect" if bad else "good")
        place.mkdir(exist_ok=True)
        image.save(place / f"{seed}.png")
        if mask:
            (tmp_path / "masks").mkdir(exist_ok=True)
            mask.save(tmp_path / "masks" / f"{seed}.png")
    return tmp_path


def run(*arguments):
    app = typer.Typer()
    cli_data.register(app)
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_a_sound_set_has_no_findings(root):
    findings = check(read_dataset(root))
    assert not findings.problems
    assert findings.sizes == {(80, 64): 4}
    result = run("check", root, "--strict")
    assert result.exit_code == 0
    assert "nothing wrong" in result.output
    assert "folder layout, 4 images" in result.output


def test_everything_that_is_wrong_is_named(root):
    (root / "masks/2.png").unlink()
    Image.new("L", (3, 3), 255).save(root / "masks/3.png")
    (root / "good/broken.png").write_bytes(b"not a picture")
    Image.new("L", (400, 70)).save(root / "good/long.png")
    Image.new("L", (20, 20)).save(root / "good/tiny.png")
    shutil.copy(root / "good/0.png", root / "good/again.png")
    shutil.copy(root / "good/1.png", root / "defect/1.png")
    Image.new("L", (80, 64)).save(root / "masks/1.png")
    problems = check(read_dataset(root)).problems
    found = " | ".join(f"{key}: {' '.join(value)}" for key, value in problems.items())
    for text in (
        "without a mask: defect/2.png",
        "unusable masks: defect/3.png",
        "unreadable images: good/broken.png",
        "squeezed to a square (mrad build --tile auto cuts them into tiles): good/long.png",
        "smaller than 64 px: good/tiny.png",
        "occur twice: good/0.png = good/again.png",
        "both good and defective: good/1.png = defect/1.png",
        "mask marks no pixel: defect/1.png",
    ):
        assert text in found
    assert run("check", root).exit_code == 0
    assert run("check", root, "--strict").exit_code == 1


def test_masks_without_good_images_are_pointed_out(tmp_path):
    pixels = np.zeros((70, 70), np.uint8)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        pixels[10:20, 10:20] = 255
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    assert any("without good images" in text for text in check(read_dataset(tmp_path)).problems)


def test_a_path_that_is_no_dataset(tmp_path):
    result = run("check", tmp_path)
    assert result.exit_code == 2
    assert "layouts" in run("--help").output
    assert "mvtec" in run("layouts").output
