"""Several banks by name: switching loses no request, and a failure leaves what was there."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.memory import DurableMemory
from mrad_service.settings import BankSpec, Settings

from mrad import Detector, MemoryBank
from mrad.memory.store import save_calibration

SWAPS = 20


@pytest.fixture
def banks(bank_path: Path, tiny_bank: MemoryBank) -> Path:
    """tiny, and `other`, which knows one defect of three."""
    entries = [entry.entry_id for entry in tiny_bank.entries]
    tiny_bank.remove(entries[0]).remove(entries[2]).save(bank_path.parent / "other")
    return bank_path.parent


@pytest.fixture
def app(banks: Path, tiny_encoder) -> FastAPI:
    settings = Settings(bank=banks / "tiny", bank_root=banks, auth="off", request_seconds=600)
    return create_app(settings, encoder_of=lambda bank, device: tiny_encoder)


def test_no_request_is_lost_during_20_swaps_under_load(
    app, banks, serve, png, tiny_encoder
) -> None:
    file = png(9, defect=True)
    expected = {
        name: Detector(tiny_encoder, MemoryBank.load(banks / name)).predict([file])[0].score
        for name in ("tiny", "other")
    }
    assert abs(expected["tiny"] - expected["other"]) > 1e-4, (
        "the banks must differ to be told apart"
    )
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def load(url: str) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not stop.is_set():
                answers.append(client.post("/v1/score", files={"images": file}))

    with serve(app) as url:
        workers = [threading.Thread(target=load, args=(url,)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for swap in range(SWAPS):
            name = ("other", "tiny")[swap % 2]
            switched = httpx.post(f"{url}/v1/banks/{name}/activate", timeout=120)
            assert (switched.status_code, switched.json()["name"]) == (200, name), switched.text
            seen = len(answers)
            while len(answers) < seen + 2:
                stop.wait(0.005)
        stop.set()
        for worker in workers:
            worker.join(120)
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        body = answer.json()
        score = body["results"][0]["score"]
        assert score == pytest.approx(expected[body["bank"]], abs=1e-5), (
            "judged by the bank it names"
        )
    assert {answer.json()["bank"] for answer in answers} == {"tiny", "other"}


def opened(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1")


def test_a_bank_that_cannot_be_loaded_leaves_the_old_one(app, banks: Path, png) -> None:
    shutil.copytree(banks / "other", banks / "damaged")
    with (banks / "damaged" / "patch.faiss").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff\xff")
    with opened(app) as client:
        listed = client.get("/v1/banks").json()
        assert listed == {
            "active": "tiny",
            "loaded": ["tiny"],
            "known": ["damaged", "other", "tiny"],
        }
        failed = client.post("/v1/banks/damaged/activate")
        assert (failed.status_code, failed.json()["code"]) == (409, "bank_corrupt")
        assert client.post("/v1/banks/none/activate").json()["code"] == "unknown_bank"
        assert client.get("/v1/bank").json()["name"] == "tiny"
        assert client.post("/v1/score", files={"images": png(1)}).json()["bank"] == "tiny"


def test_loaded_banks_answer_by_name_until_they_are_evicted(banks: Path, tiny_encoder, png) -> None:
    shutil.copytree(banks / "other", banks / "third")
    settings = Settings(bank=banks / "tiny", bank_root=banks, auth="off", max_loaded=2)
    app = create_app(settings, encoder_of=lambda bank, device: tiny_encoder)
    with opened(app) as client:
        assert client.get("/v1/bank", params={"bank": "other"}).json()["code"] == "bank_not_loaded"
        client.post("/v1/banks/other/activate")
        asked = client.post("/v1/score", files={"images": png(1)}, data={"bank": "tiny"})
        assert asked.json()["bank"] == "tiny"
        client.post("/v1/banks/third/activate")
        assert client.get("/v1/banks").json()["loaded"] == ["other", "third"]
        client.post("/v1/banks/tiny/activate")  # its lock was let go, so it can be taken again
        assert client.get("/v1/bank").json()["name"] == "tiny"


def test_two_names_for_one_folder_share_its_memory(bank_path: Path, tiny_encoder, png) -> None:
    specs = {"again": BankSpec(path=bank_path)}
    settings = Settings(bank=bank_path, bank_specs=specs, auth="off")
    app = create_app(settings, encoder_of=lambda bank, device: tiny_encoder)
    with opened(app) as client:
        client.post("/v1/banks/again/activate")
        data = {"label": "normal"}
        client.post(
            "/v1/memory/entries", params={"bank": "tiny"}, data=data, files={"image": png(1)}
        )
        for name in ("tiny", "again"):
            assert client.get("/v1/bank", params={"bank": name}).json()["entries"] == 7


def test_activating_again_takes_up_new_thresholds(app, banks: Path, tiny_bank, calibrated) -> None:
    with opened(app) as client:
        assert client.get("/v1/bank").json()["threshold"] is None
        save_calibration(calibrated(tiny_bank), banks / "tiny")
        client.post("/v1/banks/tiny/activate")
        assert client.get("/v1/bank").json()["threshold"] is not None


def test_a_read_only_server_is_not_taught(connect, png) -> None:
    client = connect(writable=False)
    taught = client.post("/v1/memory/entries", files={"image": png(1)}, data={"label": "normal"})
    assert (taught.status_code, taught.json()["code"]) == (403, "read_only")
    listed = client.get("/v1/memory/entries")
    assert (listed.status_code, "listed or exported" in listed.json()["detail"]) == (403, True)
    assert client.get("/v1/bank").json()["digest"]


def rebuild(banks: Path, name: str, like: str) -> None:
    """Another bank in a folder that is being served."""
    shutil.rmtree(banks / name)
    shutil.copytree(banks / like, banks / name)


def teach(client: TestClient, file: bytes, bank: str = "tiny") -> httpx.Response:
    where = {"params": {"bank": bank}, "data": {"label": "normal"}}
    return client.post("/v1/memory/entries", files={"image": file}, **where)


def test_a_rebuilt_bank_takes_over_and_learns(banks: Path, tiny_encoder, png) -> None:
    specs = {"again": BankSpec(path=banks / "tiny")}
    settings = Settings(bank=banks / "tiny", bank_specs=specs, auth="off")
    with opened(create_app(settings, encoder_of=lambda bank, device: tiny_encoder)) as client:
        client.post("/v1/banks/again/activate")
        rebuild(banks, "tiny", like="other")
        assert client.post("/v1/banks/tiny/activate").json()["entries"] == 4
        assert teach(client, png(1)).json()["entries"] == 5
        assert client.get("/v1/bank", params={"bank": "again"}).json()["entries"] == 6
        assert teach(client, png(1), "again").json()["code"] == "bank_not_loaded"
        assert client.post("/v1/banks/again/activate").json()["entries"] == 5
        assert teach(client, png(2), "again").json()["entries"] == 6
        assert client.get("/v1/bank", params={"bank": "tiny"}).json()["entries"] == 6


def test_a_rebuilt_bank_that_cannot_take_over_leaves_the_old_one_learning(
    app, banks: Path, png
) -> None:
    shutil.copytree(banks / "tiny", banks.parent / "old")
    with opened(app) as client:
        rebuild(banks, "tiny", like="other")
        (banks / "tiny" / "patch.faiss").write_bytes(b"damaged")
        assert client.post("/v1/banks/tiny/activate").json()["code"] == "bank_corrupt"
        assert teach(client, png(1)).status_code == 201
        rebuild(banks, "tiny", like="other")
        assert client.post("/v1/banks/tiny/activate").json()["code"] == "bank_rebuilt"
        assert teach(client, png(2)).json()["entries"] == 8
        assert client.get("/v1/bank").json()["entries"] == 8
    shutil.rmtree(banks / "tiny")
    (banks.parent / "old").rename(banks / "tiny")
    with DurableMemory.open(banks / "tiny") as memory:
        assert len(memory) == 8, "nothing that was promised is lost"
