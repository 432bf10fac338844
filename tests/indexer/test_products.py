"""Several products in one memory: each calibrated and evaluated by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mrad_indexer.scoring.judge import Judge

from mrad import Encoder, MemoryBank
from mrad.calibration import Calibration


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder) -> None:
    monkeypatch.setattr(Encoder, "load", lambda *given, **options: tiny_encoder)


@pytest.fixture
def data(tmp_path: Path, make_image: Any) -> Path:
    """Two products: caps with good pictures alone, nuts larger and with defects."""
    root = tmp_path / "data"
    for name, size, count in (("caps", (96, 64), 10), ("nuts", (64, 96), 12)):
        for seed in range(count):
            bad = name == "nuts" and seed % 3 == 0
            image, mask = make_image(seed + 100 * (name == "nuts"), size, defect=bad)
            place = root / name / ("defect" if bad else "good") / f"{seed:02}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)
            if mask is not None:
                (root / name / "masks").mkdir(exist_ok=True)
                mask.save(root / name / "masks" / place.name)
    return root


@pytest.fixture
def bank(data: Path, tmp_path: Path, mrad: Callable[..., Any]) -> Path:
    done = mrad("build", data, "--out", tmp_path / "bank")
    assert done.exit_code == 0, done.output
    return tmp_path / "bank"


def stored(bank: Path) -> Calibration:
    memory = MemoryBank.load(bank)
    (head,) = memory.calibration or {}
    return Calibration.of(memory, head)


def test_thresholds_of_one_product_stand_beside_those_of_all(
    bank: Path, tmp_path: Path, mrad: Callable[..., Any], tiny_encoder: Encoder
) -> None:
    early = mrad("calibrate", bank, "--object", "caps")
    assert early.exit_code == 2
    assert "run mrad calibrate without --object first" in early.output
    assert mrad("calibrate", bank).exit_code == 0
    before = stored(bank)
    derived = Judge.of(tiny_encoder, MemoryBank.load(bank), product="caps")

    done = mrad("calibrate", bank, "--object", "caps", "--fpr", "0.2")
    assert done.exit_code == 0, done.output
    assert "of 'caps' alone: 10 images" in done.output
    after = stored(bank)
    own = after.objects["caps"]
    assert own.normal == 10
    assert own.image.target_fpr == 0.2
    assert after.model_copy(update={"objects": {}}) == before.model_copy(update={"objects": {}})

    (shown,) = json.loads(mrad("bank", "inspect", bank, "--json").stdout)["calibration"].values()
    assert shown["objects"] == {"caps": own.image_threshold}
    assert "its own of caps: image threshold" in mrad("bank", "inspect", bank).stdout
    judge = Judge.of(tiny_encoder, MemoryBank.load(bank), product="caps")
    assert judge.threshold == own.image_threshold
    assert judge.threshold != derived.threshold, "another rate was asked for"
    assert Judge.of(tiny_encoder, MemoryBank.load(bank), product="nuts").threshold is not None
    assert mrad("calibrate", bank, "--fpr", "0.1").exit_code == 0
    assert stored(bank).objects["caps"] == own, "choosing those of all again leaves it"


def test_a_product_that_learned_keeps_its_rule(
    bank: Path, mrad: Callable[..., Any], tiny_encoder: Encoder, make_image: Any
) -> None:
    for more in ([], ["--object", "caps", "--fpr", "0.3"]):
        assert mrad("calibrate", bank, *more).exit_code == 0
    memory = MemoryBank.load(bank)
    gone = next(e.entry_id for e in memory.entries if e.object_name == "caps")
    judge = Judge.of(tiny_encoder, memory.remove(gone), product="caps")
    assert judge.calibration is not None
    assert judge.calibration.image.target_fpr == 0.3
    assert judge.calibration.normal == 9


def test_what_cannot_be_is_said(bank: Path, data: Path, mrad: Callable[..., Any]) -> None:
    assert mrad("calibrate", bank).exit_code == 0
    for command in (["calibrate", bank], ["eval", data, "--bank", bank]):
        done = mrad(*command, "--object", "bolts")
        assert done.exit_code == 2
        assert "it holds caps, nuts" in done.output
    done = mrad("calibrate", bank, "--object", "caps", "--fusion", "0.5")
    assert done.exit_code == 2
    assert "give --fusion 0.7" in done.output


def test_a_product_is_evaluated_by_its_own_images(
    bank: Path, data: Path, tmp_path: Path, mrad: Callable[..., Any]
) -> None:
    done = mrad("eval", data, "--bank", bank, "--object", "nuts", "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (candidate,) = report["candidates"]
    assert candidate["config"]["object"] == "nuts"
    assert candidate["config"]["entries"] == 12
    assert [item["name"] for item in candidate["objects"]] == ["nuts"]
    alone = mrad("eval", data / "nuts", "--bank", bank, "--object", "nuts", "--out", tmp_path / "b")
    assert alone.exit_code == 0, alone.output
    other = json.loads((tmp_path / "b" / "report.json").read_text())["candidates"][0]
    assert other["objects"][0]["image"] == candidate["objects"][0]["image"]
