"""No command imports what it does not use: each starts in a process of its own, and says what it loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrad import Encoder, MemoryBank, Sample
from mrad.demo import FOLDER

BUILDS_CLIPS = ("open_clip", "timm", "torchvision", "sympy", "torch._dynamo", "torch._inductor")
"""What building a CLIP imports; inference needs none of it."""
FOR_FEW = ("sklearn", "matplotlib", "jinja2", "ray", "IPython")
FOR_OTHERS = ("pandas", "scipy", "skimage", *BUILDS_CLIPS, *FOR_FEW)
"""What an image, a memory and a server need nothing of."""
LIGHT = ("torch", "faiss", "mrad_service.app", *FOR_OTHERS)


def loaded(program: str, names: tuple[str, ...], cwd: Path | None = None) -> list[str]:
    """Which of `names` a program has imported when it ends."""
    ending = f"\nimport json, sys; print('LOADED', json.dumps([m for m in {names!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program + ending],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rsplit("LOADED ", 1)[1])


def command(*arguments: str) -> str:
    """A program that runs `mrad` and expects it to succeed."""
    return (
        "from typer.testing import CliRunner\nfrom mrad_indexer.cli.main import app\n"
        f"done = CliRunner().invoke(app, {list(arguments)!r})\n"
        "assert done.exit_code == 0, done.output"
    )


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small memory of mrad-mini."""
    good = next((FOLDER / "memory" / "good").glob("*.png"))
    bad = next((FOLDER / "memory" / "defect").glob("*.png"))
    mask = FOLDER / "memory" / "masks" / bad.name
    samples = [Sample(good, anomalous=False), Sample(bad, anomalous=True, mask=mask)]
    path = tmp_path_factory.mktemp("start") / "bank"
    MemoryBank.from_samples(Encoder.load(), samples).save(path)
    return path


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert loaded("import mrad; mrad.MRADError", LIGHT) == []


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("heads", "list"), ("weights", "--help"), ("keys", "--help"), ("score", "--help"),
     ("build", "--help"), ("data", "check", str(FOLDER / "memory"))],
)  # fmt: skip
def test_light_commands_load_no_torch(arguments: tuple[str, ...]) -> None:
    assert loaded(command(*arguments), LIGHT) == []


def test_a_bank_is_inspected_without_torch_and_faiss(bank: Path) -> None:
    assert loaded(command("bank", "inspect", str(bank)), LIGHT) == []


def test_an_image_is_scored_without_what_builds_clips(bank: Path, tmp_path: Path) -> None:
    image = next((FOLDER / "query" / "good").glob("*.png"))
    program = command("score", str(image), "--bank", str(bank), "--out", str(tmp_path / "out"))
    assert loaded(program, (*FOR_OTHERS, "httpx", "mrad_client.client")) == []


def test_a_memory_is_built_without_what_builds_clips(tmp_path: Path) -> None:
    program = command("build", str(FOLDER / "memory"), "--out", str(tmp_path / "bank"))
    assert loaded(program, (*BUILDS_CLIPS, "pandas", "httpx")) == []


POLICY = "ACTIVE" if sys.platform == "linux" else "PASSIVE"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, f"{POLICY} 1000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE None"),
     ({"GOMP_SPINCOUNT": "7"}, f"{POLICY} 7")],
)  # fmt: skip
def test_threads_hardly_spin_unless_told_otherwise(chosen: dict[str, str], expected: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    given = {k: v for k, v in os.environ.items() if k not in names} | chosen
    program = f"import mrad_indexer.cli.main, os; print(*map(os.environ.get, {names!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == expected, done.stderr


def test_the_server_starts_and_judges_without_what_builds_clips(bank: Path) -> None:
    image = next((FOLDER / "query" / "good").glob("*.png"))
    program = (
        "from fastapi.testclient import TestClient\nfrom pathlib import Path\n"
        "from mrad_service.app import create_app\nfrom mrad_service.settings import Settings\n"
        f"app = create_app(Settings(bank={str(bank)!r}, auth='off'))\n"
        "with TestClient(app, base_url='http://127.0.0.1') as client:\n"
        f"    files = {{'images': Path({str(image)!r}).read_bytes()}}\n"
        "    answer = client.post('/v1/score', files=files)\n"
        "    assert answer.status_code == 200, answer.text\n"
    )
    assert loaded(program, FOR_OTHERS) == []
