"""A server on the tiny bank: in-process for most tests, over a socket where that matters."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from mrad import Encoder, MemoryBank
from service.app import create_app
from service.settings import Settings


@pytest.fixture
def bank_path(tmp_path: Path, tiny_bank: MemoryBank) -> Path:
    """The tiny bank on disk."""
    tiny_bank.save(tmp_path / "banks" / "tiny")
    return tmp_path / "banks" / "tiny"


@pytest.fixture
def make_app(bank_path: Path, tiny_encoder: Encoder) -> Callable[..., FastAPI]:
    """`make_app(**settings)`: no keys are asked for unless told."""

    def make(**given: Any) -> FastAPI:
        settings = {"bank": bank_path, "auth": "off", "batch_wait": 0.005} | given
        return create_app(Settings(**settings), encoder_of=lambda bank, device: tiny_encoder)

    return make


@pytest.fixture
def connect(make_app: Callable[..., FastAPI]) -> Iterator[Callable[..., TestClient]]:
    """`connect(**settings)`: a client of a started application."""
    open_ones: list[TestClient] = []

    def start(**given: Any) -> TestClient:
        client = TestClient(make_app(**given), base_url="http://127.0.0.1")
        client.__enter__()
        open_ones.append(client)
        return client

    yield start
    for client in open_ones:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect: Callable[..., TestClient]) -> TestClient:
    """A client of a server with the defaults."""
    return connect()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application behind a real socket; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture
def serve() -> Callable[[FastAPI], Any]:
    """`with serve(app) as url:`"""
    return served


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def png(make_image: Any) -> Callable[..., bytes]:
    """`png(seed, size=(w, h), defect=False)`: an image file."""
    return lambda seed=0, *args, **kwargs: encode_png(make_image(seed, *args, **kwargs)[0])
