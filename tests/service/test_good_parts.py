"""A server whose memory holds good parts alone: it learns, forgets, and never loses its last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.settings import Settings

from mrad import Encoder, MemoryBank, Sample


@pytest.fixture(scope="module")
def pictures(demo_images: Path) -> list[Path]:
    return sorted((demo_images / "memory" / "good").glob("*.png"))[:5]


@pytest.fixture
def bank(tmp_path: Path, mini_encoder: Encoder, pictures: list[Path]) -> Path:
    samples = [Sample(path, anomalous=False, source=path.name) for path in pictures[:4]]
    MemoryBank.from_samples(mini_encoder, samples).save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def serve(bank: Path, mini_encoder: Encoder) -> Iterator[Callable[..., TestClient]]:
    opened = []

    def start(**given: Any) -> TestClient:
        settings = Settings(bank=bank, auth="off", request_seconds=600, **given)
        client = TestClient(
            create_app(settings, encoder_of=lambda bank, device: mini_encoder),
            base_url="http://127.0.0.1",
        )
        client.__enter__()
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


def teach(client: TestClient, path: Path, label: str) -> str:
    answer = client.post(
        "/v1/memory/entries",
        data={"label": label},
        files={"image": (path.name, path.read_bytes())},
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["entry"]["entry_id"])


def judge(client: TestClient, path: Path) -> dict[str, Any]:
    options = {"evidence": "1"}
    files = {"images": (path.name, path.read_bytes())}
    (result,) = client.post("/v1/score", data=options, files=files).json()["results"]
    return dict(result)


def test_a_good_image_that_was_taught_is_known_at_the_next_verdict_and_forgotten_again(
    serve, pictures
) -> None:
    client = serve()
    new = pictures[4]
    before = judge(client, new)
    entry = teach(client, new, "normal")
    taught = judge(client, new)
    assert taught["score"] < before["score"]
    patches = [found for found in taught["evidence"] if found["level"] == "patch"]
    assert patches[0]["entry_id"] == entry
    assert patches[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert client.delete(f"/v1/memory/entries/{entry}").status_code == 204
    assert judge(client, new)["score"] == pytest.approx(before["score"], abs=1e-4)


def test_a_defect_taught_by_mistake_can_be_forgotten(serve, pictures, demo_images) -> None:
    client = serve()
    before = judge(client, pictures[4])
    entry = teach(client, sorted((demo_images / "query" / "defect").glob("*.png"))[0], "anomalous")
    assert client.get("/v1/bank").json()["head"] == "nn"
    judge(client, pictures[4])
    assert client.delete(f"/v1/memory/entries/{entry}").status_code == 204
    assert judge(client, pictures[4])["score"] == pytest.approx(before["score"], abs=1e-4)


def test_the_last_good_image_stays_and_the_answer_says_why(serve, pictures) -> None:
    client = serve()
    entries = [e["entry_id"] for e in client.get("/v1/memory/entries").json()["entries"]]
    answers = [client.delete(f"/v1/memory/entries/{entry}") for entry in entries]
    assert [answer.status_code for answer in answers] == [204] * 3 + [409]
    problem = answers[-1].json()
    assert problem["code"] == "no_good_parts"
    assert "add another good image first" in problem["detail"]
    assert judge(client, pictures[4])["status"] == "ok"


def test_a_head_that_compares_classes_keeps_both(
    tmp_path: Path, mini_encoder: Encoder, pictures, demo_images
) -> None:
    defect = sorted((demo_images / "memory" / "defect").glob("*.png"))[0]
    samples = [
        *(Sample(path, anomalous=False, source=path.name) for path in pictures[:3]),
        Sample(defect, True, demo_images / "memory" / "masks" / defect.name, source="bad"),
    ]
    MemoryBank.from_samples(mini_encoder, samples).save(tmp_path / "both")
    for head, status in (("tf", 409), ("nn", 204)):
        settings = Settings(bank=tmp_path / "both", head=head, auth="off")
        app = create_app(settings, encoder_of=lambda bank, device: mini_encoder)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            listed = client.get("/v1/memory/entries").json()["entries"]
            bad = next(e["entry_id"] for e in listed if e["label"] == "anomalous")
            answer = client.delete(f"/v1/memory/entries/{bad}")
            assert answer.status_code == status, answer.text
            if status == 409:
                assert answer.json()["code"] == "one_class_memory"
                assert "with head nn" in answer.json()["detail"]
            assert judge(client, pictures[4])["status"] == "ok"
