"""An application made before its worker is forked (gunicorn's --preload) loads and serves in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PRELOADED = """
import io, os, sys
from pathlib import Path
from mrad_service.app import create_app
from mrad_service.settings import Settings

app = create_app(Settings(bank=Path(sys.argv[1]), auth="off", request_seconds=20))
worker = os.fork()
if worker:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
try:
    from fastapi.testclient import TestClient
    with TestClient(app, base_url="http://127.0.0.1") as client:
        with Path(sys.argv[2]).open("rb") as image:
            answer = client.post("/v1/score", files={"images": image})
        print(answer.status_code, client.get("/health/live").status_code, flush=True)
finally:
    os._exit(0)
"""


def test_a_preloaded_application_serves_in_a_forked_worker(
    tmp_path: Path, demo_images: Path
) -> None:
    from mrad import Encoder, MemoryBank, Sample

    encoder = Encoder.load("mrad-mini", device="cpu")
    images = sorted((demo_images / "memory" / "good").iterdir())[:1]
    defect = sorted((demo_images / "memory" / "defect").iterdir())[0]
    mask = next((demo_images / "memory" / "masks").glob(f"{defect.stem}*"))
    samples = [Sample(images[0], False), Sample(defect, True, mask)]
    MemoryBank.from_samples(encoder, samples).save(tmp_path / "bank")
    command = [sys.executable, "-c", PRELOADED, str(tmp_path / "bank"), str(images[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "200 200" in done.stdout.splitlines(), done.stdout + done.stderr
