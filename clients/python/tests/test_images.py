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
    assert upload(Image.open(buffer))[1] == buffer.getvalue()  # the server turns it
    changed = Image.open(buffer)
    changed.putpixel((0, 0), 99)
    sent = Image.open(io.BytesIO(upload(changed)[1]))
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


def test_a_pil_image_of_a_file_travels_as_that_file(tmp_path: Path) -> None:
    wide = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    tiff, jpeg = tmp_path / "a.tif", tmp_path / "a.jpg"
    tiff.write_bytes(b"MM" + b"\0*" + big_endian(wide)[4:])
    Image.fromarray(noise).save(jpeg, quality=60)
    for path in (tiff, jpeg):
        stored = path.read_bytes()
        assert upload(Image.open(path))[1] == stored
        assert upload(Image.open(io.BytesIO(stored)))[1] == stored
        loaded = Image.open(path)
        loaded.load()
        assert upload(loaded)[1] == stored


def test_what_was_done_to_a_pil_image_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6), "red").save(path)
    changed = Image.open(path)
    changed.putpixel((0, 0), (0, 0, 255))
    assert decoded(upload(changed)[1])[0, 0].tolist() == [0, 0, 255]
    smaller = Image.open(path)
    smaller.thumbnail((4, 3))
    assert decoded(upload(smaller)[1]).shape == (3, 4, 3)
    rewritten = Image.open(path)
    rewritten.load()
    Image.new("RGB", (8, 6), "green").save(path)
    assert decoded(upload(rewritten)[1])[0, 0].tolist() == [255, 0, 0]
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    second = Image.open(path)
    second.seek(1)
    assert decoded(upload(second)[1])[0, 0].tolist()[:3] == [0, 0, 255]


def big_endian(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit grey, most significant byte first."""
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122),
            (277, 3, 1), (278, 4, height), (279, 4, values.nbytes)]  # fmt: skip
    body = b"MM\0*" + (8).to_bytes(4, "big") + len(tags).to_bytes(2, "big")
    for tag, kind, value in tags:
        text = value.to_bytes(4, "big") if kind == 4 else value.to_bytes(2, "big") + b"\0\0"
        body += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + text
    return body + bytes(4) + values.astype(">u2").tobytes()
