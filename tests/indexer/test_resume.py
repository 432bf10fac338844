"""A scoring run that is started again: what is asked for once more, and what is not."""

from __future__ import annotations

import csv
import errno
from pathlib import Path


def test_what_a_disk_or_network_refused_once_is_asked_for_again(
    tmp_path, mrad, make_image, board_bank, monkeypatch
):
    """The file has not changed since, and would have kept its error for good."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        make_image(40, (60, 50))[0].save(photos / name)
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    command = ["score", photos, "--bank", board_bank, "--out", tmp_path / "o", "--device", "cpu"]
    plain = Path.read_bytes
    asked, refused = [], {"a.png"}

    def read_bytes(path):
        asked.append(path.name)
        if path.name in refused:
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(path)

    def states():
        asked.clear()
        assert mrad(*command).exit_code == 1
        with (tmp_path / "o/results.csv").open() as file:
            return {row["name"]: row["status"] for row in csv.DictReader(file)}

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert states() == {"a.png": "error", "b.png": "ok", "torn.jpg": "error"}
    refused.clear()
    assert states() == {"a.png": "ok", "b.png": "ok", "torn.jpg": "error"}
    assert "a.png" in asked
    assert "torn.jpg" not in asked, "what is broken stays so"
