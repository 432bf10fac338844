"""Every kind of input as an upload."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from mrad_client import InputError
from mrad_client.images import upload
from PIL import Image


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_files_and_bytes_travel_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"whatever it holds")
    assert upload(path) == ("a.jpg", b"whatever it holds", "application/octet-stream")
    assert upload(str(path))[0] == "a.jpg"
    assert upload(b"abc")[1] == b"abc"


@pytest.mark.parametrize(
    ("shape", "kind"), [((5, 7, 3), "u1"), ((5, 7, 4), "u1"), ((5, 7), "u1"), ((5, 7), "u2")]
)
def test_arrays_are_lossless(shape: tuple[int, ...], kind: str) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape).astype(kind)
    assert np.array_equal(decoded(upload(array)[1]), array)


def test_an_array_that_is_not_contiguous() -> None:
    array = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)[::2, ::-1]
    assert np.array_equal(decoded(upload(array)[1]), array)


def test_bool_masks_are_black_and_white() -> None:
    mask = np.eye(4, dtype=bool)
    assert np.array_equal(decoded(upload(mask)[1]), mask * 255)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4)), np.zeros((4, 4, 2), "u1"), np.zeros((0, 4), "u1"), np.zeros(4, "u1")],
)
def test_arrays_without_a_meaning_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError):
        upload(array)


def test_pil_images_arrive_as_seen() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    sent = Image.open(io.BytesIO(upload(Image.open(buffer))[1]))
    assert sent.size == (3, 4)
    assert sent.getexif().get(0x0112) is None


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "CMYK", "YCbCr", "LA", "PA", "RGBX"])
def test_pil_images_of_every_mode_travel_without_loss(mode: str) -> None:
    if mode.startswith("I;16"):
        order = ">" if mode.endswith("B") else "<"
        ramp = (np.arange(12).reshape(3, 4) * 5000).astype(f"{order}u2")
        image = Image.frombytes(mode, (4, 3), ramp.tobytes())
        assert np.array_equal(decoded(upload(image)[1]), ramp)
        return
    image = Image.new(mode, (4, 3), 3 if mode == "PA" else None)
    sent = Image.open(io.BytesIO(upload(image)[1]))
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def test_modes_without_a_lossless_file_are_refused() -> None:
    with pytest.raises(InputError, match="mode HSV"):
        upload(Image.new("HSV", (2, 2)))
    with pytest.raises(InputError, match="mode F"):
        upload(Image.new("F", (2, 2)))


def test_what_is_no_image_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        upload(tmp_path / "none.png")
    with pytest.raises(InputError, match="int"):
        upload(3)  # type: ignore[arg-type]
