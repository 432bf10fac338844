"""A lesson over HTTP keeps its picture: moved, it is known again."""

from __future__ import annotations

import io
from pathlib import Path

from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image

from mrad import Encoder, MemoryBank, Sample


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_good_picture_taught_over_http_is_recognised_where_it_moved(
    mini_encoder: Encoder, demo_images: Path, tmp_path: Path
) -> None:
    """After a restart too; not with a spot on it."""
    boards = sorted((demo_images / "memory" / "good").glob("*.png"))[:7]
    built = MemoryBank.from_samples(mini_encoder, [Sample(path, False) for path in boards[:6]])
    built.save(tmp_path / "boards")
    scene = Image.open(boards[6]).convert("RGB")
    still, moved = (scene.crop((x, x, scene.width - 8 + x, scene.height - 8 + x)) for x in (4, 6))
    spotted = moved.copy()
    spotted.paste((128, 0, 0), (100, 100, 110, 110))
    settings = Settings(bank=tmp_path / "boards", auth="off", head="nn")

    def known(client: TestClient) -> list[bool]:
        files = [("images", (f"{n}.png", png(one))) for n, one in enumerate((moved, spotted))]
        answer = client.post("/v1/score", files=files)
        assert answer.status_code == 200, answer.text
        return ["recognised" in result for result in answer.json()["results"]]

    for restarted in (False, True):
        app = create_app(settings, encoder_of=lambda bank, device: mini_encoder)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            if not restarted:
                assert known(client) == [False, False]
                sent = {"image": ("lesson.png", png(still))}
                answer = client.post("/v1/memory/entries", data={"label": "normal"}, files=sent)
                assert answer.status_code == 201, answer.text
            assert known(client) == [True, False]
