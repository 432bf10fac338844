"""One defective board among many in one picture: found by every door, in the right place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from mrad_client import Client
from mrad_indexer.cli.main import app
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.local import LocalTransport
from mrad_service.app import create_app
from mrad_service.settings import Settings
from PIL import Image
from typer.testing import CliRunner

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling

BOARD = 640


def panel(demo: Path, across: int, down: int, defective: int | None) -> Image.Image:
    """The same good board many times; one of them defective, or none."""
    query = demo / "query"
    bad = Image.open(query / "defect" / "92000085.png").convert("L")
    good = Image.open(query / "good" / "92000063.png").convert("L")
    sheet = Image.new("L", (across * BOARD, down * BOARD))
    for place in range(across * down):
        at = place % across * BOARD, place // across * BOARD
        sheet.paste(bad if place == defective else good, at)
    return sheet


def board_at(box: tuple[int, ...] | list[int], across: int) -> int:
    """Number of the board in whose middle a box lies."""
    left, top, right, bottom = box
    return (top + bottom) // 2 // BOARD * across + (left + right) // 2 // BOARD


@pytest.fixture(scope="module")
def bank(mini_encoder: Encoder, demo_images: Path, tmp_path_factory) -> Path:
    """A memory of single boards, each of which is one tile."""
    memory = demo_images / "memory"
    samples = [Sample(path, False, source=path.name) for path in (memory / "good").iterdir()]
    samples += [
        Sample(path, True, memory / "masks" / path.name, source=path.name)
        for path in (memory / "defect").iterdir()
    ]
    path = tmp_path_factory.mktemp("banks") / "boards"
    MemoryBank.from_samples(mini_encoder, samples, layout=Layout(Tiling(BOARD))).save(path)
    return path


@pytest.fixture(scope="module")
def sheets(demo_images: Path, tmp_path_factory) -> Path:
    """Two panels of six boards: as good as can be, and with the fifth defective."""
    folder = tmp_path_factory.mktemp("sheets")
    panel(demo_images, 3, 2, None).save(folder / "good.png")
    panel(demo_images, 3, 2, 4).save(folder / "bad.png")
    return folder


@pytest.fixture(scope="module")
def wanted(mini_encoder: Encoder, bank: Path, sheets: Path) -> dict[str, float]:
    """What the library says of both; the defective one scores higher, and its peak is on the board."""
    detector = Detector(mini_encoder, MemoryBank.load(bank))
    names = ("good.png", "bad.png")
    good, bad = detector.predict([sheets / name for name in names], evidence=1)
    assert bad.score > good.score
    assert board_at(bad.peak_box, 3) == 4
    y, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert board_at((x, y, x, y), 3) == 4
    assert board_at(bad.evidence[1].query_box, 3) == 4
    return {"good.png": good.score, "bad.png": bad.score}


def test_by_the_command_line(bank, sheets, wanted, tmp_path):
    words = ["score", str(sheets), "--bank", str(bank), "--out", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "results.csv").open())}
    for name, score in wanted.items():
        assert float(rows[name]["score"]) == pytest.approx(score, abs=1e-6)
    assert board_at(json.loads(rows["bad.png"]["peak_box"]), 3) == 4


def test_by_what_watch_uses(bank, sheets, wanted):
    with LocalTransport(Judge.load(bank, device="cpu")) as transport:
        good, bad = transport.judge_files([sheets / "good.png", sheets / "bad.png"])
    assert bad.columns["score"] == pytest.approx(wanted["bad.png"], abs=1e-6)
    assert good.columns["score"] == pytest.approx(wanted["good.png"], abs=1e-6)


def test_by_server_and_client(bank, sheets, wanted, mini_encoder, serve: Callable):
    server: FastAPI = create_app(
        Settings(bank=bank, auth="off", request_seconds=600),
        encoder_of=lambda memory, device: mini_encoder,
    )
    with serve(server) as url, Client(url) as client:
        good, bad = client.score(
            [sheets / "good.png", sheets / "bad.png"],
            evidence=1, fields=["score", "peak_box", "tiles", "evidence"],
        )  # fmt: skip
    assert good.score == pytest.approx(wanted["good.png"], abs=1e-6)
    assert bad.score == pytest.approx(wanted["bad.png"], abs=1e-6)
    assert board_at(bad.peak_box, 3) == 4
    assert len(bad.tiles) == Tiling(BOARD).count((1920, 1280))
    assert board_at(bad.evidence[1].query_box, 3) == 4


@pytest.mark.nightly
@pytest.mark.parametrize("place", [0, 8, 21, 29])
def test_one_of_thirty(bank, demo_images, mini_encoder, place):
    """3,840 x 3,200 pixels."""
    detector = Detector(mini_encoder, MemoryBank.load(bank))
    sheets = [np.asarray(panel(demo_images, 6, 5, at)) for at in (None, place)]
    good, bad = detector.predict(sheets)
    assert bad.score > good.score
    assert board_at(bad.peak_box, 6) == place
    y, x = np.unravel_index(bad.anomaly_map.argmax(), bad.anomaly_map.shape)
    assert board_at((x, y, x, y), 6) == place
