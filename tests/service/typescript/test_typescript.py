"""The TypeScript client: its types are the server's, it compiles, and it works against a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from mrad_service.middleware.auth import KeyFile

CLIENT = Path(__file__).parents[3] / "clients" / "typescript"
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "types.mjs", "src", "test")


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client beside its tools, which are installed from the lock file."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("no Node: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("typescript")
    for name in SOURCES:
        source = CLIENT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    done = run(folder, "npm", "ci", *options)
    if done.returncode:
        pytest.skip(f"npm cannot install the compiler: {done.stderr.strip()[-300:]}")
    return folder


def test_the_types_are_the_servers(copy, make_app, tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(make_app().openapi()))
    done = run(copy, "node", "types.mjs", str(tmp_path / "openapi.json"), str(tmp_path / "now.ts"))
    assert done.returncode == 0, done.stderr
    written = (CLIENT / "src" / "schemas.ts").read_text()
    assert (tmp_path / "now.ts").read_text() == written, "npm run types, see its README"


def test_it_works_against_a_running_server(copy, make_app, serve, make_image, tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("tests", ("admin",))
    make_image(1)[0].save(tmp_path / "good.png")
    image, mask = make_image(2, defect=True)
    image.save(tmp_path / "bad.png")
    mask.save(tmp_path / "mask.png")
    with serve(make_app(auth="keys", api_keys_file=keys.path)) as url:
        done = run(copy, "npm", "test", MRAD_URL=url, MRAD_API_KEY=key, MRAD_IMAGES=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
