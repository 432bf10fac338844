"""Teaching over HTTP: what was answered is durable, listed and scored with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.memory import DurableMemory
from mrad_service.runtime import Runtime
from mrad_service.settings import Settings
from PIL import Image

from mrad import Encoder, MemoryBank


@contextmanager
def served(path: Path, encoder: Encoder) -> Iterator[TestClient]:
    """A server of one bank."""
    app = create_app(Settings(bank=path, auth="off"), encoder_of=lambda *_: encoder)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def client(tmp_path: Path, tiny_bank: MemoryBank, tiny_encoder: Encoder) -> Iterator[TestClient]:
    tiny_bank.save(tmp_path / "bank")
    with served(tmp_path / "bank", tiny_encoder) as client:
        yield client


def runtime_of(client: TestClient) -> Runtime:
    return client.app.state.runtime  # type: ignore[attr-defined]


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_taught_is_scored_with_at_once(client, make_image) -> None:
    runtime = runtime_of(client)
    image, mask = make_image(77, defect=True)
    before = runtime.model().detectors[0].predict([image])[0]
    answer = client.post(
        "/v1/memory/entries",
        data={"label": "anomalous", "defect": "blob", "tags": ["a", "b"]},
        files={"image": ("77.png", png(image)), "mask": ("m.png", png(mask))},
    )
    assert answer.status_code == 201, answer.text
    entry = answer.json()["entry"]
    assert (entry["label"], entry["tags"], entry["source"]) == ("anomalous", ["a", "b"], "77.png")
    after = runtime.model().detectors[0].predict([image], evidence=1)[0]
    assert after.class_score > before.class_score
    assert after.evidence[0].entry_id == entry["entry_id"]
    assert after.evidence[0].similarity == pytest.approx(1, abs=1e-5)
    thumbnail = client.get(entry["thumbnail"])
    assert thumbnail.content[:2] == b"\xff\xd8"
    path = runtime.memory().folder.bank
    client.__exit__(None, None, None)
    with DurableMemory.open(path) as again:
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
    twice = client.post(
        "/v1/memory/entries",
        data={"label": "normal"},
        files=[("image", png(make_image(seed)[0])) for seed in (1, 2)],
    )
    assert (twice.status_code, "image: more than one" in twice.text) == (422, True)
    assert client.get("/v1/memory/entries").json()["total"] == 6


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/memory/entries?limt=2"),
        ("GET", "/v1/memory/entries?limit=2&limit=3"),
        ("GET", "/v1/memory/entries?cursor=last"),
        ("GET", "/v1/bank?name=other"),
        ("POST", "/v1/banks/bank/calibrate?taget_fpr=0.1"),
        ("POST", "/v1/banks/bank/activate?force=1"),
        ("POST", "/v2/models/bank/infer?threshold=0.3"),
    ],
)
def test_a_query_that_nothing_reads_is_refused(client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
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


def test_list_remove_export(client, tmp_path: Path) -> None:
    memory = runtime_of(client).memory()
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
        entry.entry_id for entry in memory.bank.entries
    ]
    assert not any(memory.folder.temporary.iterdir()), "the export cleans up behind itself"


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
    with served(tmp_path / "fine", tiny_encoder) as client:
        memory = runtime_of(client).memory()
        before = len(memory.bank.patch)
        answer = client.post(
            "/v1/memory/entries",
            data={"label": "normal"},
            files={"image": ("50.png", png(make_image(50, (60, 60))[0]))},
        )
        assert answer.status_code == 201, answer.text
        assert len(memory.bank.patch) == before + 3
        assert memory.bank.patch_keys == 3


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("POST", "/v1/banks/bank/calibrate?fpr=0.2", {}),
        ("POST", "/v1/banks/bank/calibrate", {"json": {"target_fpr": 0.2}}),
        ("POST", "/v1/banks/bank/activate", {"content": b"x"}),
        ("POST", "/v1/memory/entries?object=M6", {}),
        ("GET", "/v1/memory/entries?lable=normal", {}),
        ("DELETE", "/v1/memory/entries/x?banks=other", {}),
        ("GET", "/v1/bank?product=M6", {}),
        ("GET", "/v1/memory/export?object=M6", {}),
    ],
)
def test_an_option_that_nothing_reads_is_refused(client, make_image, method, path, more) -> None:
    if "entries?object" in path:
        files = {"image": ("a.png", png(make_image(1)[0]))}
        more = {"data": {"label": "normal"}, "files": files}
    answer = client.request(method, path, **more)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert "reads" in answer.json()["detail"] or "no body" in answer.json()["detail"]
    assert len(runtime_of(client).memory()) == client.get("/v1/bank").json()["entries"]


def test_an_empty_body_is_none(client) -> None:
    assert client.post("/v1/banks/bank/activate", json={}).status_code == 200


def test_names_of_products(client, make_image) -> None:
    def taught(name: str, seed: int = 5):
        return client.post(
            "/v1/memory/entries",
            data={"label": "normal", "object_name": name},
            files={"image": ("a.png", png(make_image(seed)[0]))},
        )

    def doubt(answer) -> list[str]:
        return [w for w in answer.json()["warnings"] if w.startswith("new_product")]

    answer = taught(" M6 ")
    assert answer.json()["entry"]["object_name"] == "M6"
    assert not doubt(answer)
    assert not doubt(taught("M6", 6))
    (warning,) = doubt(taught("m6", 7))
    assert "'M6'" in warning
    for name in ("a\nb", "tab\there", "x" * 201):
        answer = taught(name)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert taught("Schraube ü 😀").json()["entry"]["object_name"] == "Schraube ü 😀"
