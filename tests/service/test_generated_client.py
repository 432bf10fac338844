"""A client that openapi-python-client writes from the description uploads, teaches and scores."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from mrad_service.middleware.auth import KeyFile
from PIL import Image

GENERATOR = "openapi-python-client==0.29.1"
"""Run apart from this environment, whose typer it would hold back."""

BINARY = "application/octet-stream"
CONFIG = f"""
post_hooks: []
content_type_overrides:  # the generator knows no other binary answer
  image/jpeg: {BINARY}
  application/x-tar: {BINARY}
"""


@pytest.fixture
def generated(make_app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the package that was written, which can be imported."""
    (tmp_path / "openapi.json").write_text(json.dumps(make_app().openapi()))
    (tmp_path / "config.yml").write_text(CONFIG)
    done = subprocess.run(
        [
            shutil.which("uvx", path=str(Path(sys.executable).parent)) or "uvx",
            "--from", GENERATOR, "openapi-python-client", "generate", "--path", "openapi.json",
            "--config", "config.yml", "--output-path", "written_client", "--meta", "none",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "Failed to fetch" in done.stderr or "No solution found" in done.stderr:
        pytest.skip(f"the generator cannot be installed: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "written_client"
    for name in [name for name in sys.modules if name.startswith("written_client")]:
        del sys.modules[name]


def test_it_uploads_teaches_and_scores(generated, make_app, serve, png, tmp_path) -> None:
    def part(name: str) -> ModuleType:
        return importlib.import_module(f"{generated}.{name}")

    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("a", ("admin",))
    types, models = part("types"), part("models")

    def file(seed: int):
        return types.File(io.BytesIO(png(seed)), f"{seed}.png", "image/png")

    with serve(make_app(auth="keys", api_keys_file=keys.path)) as url:
        client = part("client").AuthenticatedClient(base_url=url, token=key)
        sent = models.ScoreFilesScoreOptions(images=[file(1), file(2)], map_=types.UNSET)
        scores = part("api.score.score").sync(client=client, body=sent)
        assert [result.status for result in scores.results] == ["ok", "ok"]
        lesson = models.BodyAddEntry(image=file(3), label=models.BodyAddEntryLabel.NORMAL)
        add = part("api.memory.add_entry").sync_detailed
        first = add(client=client, body=lesson, idempotency_key="4711")
        assert (first.status_code, first.parsed.repeated) == (201, False)
        lesson.image = file(3)
        again = add(client=client, body=lesson, idempotency_key="4711")
        assert (again.status_code, again.parsed.repeated) == (200, True)
        found = part("api.memory.list_entries").sync(client=client)
        assert found.entries[0].entry_id == first.parsed.entry.entry_id
        taught = first.parsed.entry.entry_id
        small = part("api.memory.get_thumbnail").sync_detailed(taught, client=client)
        with Image.open(io.BytesIO(small.content)) as picture:
            assert picture.format == "JPEG"
        assert small.parsed.payload.read() == small.content  # a file, not text
        copy = part("api.memory.export_memory").sync_detailed(client=client)
        with tarfile.open(fileobj=copy.parsed.payload) as archive:
            assert any(name.endswith("bank.json") for name in archive.getnames())
        stranger = part("client").Client(base_url=url)
        refused = part("api.banks.get_bank").sync_detailed(client=stranger)
        assert (refused.status_code, refused.parsed.code) == (401, "unauthenticated")
