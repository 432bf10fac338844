"""`mrad score`: scores as the detector's own, outputs, errors, resuming."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from mrad_indexer.journal import Journal, JournalError
from mrad_indexer.scoring.judge import Judge, thresholds
from mrad_indexer.scoring.page import Summary
from mrad_indexer.scoring.pictures import OUTLINE, draw, place
from mrad_indexer.scoring.sources import find_items
from PIL import Image

from mrad import Detector, MemoryBank
from mrad.calibration import Calibration
from mrad.errors import CalibrationError, DataError


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_image):
    """good/ and bad/ with images of different sizes, one broken; names to escape."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(40, 48):
        image, mask = make_image(seed, (70 + seed, 60), defect=seed % 2 == 1)
        folder = root / ("bad & <b>" if mask else "good")
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{seed}.png")
    (root / "good/torn.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def read(path):
    with path.open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, mrad, photos, board_bank):
    """One whole run, its output folder and what it printed."""
    out = tmp_path_factory.mktemp("out")
    done = mrad(
        "score", photos, "--bank", board_bank, "--out", out, "--maps", "png16", "--device", "cpu",
        "--format", "csv", "--format", "parquet", "--format", "jsonl", "--batch-size", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out, done


def test_scores_are_the_detectors_own(scored, photos, board_bank, tiny_clip):
    rows = read(scored[0] / "results.csv")
    bank = MemoryBank.load(board_bank)
    judge = Judge.load(board_bank, device="cpu")
    detector = Detector(judge.detector.encoder, bank)
    calibration = Calibration.of(bank, "tf")
    assert len(rows) == 9
    for name, row in rows.items():
        if row["status"] != "ok":
            continue
        prediction = detector.predict([photos / name])[0]
        assert float(row["score"]) == pytest.approx(prediction.score, abs=1e-6)
        assert float(row["class_score"]) == pytest.approx(prediction.class_score, abs=1e-6)
        flagged = prediction.score >= calibration.image_threshold
        assert row["verdict"] == ("anomalous" if flagged else "normal")
        assert float(row["probability"]) == pytest.approx(calibration.probability(prediction.score))
        raw = np.asarray(Image.open(scored[0] / row["map"])) / 65535
        assert raw.shape == prediction.anomaly_map.shape
        np.testing.assert_allclose(raw, prediction.anomaly_map, atol=1e-4)
        assert Image.open(scored[0] / row["overlay"]).size == prediction.size


def test_a_broken_file_is_a_row(scored):
    out, done = scored
    row = read(out / "results.csv")["good/torn.jpg"]
    assert (row["status"], row["code"], row["score"]) == ("error", "invalid_image", "")
    assert "torn.jpg" in row["error"]
    assert "1 error" in done.stdout


def test_the_formats_agree(scored):
    out = scored[0]
    rows = read(out / "results.csv")
    table = {row["name"]: row for row in pq.read_table(out / "results.parquet").to_pylist()}
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert rows.keys() == table.keys() == {line["name"] for line in lines}
    for line in lines:
        assert table[line["name"]].get("score") == line.get("score")


def test_the_page_stands_alone_and_is_sorted(scored):
    text = (scored[0] / "summary.html").read_text()
    assert text.count("<img") == 8
    assert text.count("src='data:image/jpeg;base64,") == 8
    assert "bad &amp; &lt;b&gt;" in text
    assert "bad & <b>" not in text
    scores = [part.split("<")[0] for part in text.split("<span class=number>")[1:]]
    assert scores == sorted(scores, reverse=True)
    assert "threshold" in text
    assert "invalid_image" in text


def test_running_again_scores_only_what_changed(tmp_path, mrad, photos, board_bank, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    command = ["score", root, "--bank", board_bank, "--out", tmp_path / "o", "--device", "cpu"]
    assert mrad(*command).exit_code == 0
    first = read(tmp_path / "o/results.csv")
    seen = []
    decode = Detector.decode
    monkeypatch.setattr(Detector, "decode", lambda self, p: seen.append(p.name) or decode(self, p))
    Image.new("RGB", (50, 40), "red").save(root / "good/40.png")
    Image.new("RGB", (50, 40), "blue").save(root / "new.png")
    (root / "good/42.png").unlink()
    assert mrad(*command).exit_code == 0
    assert sorted(seen) == ["40.png", "new.png"]
    second = read(tmp_path / "o/results.csv")
    assert second.keys() == first.keys() - {"good/42.png"} | {"new.png"}
    assert second["good/40.png"]["score"] != first["good/40.png"]["score"]
    changed = mrad(*command, "--threshold", "0.4")
    assert changed.exit_code == 2
    assert "--restart" in changed.stderr
    assert mrad(*command, "--threshold", "0.4", "--restart").exit_code == 0
    third = read(tmp_path / "o/results.csv").values()
    assert {row["threshold"] for row in third if row["status"] == "ok"} == {"0.4"}


def test_killed_in_the_middle_nothing_is_lost_nor_done_twice(
    tmp_path, mrad, make_image, board_bank, spawn
):
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    for seed in range(60):
        make_image(seed, (40, 32))[0].save(root / f"{seed:02}.png")
    command = ["score", root, "--bank", board_bank, "--out", out, "--batch-size", "2"]
    journal = out / "results.journal"
    running = spawn(*command, "--device", "cpu", slow=0.1)
    deadline = time.monotonic() + 600
    while not (journal.is_file() and journal.read_text().count('"stamp"') >= 6):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = journal.read_bytes()
    assert mrad(*command, "--device", "cpu").exit_code == 0
    whole = before[: before.rfind(b"\n") + 1]
    assert journal.read_bytes().startswith(whole)
    names = [json.loads(line).get("name") for line in journal.read_text().splitlines()][1:]
    assert sorted(names) == [f"{seed:02}.png" for seed in range(60)]
    assert len(read(out / "results.csv")) == 60
    assert len(list((out / "overlays").iterdir())) == 60


def test_sources(tmp_path, photos):
    assert {i.name for i in find_items([str(photos / "good")])} >= {"40.png", "torn.jpg"}
    assert len(find_items([str(photos / "**/*.png")])) == 8
    both = find_items([str(photos), str(photos / "good/40.png")])
    assert len(both) == 9
    (tmp_path / "list.csv").write_text("image,label\na.png,0\nb/c.png,1\n")
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n\n{"image": "d.png"}\n')
    (tmp_path / "list.txt").write_text("a.png\n")
    found = find_items([str(tmp_path / f"list.{kind}") for kind in ("csv", "jsonl", "txt")])
    assert [item.name for item in found] == ["a.png", "b/c.png", "d.png"]
    with pytest.raises(DataError, match="no image found"):
        find_items([str(tmp_path / "nothing/*.png")])
    same = find_items([str(photos / "good/40.png"), str(_copy(photos / "good/40.png", tmp_path))])
    assert len({item.name for item in same}) == 2


def _copy(path, folder):
    return shutil.copy(path, folder / path.name)


def test_colours_mean_the_same_everywhere(board_bank, photos):
    judge = Judge.load(board_bank, device="cpu")
    cut = judge.pixel_threshold
    assert judge.low < cut < judge.high
    assert cut == pytest.approx((judge.low + judge.high) / 2)
    values = np.full((20, 30), cut + 1e-4, np.float32)
    values[:, :10] = judge.low
    picture = np.asarray(draw(Image.new("RGB", (30, 20)), values, judge))
    assert (picture == OUTLINE).all(axis=-1).any()
    other = np.where(values > cut, np.float32(judge.high), values)
    hotter = np.asarray(draw(Image.new("RGB", (30, 20)), other, judge))
    assert (picture[:, :5] == hotter[:, :5]).all()
    assert hotter[5, 20].sum() > picture[5, 20].sum()


def test_thresholds(board_bank):
    calibration = Calibration.of(MemoryBank.load(board_bank), "tf")
    assert thresholds(None, None, None) == (None, None)
    assert thresholds(None, 0.4, None) == (0.4, None)
    assert thresholds(calibration, None, None)[0] == calibration.image_threshold
    assert thresholds(calibration, 0.4, None)[0] == 0.4
    strict, loose = (thresholds(calibration, None, rate)[0] for rate in (0.0, 0.5))
    assert strict > loose


def test_what_cannot_be_had_is_said(tmp_path, mrad, photos, boards, tiny_options, board_bank):
    plain = tmp_path / "plain"
    assert mrad("build", boards, "--out", plain, *tiny_options).exit_code == 0
    command = ["score", photos, "--bank", plain, "--out", tmp_path / "o", "--device", "cpu"]
    assert "needs a calibration" in mrad(*command, "--target-fpr", 0.01).stderr
    done = mrad(*command, "--format", "table")
    assert done.exit_code == 0
    assert "no verdicts" in done.stdout
    assert not (tmp_path / "o/results.csv").exists()
    with pytest.raises(CalibrationError, match="calibrated with the checkpoint"):
        Judge.load(board_bank, checkpoint=plain / "x.safetensors", device="cpu")
    only = mrad("score", photos / "good/torn.jpg", "--bank", plain, "--out", tmp_path / "p")
    assert only.exit_code == 1
    assert mrad("score", photos, "--bank", tmp_path).exit_code == 2


def test_pictures_stay_below_their_folder_and_apart(tmp_path):
    names = ["a.png", "../a.png", "/a.png", "b/a.png", "../../b/a.png", "a.jpg"]
    places = [place(tmp_path, name, ".jpg") for name in names]
    assert len(set(places)) == len(names)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in places)


def test_a_damaged_journal_is_refused_a_torn_line_is_not(tmp_path):
    path = tmp_path / "j"
    with Journal(path, {"a": 1}) as journal:
        journal.append([{"name": "x", "stamp": "1"}, {"name": "y", "stamp": "1"}])
        journal.append([{"name": "x", "stamp": "2"}])
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, {"a": 1}) as journal:
            lines = whole[:cut].count(b"\n")
            assert len(journal) == min(2, max(0, lines - 1))
            assert journal.has("x", "1") == (2 <= lines < 4)
            journal.append([{"name": "z", "stamp": "9"}])
        with Journal(path, {"a": 1}) as journal:
            assert journal.row("z") == {"name": "z", "stamp": "9"}
    path.write_text("not ours\n")
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, {"a": 1})


def test_the_page_of_many_and_of_none(tmp_path):
    row = {"status": "ok", "class_score": 0.1, "verdict": None, "threshold": None}
    summary = Summary.of({"name": f"{i}", "score": i / 1000, **row} for i in range(500))
    assert [r["name"] for _, _, r in summary.worst[:2]] == ["499", "498"]
    assert len(summary.worst) < summary.total == 500
    assert "Highest scores" in summary.html(tmp_path, {})
    error = {"name": "a", "status": "error", "code": "invalid_image", "error": "<torn>"}
    assert "&lt;torn&gt;" in Summary.of([error]).html(tmp_path, {})
