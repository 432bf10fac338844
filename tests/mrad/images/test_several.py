"""A file that holds several pictures says so: decoders read the first in silence."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mrad.images.decoding.several import pictures
from mrad.images.guard import code_of
from mrad.images.masks import read_mask
from mrad.images.reader import read_image


def picture(seed: int, size: tuple[int, int] = (30, 20), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


WIDE = b"P5\n# made by hand\n3 2\n1023\n" + np.arange(6, dtype=">u2").tobytes()
NUMBERS = b"P3\n# a P2 b\n2 1 255\n1 2 3 40 50 60\n"
PAM = b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(range(10, 16))
PFM = b"Pf\n2 2\n-1.0\n" + np.linspace(0, 1, 4, dtype="<f4").tobytes()
ONE = {
    **{kind: written(picture(0), kind) for kind in ("PPM", "PNG", "JPEG", "BMP", "WEBP")},
    "GIF": written(picture(0, mode="P"), "GIF"),
    "progressive JPEG": written(picture(0), "JPEG", progressive=True),
    "PGM": written(picture(0, mode="L"), "PPM"),
    "PBM": written(picture(0, mode="1"), "PPM"),
    "PGM of 10 bit": WIDE,
    "PPM in numbers": NUMBERS,
    "PAM": PAM,
    "PFM": PFM,
}


@pytest.mark.parametrize("kind", ONE)
def test_pictures_one_after_the_other_are_counted_and_the_first_is_read(kind: str) -> None:
    one = ONE[kind]
    alone = read_image(one)
    assert alone.pages == 1
    assert "page_chosen" not in map(code_of, alone.warnings)
    for count in (2, 3):
        read = read_image(one * count)
        assert (read.page, read.pages) == (0, count)
        assert f"page_chosen: of {count} pages, page 1 is read, the first" in read.warnings
        np.testing.assert_array_equal(np.asarray(read.image), np.asarray(alone.image))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF", "MPO", "TIFF"])
def test_films_and_stereo_pictures_are_counted_too(kind: str) -> None:
    data = written(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)])
    assert read_image(data).pages == 3


def test_previews_behind_a_photograph_and_other_bytes_are_no_pictures() -> None:
    photograph = written(picture(0, (80, 60)), "JPEG")
    preview = written(picture(1, (40, 30)), "JPEG")
    assert read_image(photograph + preview).pages == 1
    assert read_image(photograph + preview + photograph).pages == 2
    thumbnail = Image.Exif()
    thumbnail[0x010E] = "\xff\xd9\xff\xd8\xff"
    assert read_image(written(picture(0), "JPEG", exif=thumbnail)).pages == 1
    for kind in ONE:
        if "numbers" not in kind:
            assert read_image(ONE[kind] + b"\n").pages == 1, kind
            assert read_image(ONE[kind] + b"made by some camera").pages == 1, kind


def test_a_mask_of_several_pictures_says_that_one_is_taken() -> None:
    marked = np.zeros((20, 30), np.uint8)
    marked[:5, :5] = 255
    one = written(Image.fromarray(marked), "PPM")
    mask = read_mask(one + one, (30, 20))
    assert "mask_pages" in map(code_of, mask.warnings)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "pnm", "tga"])
def test_whatever_bytes_come_are_counted(kind: str) -> None:
    rng = np.random.default_rng(0)
    for data in (b"", b"P5 9 9 255 ", b"\xff\xd8\xff", rng.bytes(5_000), b"BM" + bytes(100)):
        assert pictures(kind, data) == 1
    for one in ONE.values():
        for end in range(0, len(one), 37):
            assert pictures(kind, one[:end]) == 1
