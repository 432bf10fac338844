"""`mrad build --engine ray` as people run it, when its own process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mrad_indexer.build.build import work_folder

from mrad import MemoryBank

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mrad[ray]'")

LIMIT = 900
"""Seconds, on a loaded machine."""


def mrad(*arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, the leader of a group."""
    command = [sys.executable, "-m", "mrad_indexer.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)  # its own cluster, not that of other tests
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stdout + stderr
    return stdout


def shards(journal: Path) -> int:
    return journal.read_text().count('"stamp"') if journal.is_file() else 0


@pytest.mark.nightly
def test_a_driver_killed_and_started_again_gives_the_bank_of_a_local_build(
    make_folder: Any, tmp_path: Path
) -> None:
    """SIGKILL after the first shard of five is kept; every image is encoded once more at most."""
    data = make_folder(tmp_path / "data", 320)
    on_ray, local = tmp_path / "ray", tmp_path / "local"
    journal = work_folder(on_ray) / "journal.jsonl"
    command = ("build", data, "--device", "cpu", "--out")
    driver = mrad(*command, on_ray, "--engine", "ray", "--workers", 2)
    deadline = time.monotonic() + LIMIT
    while not shards(journal):
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not on_ray.exists()
    kept = shards(journal)
    assert 1 <= kept < 5

    said = finished(mrad(*command, on_ray, "--engine", "ray", "--workers", 2))
    assert f"encoded before: {kept * 64} images, now: {320 - kept * 64}" in said
    assert not work_folder(on_ray).exists()
    finished(mrad(*command, local))
    one, other = MemoryBank.load(on_ray), MemoryBank.load(local)
    assert [e.source for e in one.entries] == [e.source for e in other.entries]
    assert len({e.entry_id for e in one.entries}) == 320
    for level in ("image", "patch"):
        assert np.array_equal(getattr(one, level).keys, getattr(other, level).keys)
        assert np.array_equal(getattr(one, level).entry, getattr(other, level).entry)
