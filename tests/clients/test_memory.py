"""The client's memory calls against the service's own routes, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mrad_client import Client, NotFoundError
from mrad_service.memory import DurableMemory
from mrad_service.routes.memory import memory_router

from mrad import Detector, MemoryBank
from mrad.errors import MRADError


class Runtime:
    """The active bank and its detector; nothing else."""

    def __init__(self, memory: DurableMemory, detector: Detector) -> None:
        self._memory, self._detector = memory, detector

    def memory(self, bank: str | None) -> DurableMemory:
        return self._memory

    def detector(self, bank: str | None) -> Detector:
        return self._detector


@pytest.fixture
def url(tmp_path: Path, tiny_bank: MemoryBank, tiny_detector: Detector) -> Iterator[str]:
    tiny_bank.save(tmp_path / "bank")
    memory = DurableMemory.open(tmp_path / "bank")
    app = FastAPI()
    app.state.runtime = Runtime(memory, tiny_detector)
    app.include_router(memory_router(lambda scope: lambda: None))

    @app.exception_handler(MRADError)
    def problem(request: Request, error: MRADError) -> JSONResponse:
        status = 404 if error.code == "entry_not_found" else 422
        body = {"status": status, "code": error.code, "detail": str(error)}
        return JSONResponse(body, status, media_type="application/problem+json")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    memory.close()


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
