"""The client's memory calls against the service's own routes, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mrad_client import Client, NotFoundError
from mrad_service.serving import make_server
from mrad_service.settings import Settings

from mrad import Encoder, MemoryBank


@pytest.fixture
def url(tmp_path: Path, tiny_bank: MemoryBank, tiny_encoder: Encoder) -> Iterator[str]:
    tiny_bank.save(tmp_path / "bank")
    settings = Settings(bank=tmp_path / "bank", auth="off", port=0)
    server = make_server(settings, encoder_of=lambda *_: tiny_encoder)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_teach_list_and_forget(url: str, make_image: Any) -> None:
    image, mask = make_image(50, defect=True)
    with Client(url) as client:
        before = client.entry_page().total
        entry = client.add_entry(image, "anomalous", mask=mask, defect="blob", tags=["a,b", "ü"])
        assert (entry.label, entry.defect, entry.tags) == ("anomalous", "blob", ["a,b", "ü"])
        assert (entry.width, entry.height) == image.size
        ids = [found.entry_id for found in client.entries(page_size=2)]
        assert len(ids) == len(set(ids)) == before + 1
        assert entry.entry_id in ids
        client.remove_entry(entry.entry_id)
        assert client.entry_page().total == before
        with pytest.raises(NotFoundError) as caught:
            client.remove_entry(entry.entry_id)
        assert caught.value.code == "entry_not_found"


def test_the_same_key_adds_once(url: str, make_image: Any) -> None:
    image, _ = make_image(51)
    with Client(url) as client:
        first = client.add_entry(image, "normal", idempotency_key="k")
        again = client.add_entry(image, "normal", idempotency_key="k")
        assert first.entry_id == again.entry_id
        assert client.entry_page().total == 7
