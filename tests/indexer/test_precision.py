"""`mrad build --precision auto`: bf16 where a sample shows that it is faster and keeps the bound."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.build import precision
from mrad_indexer.build.precision import Trial, choose_precision, verdict
from mrad_indexer.cli.main import app
from mrad_indexer.datasets import read_dataset
from typer.testing import CliRunner

import mrad.encoder.encoder
from mrad import Encoder, MemoryBank
from mrad.demo import FOLDER
from mrad.images.layout import PLAIN
from mrad.images.options import ReadOptions
from mrad.types import Prediction


def answers(scores: Sequence[float], *, noise: float = 0.0) -> list[Prediction]:
    """Predictions with maps of distinct values."""
    values = np.random.default_rng(0).random((21, 21)).astype(np.float32)
    values += noise * np.random.default_rng(1).random((21, 21)).astype(np.float32)
    return [
        Prediction(score, score, score, (21, 21), values * (1 + place))
        for place, score in enumerate(scores)
    ]


LABELS = [False, False, True, True]


def test_bf16_is_taken_where_maps_and_scores_keep_their_order() -> None:
    found = verdict("k", 2.0, LABELS, answers([0.1, 0.2, 0.8, 0.9]), answers([0.1, 0.25, 0.8, 0.9]))
    assert found.chosen == "bf16"
    assert found.spearman == pytest.approx(1)
    assert found.largest_score_change == pytest.approx(0.05)
    assert (found.auroc, found.auroc_change, found.normal, found.anomalous) == (100, 0, 2, 2)


@pytest.mark.parametrize(
    ("scores", "noise"), [([0.1, 0.85, 0.8, 0.9], 0.0), ([0.1, 0.2, 0.8, 0.9], 0.5)]
)
def test_float32_stays_where_an_order_changes(scores: list[float], noise: float) -> None:
    found = verdict("k", 2.0, LABELS, answers([0.1, 0.2, 0.8, 0.9]), answers(scores, noise=noise))
    assert found.chosen == "fp32"
    assert "beyond the bound" in found.why


def test_good_images_alone_are_judged_by_their_maps() -> None:
    one = answers([0.1, 0.2])
    found = verdict("k", 2.0, [False, False], one, one)
    assert (found.chosen, found.auroc, found.auroc_change) == ("bf16", None, None)
    assert "one class" in found.why


def test_a_flat_map_agrees_with_a_flat_map_alone() -> None:
    flat = [replace(answers([0.1])[0], anomaly_map=np.zeros((21, 21), np.float32))]
    assert verdict("k", 2.0, [False], flat, flat).chosen == "bf16"
    assert verdict("k", 2.0, [False], flat, answers([0.1])).chosen == "fp32"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three good boards, three defective ones with masks, and a file that is no image."""
    data = tmp_path / "parts"
    for kind in ("good", "defect"):
        (data / kind).mkdir(parents=True)
        for image in sorted((FOLDER / "memory" / kind).iterdir())[:3]:
            shutil.copy(image, data / kind)
    (data / "masks").mkdir()
    for image in (data / "defect").iterdir():
        shutil.copy(FOLDER / "memory" / "masks" / f"{image.stem}.png", data / "masks")
    (data / "good" / "broken.png").write_bytes(b"no image")
    return data


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where bf16 is twice as fast, and whatever it changes is taken."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    monkeypatch.setattr(mrad.encoder.encoder, "has_bf16", lambda device: True)
    monkeypatch.setattr(precision, "speeds", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(precision, "RANKS", 0.5)
    monkeypatch.setattr(precision, "POINTS", 100.0)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_memory_keeps_what_was_measured_and_its_queries_follow(
    parts: Path, tmp_path: Path, fast: None, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "bank"
    said = run("build", parts, "--out", out, "--precision", "auto")
    assert "precision bf16: 2.00 times faster" in said
    bank = MemoryBank.load(out)
    assert bank.precision == "bf16"
    trial = Trial.of(bank.metadata["precision_trial"])
    assert trial is not None
    assert (trial.normal, trial.anomalous) == (3, 3)
    assert 0.9 < trial.spearman <= 1  # type: ignore[operator]
    shown = " ".join(run("bank", "inspect", out).split())
    assert "bf16" in shown
    assert trial.why in shown
    assert "stands already" in run("build", parts, "--out", out, "--precision", "auto")

    image = next((FOLDER / "query" / "good").iterdir())
    run("score", image, "--bank", out, "--out", tmp_path / "one")
    assert "keys are in bf16" not in caplog.text
    run("score", image, "--bank", out, "--out", tmp_path / "two", "--precision", "fp32")
    assert "keys are in bf16, queries in fp32" in caplog.text


def test_a_server_encodes_as_the_memory_was_built(parts: Path, tmp_path: Path, fast: None) -> None:
    from mrad_service.models.loading import Encoders
    from mrad_service.settings import Settings

    kept = {}
    for kind in ("fp32", "bf16"):
        run("build", parts, "--out", tmp_path / kind, "--precision", kind)
        bank = MemoryBank.load(tmp_path / kind)
        for asked in ("auto", "fp32", "bf16"):
            encoders = Encoders(Settings(bank=tmp_path / kind, auth="off", precision=asked))
            kept[kind, asked] = encoders.get(bank, "cpu").precision
    assert kept == {
        (kind, asked): kind if asked == "auto" else asked
        for kind in ("fp32", "bf16")
        for asked in ("auto", "fp32", "bf16")
    }


def test_what_a_build_decided_stands_when_it_goes_on(
    parts: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(parts)

    def chosen() -> Trial:
        return choose_precision(
            lambda kind: Encoder.load("mrad-mini", device="cpu", precision=kind),
            dataset,
            tmp_path / "bank",
            layout=PLAIN,
            reading=ReadOptions(),
        )[1]

    first = chosen()
    monkeypatch.setattr(precision, "speeds", lambda *_: (1.0, 1.0))
    assert chosen() == first
    (parts / "good" / "broken.png").unlink()
    dataset = read_dataset(parts)
    assert "hardly faster" in chosen().why


def test_without_instructions_for_bf16_nothing_is_tried(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    said = run("build", parts, "--out", tmp_path / "bank", "--precision", "auto")
    assert "precision fp32: this cpu has no instructions for bf16" in " ".join(said.split())
    assert MemoryBank.load(tmp_path / "bank").precision == "fp32"
