"""DICOM as a viewer shows it, HEIC, and what is said where their readers are not installed."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from mrad.errors import ImageError
from mrad.images.guard import code_of
from mrad.images.reader import load_image, read_image

LEVELS = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)


def dicom(values: np.ndarray = LEVELS, **facts: object) -> bytes:
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.Rows, found.Columns = values.shape[-2:]
    found.SamplesPerPixel, found.BitsAllocated, found.BitsStored, found.HighBit = 1, 16, 12, 11
    found.PixelRepresentation, found.PhotometricInterpretation = 0, "MONOCHROME2"
    for name, value in facts.items():
        setattr(found, name, value)
    found.PixelData = values.tobytes()
    buffer = io.BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    return np.asarray(load_image(data))[..., 0].astype(int)


def test_bits_windows_and_inversion():
    wanted = np.round(LEVELS / 4095 * 255).astype(int)
    assert np.abs(grey(dicom()) - wanted).max() <= 1
    assert np.abs(grey(dicom(PhotometricInterpretation="MONOCHROME1")) - (255 - wanted)).max() <= 1
    window = grey(dicom(WindowCenter=1024, WindowWidth=512))
    assert (window[LEVELS < 760] == 0).all()
    assert (window[LEVELS > 1290] == 255).all()
    hounsfield = dicom(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=512)
    assert np.abs(grey(hounsfield) - window).max() <= 1


def test_a_file_that_is_tiff_as_well_is_dicom():
    data = dicom()
    assert (grey(b"II*\0" + bytes(124) + data[128:]) == grey(data)).all()


def test_the_first_frame_that_shows_something():
    frames = np.stack([np.zeros_like(LEVELS), LEVELS])
    read = read_image(dicom(frames, NumberOfFrames=2))
    assert read.page == 1
    assert "page_chosen" in map(code_of, read.warnings)


def test_heic_is_read_or_its_extra_is_named(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    from PIL import Image

    buffer = io.BytesIO()
    ramp = np.dstack([(LEVELS // 16).astype(np.uint8)] * 3)
    heif.from_pillow(Image.fromarray(ramp)).save(buffer, quality=95)
    assert np.abs(grey(buffer.getvalue()) - ramp[..., 0]).mean() < 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC photograph: pip install 'mrad\[heic\]'"):
        read_image(buffer.getvalue())
    data = dicom()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"DICOM picture: pip install 'mrad\[dicom\]'"):
        read_image(data)
