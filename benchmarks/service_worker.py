"""The ways to judge images that benchmarks/service.py compares, each a process of its own.

python -m benchmarks.service_worker bare | mrad|litserve|openvino PORT BATCH

MRAD_BENCH_QUICK=1: a seeded tower instead of the shipped encoder, to check the scripts.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from litserve import LitAPI
except ImportError:  # the extra `bench`
    LitAPI = object

from benchmarks.geometry import Geometry
from mrad import Detector, Encoder, MemoryBank, Sample

DEMO = Path(__file__).parent.parent / "mrad" / "demo" / "deep_pcb"


def detector() -> Detector:
    """On a memory of the bundled boards.

    The shipped encoder on the CPU; with MRAD_BENCH_DEVICE the paper's tower there, in bf16.
    """
    device = os.environ.get("MRAD_BENCH_DEVICE")
    if os.environ.get("MRAD_BENCH_QUICK") == "1":
        encoder = Geometry.tiny().encoder(device=device or "cpu")
    elif device:
        encoder = Geometry.paper().encoder("bf16", device)
    else:
        encoder = Encoder.load("mrad-mini", device="cpu")
    return Detector(encoder, MemoryBank.from_samples(encoder, samples()))


def samples() -> list[Sample]:
    """The bundled boards of the demo's memory."""
    memory = DEMO / "memory"
    return [
        Sample(path, path.parent.name == "defect", mask if mask.exists() else None, path.name)
        for path in sorted([*memory.glob("good/*"), *memory.glob("defect/*")])
        for mask in [memory / "masks" / f"{path.stem}.png"]
    ]


def queries() -> list[bytes]:
    """The bundled query images, as files."""
    images = (path for kind in ("good", "defect") for path in (DEMO / "query" / kind).iterdir())
    return [path.read_bytes() for path in sorted(images)]


def bare() -> None:
    """For each line `IMAGES BATCH` of standard input: judges so many, prints the seconds."""
    judge, files = detector(), queries()
    judge.predict(files[:1], maps=False)
    print("ready", flush=True)
    for line in sys.stdin:
        images, batch = map(int, line.split())
        wanted = [files[i % len(files)] for i in range(images)]
        began = time.perf_counter()
        judge.predict(wanted, batch_size=batch, maps=False)
        print(json.dumps(time.perf_counter() - began), flush=True)


def mrad(port: int, batch: int) -> None:
    """This project's server."""
    from mrad_service.serving import make_server
    from mrad_service.settings import Settings
    from mrad_service.telemetry.logs import configure

    judge = detector()
    configure("json", "warning")
    with tempfile.TemporaryDirectory() as folder:
        judge.bank.save(Path(folder) / "bank")
        settings = Settings(
            bank=Path(folder) / "bank", auth="off", port=port, max_batch=batch, queue_seconds=600,
            queue_images=4096, request_seconds=600,
        )  # fmt: skip
        make_server(settings, encoder_of=lambda bank, device: judge.encoder).run()


def on_openvino(encoder: Encoder) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same tower, float32, compiled by OpenVINO for any batch size."""
    import openvino

    from mrad.encoder.tower import Tower
    from mrad.encoder.weights import find_tower

    found = find_tower("mrad-mini", None)
    assert found is not None
    tower = Tower(found.parts, encoder.image_size, torch.float32)
    side = encoder.image_size
    model = openvino.convert_model(
        tower, example_input=torch.zeros(2, 3, side, side), input=[-1, 3, side, side]
    )
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", hints)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = compiled(pixels.numpy())
        return torch.from_numpy(found[0].copy()), torch.from_numpy(found[1].copy())

    pixels = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        for own, other in zip(encoder.tower(pixels), run(pixels)):
            torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-3)
    return run


class API(LitAPI):  # type: ignore[misc, valid-type]
    """The same detector behind LitServe; here, where its worker processes find it."""

    inference = ""
    """What runs the tower: `openvino`, or PyTorch as everywhere here."""

    def setup(self, device: str) -> None:
        self.judge = detector()
        if self.inference == "openvino":
            self.judge.encoder.run = on_openvino(self.judge.encoder)  # type: ignore[assignment]

    def decode_request(self, request: dict[str, str], **_: Any) -> Any:
        return self.judge.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any], **_: Any) -> list[Any]:
        features = self.judge.encode(inputs)
        return self.judge.finish(features, [item.size for item in inputs], maps=False)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any, **_: Any) -> dict[str, float]:
        return {"score": output.score, "class_score": output.class_score}


def litserve(port: int, batch: int, inference: str = "") -> None:
    """LitServe around the same detector, with the same batch size and wait."""
    from litserve import LitServer

    from benchmarks import service_worker  # by its name, for the worker processes unpickle it

    api = service_worker.API(max_batch_size=batch, batch_timeout=0.02)
    api.inference = inference
    server = LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare()
    else:
        run = {
            "mrad": mrad,
            "litserve": litserve,
            "openvino": partial(litserve, inference="openvino"),
        }
        run[sys.argv[1]](*map(int, sys.argv[2:]))
