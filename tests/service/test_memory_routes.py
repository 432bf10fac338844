"""Teaching over HTTP: what was answered is durable, listed and scored with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from mrad_service.memory import DurableMemory
from mrad_service.routes.memory import memory_router
from PIL import Image

from mrad import Detector, MemoryBank
from mrad.errors import MRADError


class Runtime:
    """The smallest thing that serves the routes: one bank, one detector that follows it."""

    def __init__(self, path: Path, encoder) -> None:
        self.live = DurableMemory.open(path, encoder=encoder)
        self.current = Detector(encoder, self.live.bank)
        self.live.subscribe(self._follow)

    def _follow(self, bank: MemoryBank) -> None:
        self.current = self.current.with_bank(bank)

    def memory(self, bank: str | None) -> DurableMemory:
        return self.live

    def detector(self, bank: str | None) -> Detector:
        return self.current


def make_app(runtime: Runtime) -> FastAPI:
    app = FastAPI()
    app.state.runtime = runtime
    app.include_router(memory_router(lambda scope: lambda: None))

    @app.exception_handler(MRADError)
    async def problem(_: Request, error: MRADError) -> JSONResponse:
        return JSONResponse({"code": error.code, "detail": str(error)}, 400)

    return app


@pytest.fixture
def runtime(tmp_path: Path, tiny_bank: MemoryBank, tiny_encoder) -> Iterator[Runtime]:
    tiny_bank.save(tmp_path / "bank")
    runtime = Runtime(tmp_path / "bank", tiny_encoder)
    yield runtime
    runtime.live.close()


@pytest.fixture
def client(runtime: Runtime) -> TestClient:
    return TestClient(make_app(runtime))


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_taught_is_scored_with_at_once(client, runtime, make_image, tiny_encoder) -> None:
    image, mask = make_image(77, defect=True)
    before = runtime.current.predict([image])[0]
    answer = client.post(
        "/v1/memory/entries",
        data={"label": "anomalous", "defect": "blob", "tags": ["a", "b"]},
        files={"image": ("77.png", png(image)), "mask": ("m.png", png(mask))},
    )
    assert answer.status_code == 201, answer.text
    entry = answer.json()["entry"]
    assert (entry["label"], entry["tags"], entry["source"]) == ("anomalous", ["a", "b"], "77.png")
    after = runtime.current.predict([image], evidence=1)[0]
    assert after.class_score > before.class_score
    assert after.evidence[0].entry_id == entry["entry_id"]
    assert after.evidence[0].similarity == pytest.approx(1, abs=1e-5)
    thumbnail = client.get(entry["thumbnail"])
    assert thumbnail.content[:2] == b"\xff\xd8"
    path = runtime.live.folder.bank
    runtime.live.close()
    with DurableMemory.open(path, encoder=tiny_encoder) as again:
        assert again.get(entry["entry_id"]).defect == "blob"
        assert {str(r) for r in again.bank.patch.region[-2:]} == {"normal", "anomalous"}


def test_a_mask_too_thin_for_any_patch_is_said(client, make_image) -> None:
    image, mask = make_image(5, defect=True)
    thin = Image.new("L", mask.size)
    thin.putpixel((3, 3), 255)
    notes = [
        client.post(
            "/v1/memory/entries",
            data={"label": "anomalous"},
            files={"image": ("a.png", png(image)), "mask": ("m.png", png(painted))},
        ).json()["note"]
        for painted in (mask, thin)
    ]
    assert notes[0] is None
    assert "covers no patch" in notes[1]


def test_what_is_doubtful_about_a_lesson_is_said(client, make_image) -> None:
    image, mask = make_image(6, defect=True)

    def post(label: str, painted: Image.Image):
        return client.post(
            "/v1/memory/entries",
            data={"label": label},
            files={"image": ("a.png", png(image)), "mask": ("m.png", png(painted))},
        )

    inverted = post("anomalous", mask.point(lambda level: 255 - level)).json()
    assert "looks inverted" in inverted["warnings"][0]
    empty = post("anomalous", Image.new("L", mask.size)).json()
    assert empty["warnings"][0].startswith("mask_empty")
    assert "mask is empty" in empty["note"]
    refused = post("normal", mask)
    assert refused.json()["code"] == "invalid_mask"
    assert "label is normal" in refused.json()["detail"]


def test_a_field_that_nothing_reads_is_refused(client, make_image) -> None:
    refused = client.post(
        "/v1/memory/entries",
        data={"label": "normal", "object": "screws"},
        files={"image": png(make_image(1)[0])},
    )
    assert refused.json()["code"] == "invalid_request"
    assert "nothing reads object;" in refused.text
    assert client.get("/v1/memory/entries").json()["total"] == 6


def test_a_retry_adds_nothing(client, make_image) -> None:
    image, mask = make_image(1, defect=True)
    sent = {"image": ("a.png", png(image)), "mask": ("m.png", png(mask))}

    def post(label: str = "anomalous", **other: tuple[str, bytes]):
        files = sent | other
        return client.post(
            "/v1/memory/entries",
            data={"label": label},
            files=files if label == "anomalous" else {"image": files["image"]},
            headers={"Idempotency-Key": "one"},
        )

    first, second = post(), post()
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["repeated"]
    assert second.json()["entry"] == first.json()["entry"]
    pixels = ("a.png", png(make_image(2)[0]))  # the same name, label and size
    elsewhere = ("m.png", png(make_image(3, defect=True)[1]))
    for other in (post("normal"), post(image=pixels), post(mask=elsewhere)):
        assert other.json()["code"] == "idempotency_conflict"
    assert client.get("/v1/memory/entries").json()["total"] == 7


def test_list_remove_export(client, runtime, tmp_path: Path) -> None:
    first = client.get("/v1/memory/entries", params={"limit": 4}).json()
    rest = client.get("/v1/memory/entries", params={"cursor": first["next_cursor"]}).json()
    ids = [entry["entry_id"] for page in (first, rest) for entry in page["entries"]]
    assert len(set(ids)) == 6
    assert rest["next_cursor"] is None
    assert client.delete(f"/v1/memory/entries/{ids[0]}").status_code == 200
    gone = client.get(f"/v1/memory/entries/{ids[0]}")
    assert gone.json()["code"] == "entry_not_found"
    archive = client.get("/v1/memory/export")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    copy = MemoryBank.load(tmp_path / "out" / "bank")
    assert [entry.entry_id for entry in copy.entries] == [
        entry.entry_id for entry in runtime.live.bank.entries
    ]
    assert not any(runtime.live.folder.temporary.iterdir()), "the export cleans up behind itself"


def test_what_is_no_image_or_mask_is_refused(client, make_image) -> None:
    image, _ = make_image(5, defect=True)
    other = make_image(6, (30, 30), defect=True)[1]
    bad = client.post("/v1/memory/entries", data={"label": "normal"}, files={"image": b"no image"})
    assert bad.json()["code"] == "invalid_image"
    wrong = client.post(
        "/v1/memory/entries",
        data={"label": "anomalous"},
        files={"image": png(image), "mask": png(other)},
    )
    assert wrong.json()["code"] == "invalid_mask"
    odd = client.post("/v1/memory/entries", data={"label": "odd"}, files={"image": png(image)})
    assert odd.status_code == 422
    assert client.get("/v1/memory/entries").json()["total"] == 6


def test_a_lesson_adds_what_an_image_of_the_build_added(
    tmp_path: Path, tiny_encoder, tiny_samples, make_image
) -> None:
    MemoryBank.from_samples(tiny_encoder, tiny_samples, patch_keys=3).save(tmp_path / "fine")
    fine = Runtime(tmp_path / "fine", tiny_encoder)
    before = len(fine.live.bank.patch)
    answer = TestClient(make_app(fine)).post(
        "/v1/memory/entries",
        data={"label": "normal"},
        files={"image": ("50.png", png(make_image(50, (60, 60))[0]))},
    )
    assert answer.status_code == 201, answer.text
    assert len(fine.live.bank.patch) == before + 3
    assert fine.live.bank.patch_keys == 3
    fine.live.close()
