"""Threads follow what the container may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mrad_service.scheduler.cores import usable_cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", 8), ("400000 100000\n", 4), ("250000 100000", 2), ("50000 100000", 1),
     ("6400000 100000", 8), ("nonsense", 8), ("", 8), ("100000 0", 8)],
)  # fmt: skip
def test_version_two(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3)])
def test_version_one(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
def test_without_a_cgroup_pytorch_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
