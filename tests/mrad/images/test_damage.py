"""Files that end early or are garbled: what can be noticed is refused; docs/images.md says what cannot."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from mrad.errors import ImageError
from mrad.images.guard import code_of
from mrad.images.options import ReadOptions
from mrad.images.reader import read_image

rng = np.random.default_rng(0)
NOISE = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
TWELVE = (GREY.astype(np.uint16) * 16).astype(np.uint16)
FAX = np.kron(rng.integers(0, 2, (40, 30)), np.ones((4, 4))).astype(np.uint8) * 255


def saved(image: Image.Image, kind: str, **facts: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **facts)
    return buffer.getvalue()


def tiff(values: np.ndarray, **facts: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **facts)
    return buffer.getvalue()


FILES = {
    "JPEG with inks": saved(Image.fromarray(NOISE).convert("CMYK"), "JPEG", quality=95),
    "JPEG of 12 bit": imagecodecs.jpeg_encode(TWELVE, level=95, bitspersample=12),
    "lossless JPEG": imagecodecs.jpeg_encode(TWELVE, lossless=True, bitspersample=12),
    "JPEG with restarts": saved(Image.fromarray(NOISE), "JPEG", restart_marker_blocks=4),
    "JPEG in TIFF": tiff(NOISE, compression="jpeg", photometric="rgb", tile=(48, 48)),
    "JPEG in TIFF, its tables apart": saved(Image.fromarray(NOISE), "TIFF", compression="jpeg"),
    "inks in TIFF": saved(Image.fromarray(NOISE).convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "fax": saved(Image.fromarray(FAX).convert("1"), "TIFF", compression="group4"),
    "JPEG 2000": saved(Image.fromarray(NOISE), "JPEG2000", irreversible=False),
    "JPEG 2000 of 12 bit": imagecodecs.jpeg2k_encode(TWELVE, bitspersample=12, reversible=True),
    "JPEG 2000, the stream alone": imagecodecs.jpeg2k_encode(GREY, codecformat="j2k"),
    "JPEG 2000 in TIFF": tiff(GREY, compression="jpeg2000", photometric="minisblack"),
    "PCX": saved(Image.fromarray(GREY), "PCX"),
}


def test_whole_ones_are_taken():
    for name, data in FILES.items():
        assert not read_image(data).warnings, name


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", FILES)
def test_what_ends_early_is_refused(name, share):
    data = FILES[name]
    with pytest.raises(ImageError):
        read_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith("JPEG") and "TIFF" not in name]
)
def test_what_was_closed_after_a_cut_is_refused(name):
    data = FILES[name]
    with pytest.raises(ImageError):
        read_image(data[: len(data) // 2] + data[-2:])


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
@pytest.mark.parametrize("name", FILES)
def test_what_was_filled_up_is_refused_or_told(name, filling):
    data = FILES[name]
    half = len(data) // 2
    for broken in (
        data[:half] + filling * (len(data) - half),
        data[:half] + filling * 512 + data[half + 512 :],
    ):
        if name == "PCX" and broken[-1:] == b"\xff" * 1:
            continue  # runs of a colour, and a palette of white: a picture like any other
        try:
            codes = set(map(code_of, read_image(broken).warnings))
        except ImageError:
            continue
        assert codes & {"zero_run", "zero_tail", "uniform"}, name


def test_a_garbled_frame_is_not_passed_over_for_the_next():
    blank = np.zeros_like(NOISE)
    data = saved(
        Image.fromarray(blank), "PNG", save_all=True,
        append_images=[Image.fromarray(NOISE), Image.fromarray(NOISE[::-1])],
    )  # fmt: skip
    place = data.index(b"fdAT") + 200
    with pytest.raises(ImageError, match="checksum of its part fdAT"):
        read_image(data[:place] + bytes(8) + data[place + 8 :])


def test_what_one_caller_allows_no_other_gets():
    whole = saved(Image.fromarray(NOISE), "BMP")
    cut = whole[: len(whole) * 3 // 4]
    stop = threading.Event()

    def allowed() -> int:
        count = 0
        while not stop.is_set():
            assert "truncated" in map(
                code_of, read_image(cut, options=ReadOptions(allow_truncated=True)).warnings
            )
            count += 1
        return count

    def refused() -> None:
        for _ in range(150):
            with pytest.raises(ImageError, match="ends early"):
                read_image(cut)

    with ThreadPoolExecutor(4) as pool:
        lenient = [pool.submit(allowed) for _ in range(2)]
        try:
            for strict in [pool.submit(refused) for _ in range(2)]:
                strict.result()
        finally:
            stop.set()
        assert all(each.result() for each in lenient)
