"""The application on Ray Serve: the same answers, from several processes, whichever of them dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from mrad import Encoder, MemoryBank, Sample
from mrad.errors import MRADError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mrad[ray]'")


def encoder_for(load: Callable[[], Encoder], bank: MemoryBank, device: str) -> Encoder:
    """What a replica loads: the tiny encoder, whatever the bank says."""
    return load()


encoder_for.__module__ = "__main__"  # travels whole, as in conftest


@pytest.fixture
def served(
    ray_cluster: Any, load: Callable[[], Encoder], pids: Path, tiny_samples: list[Sample],
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """Address of two replicas, and the settings they have."""
    from mrad_service.ray import Scale, deployment
    from mrad_service.settings import Settings
    from ray import serve

    MemoryBank.from_samples(load(), tiny_samples).save(tmp_path / "bank")
    settings = Settings(bank=tmp_path / "bank", auth="off", device="cpu")
    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 600)
    serve.start(http_options={"host": "127.0.0.1", "port": unused_port})
    scale = Scale(replicas=2, cpus=0.5)
    serve.run(deployment(settings, scale, partial(encoder_for, load)), name="mrad")
    yield f"http://127.0.0.1:{unused_port}", settings
    serve.shutdown()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_arguments_are_settings_and_scale(tmp_path: Path) -> None:
    from mrad_service.ray import build

    arguments = {"bank": str(tmp_path), "auth": "off", "replicas": "3", "gpus": "0.5"}
    deployed = build(arguments)._bound_deployment
    assert deployed.num_replicas == 3
    assert deployed.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert deployed.max_ongoing_requests == 256  # as many as the application's own queue
    with pytest.raises(MRADError, match="there is no setting bnak"):
        build({"bnak": str(tmp_path), "auth": "off"})
    with pytest.raises(ValueError, match="no API keys"):
        build({"bank": str(tmp_path)})


@pytest.mark.nightly
def test_replicas_answer_as_one_server_and_outlive_a_kill(
    served: tuple[str, Any],
    load: Callable[[], Encoder],
    pids: Path,
    make_image: Any,
    tmp_path: Path,
) -> None:
    from mrad_service.app import create_app

    url, settings = served
    image, _ = make_image(70, defect=True)
    image.save(tmp_path / "image.png")
    files = [("images", ("image.png", (tmp_path / "image.png").read_bytes()))]
    app = create_app(
        settings.model_copy(update={"writable": False}), encoder_of=partial(encoder_for, load)
    )
    with TestClient(app, base_url="http://127.0.0.1") as one:
        expected = one.post("/v1/score", files=files).json()["results"]
        schema = one.get("/openapi.json").json()
        refusal = one.post(
            "/v1/memory/entries", files=[("image", files[0][1])], data={"label": "normal"}
        )
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/openapi.json").json() == schema
        answer = client.post("/v1/score", files=files)
        assert answer.json()["results"] == expected
        taught = client.post(
            "/v1/memory/entries", files=[("image", files[0][1])], data={"label": "normal"}
        )
        assert (taught.status_code, taught.json()["code"]) == (403, refusal.json()["code"])
        bad = client.post("/v1/score", files=[("images", ("x.png", b"no image"))])
        assert bad.json()["results"][0]["problem"]["code"] == "invalid_image"

        replicas = {int(path.name) for path in pids.iterdir()} - {os.getpid()}
        os.kill(min(replicas), signal.SIGKILL)
        end = time.monotonic() + 120
        answered = 0
        while answered < 20:
            assert time.monotonic() < end
            try:
                again = client.post("/v1/score", files=files)
            except httpx.TransportError:
                continue
            if again.status_code == 200:
                assert again.json()["results"] == expected
                answered += 1
            else:
                assert again.status_code in (500, 503), again.text
                time.sleep(0.2)
