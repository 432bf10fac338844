"""Line-scan pictures: read by rows, judged as if they had been read whole, in flat memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrad import Detector
from mrad.errors import ImageError, ImageTooLargeError
from mrad.images import strips
from mrad.images.layout import Layout
from mrad.images.options import ReadOptions
from mrad.images.reader import read_image
from mrad.images.strips import Strips, open_strips
from mrad.images.tiles import Tiling

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a picture is very large from 10,000 pixels on, and few strips are held."""
    monkeypatch.setattr(strips, "STREAMED", 10_000)
    monkeypatch.setattr(strips, "HELD", 4_000)


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """Noise that differs in every row, RGB."""
    return np.random.default_rng(0).integers(0, 256, (700, 90, 3), dtype=np.uint8)


def written(path: Path, levels: np.ndarray, **how) -> Path:
    colour = "rgb" if levels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, levels, photometric=colour, **how)
    return path


@pytest.mark.parametrize(
    "how",
    [{}, {"compression": "zlib", "rowsperstrip": 9}, {"compression": "lzw", "rowsperstrip": 16}],
)
@pytest.mark.parametrize("grey", [True, False])
def test_rows_of_a_tiff_are_those_of_the_whole(levels, how, grey, tmp_path):
    levels = levels[..., 0] if grey else levels
    path = written(tmp_path / "a.tif", levels, **how)
    found = open_strips(path, ReadOptions())
    assert isinstance(found, Strips)
    whole = read_image(path).image
    assert found.size == whole.size == (90, 700)
    for box in (
        (0, 0, 90, 40),
        (13, 5, 60, 300),
        (0, 690, 90, 700),
        (5, 100, 6, 101),
        (0, 0, 90, 700),
    ):
        assert np.array_equal(np.asarray(found.crop(box)), np.asarray(whole.crop(box)))
    assert found.resize((9, 70)).size == (9, 70)
    picture = found.picture()
    assert picture.contrast == pytest.approx(np.asarray(whole.convert("L")).std(), rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (np.uint16, {}),
        (np.uint8, {"compression": "zlib"}),  # one strip: no part can be read
        (np.uint8, {"tile": (32, 32), "compression": "zlib"}),
        (np.uint8, {"extratags": [(274, 3, 1, 6, False)]}),  # turned
    ],
)
def test_what_cannot_be_read_by_rows_is_read_whole(levels, dtype, how, tmp_path):
    path = written(tmp_path / "a.tif", levels[..., 0].astype(dtype), **how)
    assert open_strips(path, ReadOptions()) is None


def test_small_pictures_other_files_and_other_arrays_are_read_whole(levels, tmp_path):
    written(tmp_path / "a.tif", levels[:50])
    Image.fromarray(levels).save(tmp_path / "a.png")
    for source in (
        tmp_path / "a.tif", tmp_path / "a.png", levels[:50], levels.astype(np.float32), levels[..., :2],
    ):  # fmt: skip
        assert open_strips(source, ReadOptions()) is None


def test_limits_and_damage_are_told(levels, tmp_path):
    path = written(tmp_path / "a.tif", levels)
    for source in (path, levels):
        with pytest.raises(ImageTooLargeError):
            open_strips(source, ReadOptions(max_pixels=60_000))
    data = path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    found = open_strips(tmp_path / "cut.tif", ReadOptions())
    assert found is not None
    with pytest.raises(ImageError, match=r"cut\.tif cannot be decoded: the file ends early"):
        found.crop((0, 0, 90, 700))


