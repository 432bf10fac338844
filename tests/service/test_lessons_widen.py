"""What was taught is nothing unusual afterwards: no warning, and none by readers of the folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mrad.images.guard import code_of
from mrad.memory.bank import MemoryBank


def warnings(client, file: bytes) -> set[str]:
    (result,) = client.post("/v1/score", files={"images": file}).json()["results"]
    return {code_of(text) for text in result.get("warnings", ())}


def test_a_dark_lesson_makes_dark_images_usual(connect, bank_path: Path, png) -> None:
    levels = np.asarray(Image.open(io.BytesIO(png(3)))) // 5
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    dark = buffer.getvalue()
    client = connect()
    assert "too_dark" in warnings(client, dark)
    taught = client.post("/v1/memory/entries", files={"image": dark}, data={"label": "normal"})
    assert taught.status_code == 201
    assert any(code_of(text) == "too_dark" for text in taught.json()["warnings"])
    assert "too_dark" not in warnings(client, dark)
    lowest = MemoryBank.load(bank_path).profile.brightness[0]  # a reader beside the server
    assert lowest < 0.5 * MemoryBank.load(bank_path, living=False).profile.brightness[0]
