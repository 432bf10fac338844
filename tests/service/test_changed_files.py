"""Files that change under a running server, over HTTP: no wrong verdict, no promise that cannot be kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mrad_service.app import create_app
from mrad_service.settings import Settings

from mrad import MemoryBank


def teach(client: TestClient, file: bytes) -> tuple[int, str]:
    answer = client.post("/v1/memory/entries", files={"image": file}, data={"label": "normal"})
    return answer.status_code, answer.json().get("detail", "")


def score(client: TestClient, file: bytes) -> float:
    return client.post("/v1/score", files={"images": file}).json()["results"][0]["score"]


def test_a_bank_overwritten_by_another_changes_no_verdict(
    connect, bank_path: Path, tiny_bank: MemoryBank, tiny_encoder, png
) -> None:
    entries = [entry.entry_id for entry in tiny_bank.entries]
    tiny_bank.remove(entries[0]).remove(entries[2]).save(bank_path.parent / "new")
    client = connect()
    assert teach(client, png(1))[0] == 201
    before = score(client, png(2))
    for file in (bank_path.parent / "new").iterdir():  # cp -r new/. bank/
        shutil.copyfile(file, bank_path / file.name)
    status, why = teach(client, png(3))
    assert status == 503
    assert "was overwritten while the server ran" in why
    ready = client.get("/health/ready")
    assert ready.status_code == 503
    assert "overwritten" in ready.text
    assert score(client, png(2)) == before, "what is in memory is judged by"
    assert client.get("/v1/bank").json()["entries"] == len(entries) + 1


@pytest.mark.parametrize("how", ["one file", "the folder"])
def test_a_living_memory_that_is_deleted_ends_the_acknowledging(
    connect, bank_path: Path, png, how: str
) -> None:
    client = connect()
    assert teach(client, png(1))[0] == 201
    before = score(client, png(2))
    live = bank_path.with_name(bank_path.name + ".live")
    shutil.rmtree(live) if how == "the folder" else (live / "memory.sqlite").unlink()
    status, why = teach(client, png(3))
    assert status == 503
    assert "removed while the server ran" in why
    assert "removed" in client.get("/health/ready").text
    assert score(client, png(2)) == before


def test_swaps_leave_no_mapping_behind(bank_path: Path, tiny_bank, tiny_encoder, png) -> None:
    """Keys of a bank that was let go are neither mapped nor open."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    tiny_bank.save(bank_path.parent / "other")
    settings = Settings(
        bank=bank_path, bank_root=bank_path.parent, auth="off", max_loaded=1, batch_wait=0.0
    )
    app = create_app(settings, encoder_of=lambda bank, device: tiny_encoder)

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        root = str(bank_path.parent)
        files = 0
        for link in Path("/proc/self/fd").iterdir():
            try:
                files += str(link.readlink()).startswith(root)
            except OSError:
                continue
        return sum(root in line for line in maps), files

    with TestClient(app, base_url="http://127.0.0.1") as client:
        score(client, png(1))
        client.post("/v1/banks/other/activate")
        client.post("/v1/banks/tiny/activate")
        first = held()
        for _ in range(10):
            for name in ("other", "tiny"):
                assert client.post(f"/v1/banks/{name}/activate").status_code == 200
                assert score(client, png(1)) > 0
        assert held() == first
    assert held() == (0, 0)