def test_a_picture_read_by_rows_is_judged_as_the_whole(
    tiny_encoder, tiny_bank, levels, tmp_path, monkeypatch
):
    bank = replace(tiny_bank, metadata={"layout": Layout(Tiling(60)).to_json()})
    detector = Detector(tiny_encoder, bank)
    path = written(tmp_path / "a.tif", levels, compression="zlib", rowsperstrip=7)
    assert isinstance(detector.decode(path).image, Strips)
    by_rows = detector.predict([path, levels], evidence=1)
    monkeypatch.setattr(strips, "STREAMED", 10**9)
    assert isinstance(detector.decode(path).image, Image.Image)
    (whole,) = detector.predict([path], evidence=1)
    for found in by_rows:
        assert found.score == whole.score
        assert found.evidence == whole.evidence
        np.testing.assert_array_equal(found.anomaly_map, whole.anomaly_map)


def test_a_picture_of_one_tile_is_read_whole(tiny_encoder, tiny_bank, levels):
    bank = replace(tiny_bank, metadata={"layout": Layout(Tiling(1_000)).to_json()})
    detector, plain = Detector(tiny_encoder, bank), Detector(tiny_encoder, tiny_bank)
    assert detector.predict([levels])[0].score == plain.predict([levels])[0].score


SCRIPT = """
import resource, sys
import numpy as np
from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling
from tests.conftest import build_tiny_clip, draw_image
import torch
torch.set_num_threads(1)
encoder = Encoder.from_clip(build_tiny_clip(), image_size=96, name="tiny", device="cpu")
samples = []
for seed in range(4):
    image, mask = draw_image(seed, (512, 512), defect=seed % 2 == 0)
    samples.append(Sample(image, mask is not None, mask))
detector = Detector(encoder, MemoryBank.from_samples(encoder, samples, layout=Layout(Tiling(512))))
strip = np.random.default_rng(0).integers(90, 110, (1000, 2048), dtype=np.uint8)
for rows in map(int, sys.argv[2:]):
    path = f"{sys.argv[1]}/{rows}.tif"
    with open(path, "wb") as file:  # an uncompressed TIFF, written a strip at a time
        import struct
        tags = [(256, 4, 2048), (257, 4, rows), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200),
                (277, 3, 1), (278, 4, rows), (279, 4, rows * 2048)]
        head = b"II*\\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
        for tag, kind, value in tags:
            head += struct.pack("<HHII", tag, kind, 1, value)
        file.write((head + struct.pack("<I", 0)).ljust(200, b"\\0"))
        for start in range(0, rows, 1000):
            block = strip.copy()
            if start == rows // 2 // 1000 * 1000:
                block[300:700, 900:1300] = 10
            file.write(block.tobytes())
    (found,) = detector.predict([path], map_pixels=2_000_000)
    left, top, right, bottom = found.peak_box
    print(rows, len(found.tiles), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
          (left + right) // 2, (top + bottom) // 2 - rows // 2 // 1000 * 1000, flush=True)
"""


def peaks(folder: Path, *rows: int) -> list[list[int]]:
    """For each picture: rows, tiles, largest memory so far in MiB, where its peak is."""
    command = [sys.executable, "-c", SCRIPT, str(folder), *map(str, rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return [list(map(int, line.split())) for line in done.stdout.splitlines()]


def check(first: list[int], last: list[int]) -> None:
    assert last[2] - first[2] < 150, "memory follows the picture's size"
    assert 800 <= last[3] <= 1_400
    assert 200 <= last[4] <= 800


def test_memory_stays_flat(tmp_path):
    """A strip of 61 megapixels after one of 51: whole, it would take 180 MB more than the file."""
    first, last = peaks(tmp_path, 25_000, 30_000)
    check(first, last)
    assert last[1] == Tiling(512).count((2048, 30_000))


@pytest.mark.nightly
def test_a_line_scan_picture_of_205_megapixels(tmp_path):
    """2,048 x 100,000 and 2,048 x 240,000: the largest that is taken has 500 megapixels."""
    first, middle, last = peaks(tmp_path, 25_000, 100_000, 240_000)
    check(first, middle)
    check(first, last)
    assert last[0] * 2048 <= ReadOptions().max_tiled_pixels < (last[0] + 10_000) * 2048
