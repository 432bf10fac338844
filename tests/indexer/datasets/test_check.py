"""`mrad data check` finds what spoils figures."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from mrad_indexer.cli import data as cli_data
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.check import check, looked_at
from PIL import Image
from typer.testing import CliRunner

from mrad.errors import ImageError
from mrad.images.guard import code_of
from mrad.images.options import ReadOptions
from mrad.images.reader import read_image


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
    return CliRunner().invoke(cli_data.app, [*map(str, arguments)])


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


def large_jpeg(path, orientation: int | None = None) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    image = Image.fromarray(levels).resize((2400, 1800), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, "JPEG", quality=90, exif=exif)


def test_a_large_jpeg_is_looked_at_smaller_and_told_at_its_own_size(tmp_path):
    """An eighth of each side is decoded: a tenth of the time; the pixels' number is the file's."""
    for orientation, size in ((None, (2400, 1800)), (6, (1800, 2400))):
        large_jpeg(tmp_path / "a.jpg", orientation)
        picture = looked_at(tmp_path / "a.jpg", ReadOptions())
        full = read_image(tmp_path / "a.jpg")
        assert picture.size == full.size == size
        assert picture.image.size == (size[0] // 8, size[1] // 8)
        assert full.image.size == size, "what is scored is never scaled so"
        assert picture.orientation == full.orientation
        assert picture.brightness == pytest.approx(full.brightness, abs=3)
        assert picture.warnings == full.warnings == ()
    small = tmp_path / "small.jpg"
    Image.new("RGB", (9, 5), (200, 10, 10)).save(small, "JPEG")
    assert looked_at(small, ReadOptions()).image.size == (9, 5)


def test_damage_shows_in_a_jpeg_that_is_looked_at_smaller(tmp_path):
    large_jpeg(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match="ends early"):
        looked_at(tmp_path / "short.jpg", ReadOptions())
    kept = looked_at(tmp_path / "short.jpg", ReadOptions(allow_truncated=True))
    assert [code_of(text) for text in kept.warnings] == ["truncated"]


def test_fine_noise_is_not_taken_for_one_level(tmp_path):
    noise = np.random.default_rng(0).integers(122, 134, (2048, 2048)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", "JPEG", quality=100)
    Image.new("L", (2048, 2048), 90).save(tmp_path / "flat.jpg", "JPEG")
    assert looked_at(tmp_path / "noise.jpg", ReadOptions()).warnings == ()
    (told,) = looked_at(tmp_path / "flat.jpg", ReadOptions()).warnings
    assert code_of(told) == "uniform"
