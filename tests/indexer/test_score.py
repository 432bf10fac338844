"""`mrad score`: scores as the detector's own, outputs, errors, resuming."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mrad_client.batch.journal import Journal
from mrad_client.batch.pictures import SPOT
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import OUTLINE, draw
from PIL import Image

from mrad import Detector, MemoryBank
from mrad.calibration import Calibration
from mrad.errors import CalibrationError
from mrad.thresholds.verdicts import Verdicts
from mrad.types import Prediction


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
    assert done.exit_code == 1, done.output  # one file is broken
    return out, done


def test_scores_are_the_detectors_own(scored, photos, board_bank, tiny_clip):
    rows = read(scored[0] / "results.csv")
    bank = MemoryBank.load(board_bank)
    judge = Judge.load(board_bank, device="cpu")
    detector = Detector(judge.detector.encoder, bank)
    calibration = Calibration.of(bank, "combined")
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


def test_the_list_on_screen_leads_with_0_to_100_and_breaks_no_name(
    tmp_path, mrad, make_image, board_bank
):
    name = "/".join(["a-folder-of-a-long-name"] * 5) + "/00421.png"
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    make_image(3, (40, 32), defect=True)[0].save(tmp_path / "in" / name)
    out = tmp_path / "o"
    done = mrad("score", tmp_path / "in", "--bank", board_bank, "--out", out, "--device", "cpu")
    row = read(out / "results.csv")[name]
    line = next(line for line in done.stdout.splitlines() if name in line)
    assert float(line.split()[0]) == pytest.approx(float(row["calibrated_score"]), abs=0.06)
    assert f"{float(row['score']):.5f}" in line
    assert (float(row["calibrated_score"]) >= 50) == (row["verdict"] == "anomalous")


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
    assert mrad(*command).exit_code == 1
    first = read(tmp_path / "o/results.csv")
    seen = []
    decode = Detector.decode
    monkeypatch.setattr(Detector, "decode", lambda self, p: seen.append(p.name) or decode(self, p))
    Image.new("RGB", (50, 40), "red").save(root / "good/40.png")
    Image.new("RGB", (50, 40), "blue").save(root / "new.png")
    (root / "good/42.png").unlink()
    assert mrad(*command).exit_code == 1
    assert sorted(seen) == ["40.png", "new.png"]
    second = read(tmp_path / "o/results.csv")
    assert second.keys() == first.keys() - {"good/42.png"} | {"new.png"}
    assert second["good/40.png"]["score"] != first["good/40.png"]["score"]
    changed = mrad(*command, "--threshold", "0.4")
    assert changed.exit_code == 2
    assert "--restart" in changed.stderr
    assert mrad(*command, "--threshold", "0.4", "--restart").exit_code == 1
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


def judged(values, score=0.0, box=None):
    return Prediction(score, score, score, values.shape[::-1], values, peak_box=box)


def test_an_anomalous_image_without_an_outline_shows_its_strongest_place(board_bank):
    judge = Judge.load(board_bank, device="cpu")
    values, box = np.full((240, 300), judge.low, np.float32), (100, 80, 120, 100)
    picture = Image.new("RGB", (300, 240))
    over, under = judge.threshold + 1e-3, judge.threshold - 1e-3
    framed = (np.asarray(draw(picture, judged(values, over, box), judge)) == SPOT).all(axis=-1)
    assert framed[80, 100:120].all()
    assert framed[80:100, 100].all()
    assert not framed[85:95, 105:115].any()
    assert framed[50:78].any()  # what it is, in words above it
    for score, peak in ((under, judge.low), (over, judge.pixel_threshold)):
        values[5:20, 5:20] = peak
        drawn = np.asarray(draw(picture, judged(values, score, box), judge))
        assert not (drawn == SPOT).all(axis=-1).any()


def test_what_is_too_small_or_of_another_shape_is_in_the_tables_and_on_screen(
    tmp_path, mrad, make_image, board_bank
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, size in (("thumb", (3, 3)), ("long", (400, 60)), ("usual", (120, 90))):
        make_image(3, size)[0].save(photos / f"{name}.png")
    formats = ("--format", "csv", "--format", "jsonl")
    done = mrad("score", photos, "--bank", board_bank, "--out", out, "--device", "cpu", *formats)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    told = {row["name"]: [text.split(":")[0] for text in row.get("warnings", ())] for row in rows}
    assert "too_small" in told["thumb.png"]
    assert told["long.png"] == ["other_shape"]
    assert not {"too_small", "other_shape"} & set(told["usual.png"])
    table, page = read(out / "results.csv"), (out / "summary.html").read_text()
    for name, code in (("thumb.png", "too_small"), ("long.png", "other_shape")):
        assert code in table[name]["warnings"]
        assert code in done.output
    assert "give the original, not a thumbnail" in page
    assert "crop it as they are" in page


def test_the_strongest_place_stands_in_list_and_page(tmp_path, mrad, photos, board_bank):
    name, out = "bad & <b>/41.png", tmp_path / "o"
    command = ["score", photos / name, "--bank", board_bank, "--out", out, "--device", "cpu"]
    done = mrad(*command, "--threshold", 0)
    left, top, right, bottom = json.loads(read(out / "results.csv")["41.png"]["peak_box"])
    place = f"{(left + right) // 2},{(top + bottom) // 2}"
    assert f"  {place}  " in done.stdout
    assert "strongest at" in done.stdout
    assert f"strongest at {place}<br>" in (out / "summary.html").read_text()
    assert "1 image:" in done.stdout
    assert "strongest at" not in mrad(*command, "--threshold", 1, "--restart").stdout


@pytest.mark.parametrize("value", ["50", "-1", "nan"])
def test_a_threshold_that_no_score_can_reach_is_refused(tmp_path, mrad, photos, board_bank, value):
    command = ["score", photos, "--bank", board_bank, "--out", tmp_path / "o", "--device", "cpu"]
    done = mrad(*command, "--threshold", value)
    assert done.exit_code == 2
    assert "raw score, from 0 to 1" in done.stderr
    assert "not both" in mrad(*command, "--threshold", 0.5, "--target-fpr", 0.1).stderr


def test_what_the_machine_lacks_is_not_blamed_on_a_picture(
    tmp_path, mrad, make_image, board_bank, monkeypatch
):
    make_image(3, (40, 32))[0].save(tmp_path / "a.jpg")
    command = ["score", tmp_path / "a.jpg", "--bank", board_bank, "--out", tmp_path / "o"]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    done = mrad(*command, "--device", "cpu")
    assert done.exit_code == 2
    assert "pip install 'simplejpeg'" in done.stderr
    assert "damaged" not in done.stderr
    monkeypatch.undo()
    assert mrad(*command, "--device", "cpu").exit_code == 0  # nothing of it was kept


def test_colours_mean_the_same_everywhere(board_bank, photos):
    judge = Judge.load(board_bank, device="cpu")
    cut = judge.pixel_threshold
    assert judge.low < cut < judge.high
    assert cut == pytest.approx((judge.low + judge.high) / 2)
    values = np.full((20, 30), cut + 1e-4, np.float32)
    values[:, :10] = judge.low
    picture = np.asarray(draw(Image.new("RGB", (30, 20)), judged(values), judge))
    assert (picture == OUTLINE).all(axis=-1).any()
    other = np.where(values > cut, np.float32(judge.high), values)
    hotter = np.asarray(draw(Image.new("RGB", (30, 20)), judged(other), judge))
    assert (picture[:, :5] == hotter[:, :5]).all()
    assert hotter[5, 20].sum() > picture[5, 20].sum()


def test_thresholds(board_bank):
    calibration = Calibration.of(MemoryBank.load(board_bank), "combined")
    nothing = Verdicts.of(None)
    assert (nothing.threshold, nothing.pixel_threshold) == (None, None)
    assert Verdicts.of(None, threshold=0.4).threshold == 0.4
    assert Verdicts.of(calibration).threshold == calibration.image_threshold
    with pytest.raises(CalibrationError, match="not both"):
        Verdicts.of(calibration, threshold=0.4, target_fpr=0.5)
    strict, loose = (Verdicts.of(calibration, target_fpr=rate).threshold for rate in (0.0, 0.5))
    assert strict > loose


def test_what_cannot_be_had_is_said(tmp_path, mrad, photos, boards, tiny_options, board_bank):
    plain = tmp_path / "plain"
    assert mrad("build", boards, "--out", plain, *tiny_options).exit_code == 0
    command = ["score", photos, "--bank", plain, "--out", tmp_path / "o", "--device", "cpu"]
    assert "needs a calibration" in mrad(*command, "--target-fpr", 0.01).stderr
    done = mrad(*command, "--format", "table")
    assert done.exit_code == 1
    assert "no verdicts" in done.stdout
    assert not (tmp_path / "o/results.csv").exists()
    with pytest.raises(CalibrationError, match="calibrated with the checkpoint"):
        Judge.load(board_bank, head="combined", checkpoint=plain / "x.safetensors", device="cpu")
    only = mrad("score", photos / "good/torn.jpg", "--bank", plain, "--out", tmp_path / "p")
    assert only.exit_code == 1
    assert mrad("score", photos, "--bank", tmp_path).exit_code == 2


ODD = (b"b\xff.png", b"[/x].png", b"[red].png", b"new\nline.png", b"=1+1.png", b"-x.png")
"""Names as people's disks hold them: no UTF-8, markup, a newline, a formula."""


def test_any_name_survives_every_command(tmp_path, make_image, board_bank, spawn):
    """Real processes, for screens and tables must take the names, too."""
    root = tmp_path / "photos[/x]"
    (root / "[").mkdir(parents=True)  # [/x].png is a file x].png in a folder [
    for number, name in enumerate(ODD):
        make_image(number, (40, 32))[0].save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(root) + b"/" + name))
    (root / "[/torn].png").write_bytes(b"no image")
    out = tmp_path / "out[/y]"
    tables = ["--format", "csv", "--format", "parquet", "--format", "jsonl"]
    running = spawn("score", root, "--bank", board_bank, "--out", out, "--device", "cpu", *tables)
    stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 1, stderr
    assert "7 images" in stdout
    assert f"written: {out}" in stdout
    assert "[/torn].png" in stderr
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert not [row for row in cells if row["name"].startswith(("=", "-"))]
    read = {
        "csv": [row | {"name": row["name"].removeprefix("'")} for row in cells],
        "parquet": pq.read_table(out / "results.parquet").to_pylist(),
        "jsonl": [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()],
    }
    for rows in read.values():
        assert sorted(map(name_of, rows)) == sorted([*ODD, b"[/torn].png"])
        pictures = [row["overlay"] for row in rows if row["status"] == "ok"]
        assert all((out / picture).is_file() for picture in pictures)
    assert (out / "summary.html").read_text(encoding="utf-8").count("<img") == len(ODD)


def name_of(row: dict) -> bytes:
    """A file's name from a table, to the byte."""
    exact = row.get("name_base64")
    return base64.b64decode(exact) if exact else row["name"].encode()


def test_restart_leaves_a_run_that_is_under_way_alone(tmp_path, mrad, photos, board_bank):
    out = tmp_path / "out"
    command = ["score", photos, "--bank", board_bank, "--out", out, "--device", "cpu"]
    assert mrad(*command).exit_code == 1
    before = (out / "results.journal").read_bytes()
    judge = Judge.load(board_bank, device="cpu")
    asked = judge.asked() | {"overlays": True, "maps": "none"}
    with Journal(out / "results.journal", asked):
        refused = mrad(*command, "--restart")
    assert refused.exit_code == 2
    assert "in use" in refused.stderr
    assert (out / "results.journal").read_bytes() == before


def test_without_a_memory_nothing_is_pretended(tmp_path, monkeypatch, mrad, mini_encoder):
    """What is said is true: the figure is the committed one, and the two commands work as they stand."""
    from mrad_indexer.cli.common import advice
    from mrad_indexer.datasets import read_dataset

    from mrad import demo

    monkeypatch.chdir(tmp_path)
    told = mrad("score", "photo.jpg")
    assert told.exit_code == 2
    assert told.stdout == ""
    text = " ".join(told.stderr.split())
    assert "Nothing was judged" in text
    assert "0.61, and a coin has 0.50" in text
    assert not Path("scores").exists()
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "mini.md"
    row = next(line for line in results.read_text().splitlines()
               if line.split("|")[1:4] == [" TF                ", " deep_pcb      ", " magnetic_tile "])  # fmt: skip
    assert float(row.split("|")[4].split()[0]) == advice.ELSEWHERE
    assert len(read_dataset(demo.FOLDER / "memory")) == advice.BUNDLED
    good_only = sorted((demo.FOLDER / "memory" / "good").glob("*.png"))
    Path("good-parts").mkdir()
    for path in good_only[:10]:
        (Path("good-parts") / path.name).symlink_to(path)
    Path("photo.jpg").write_bytes(good_only[10].read_bytes())
    commands = [line.split() for line in told.stderr.splitlines() if line.startswith("  mrad ")]
    assert [command[1] for command in commands] == ["build", "score"]
    for command in commands:
        done = mrad(*command[1:])
        assert done.exit_code == 0, done.output
    again = mrad("score", "photo.jpg")
    assert again.exit_code == 2
    assert "mrad score photo.jpg --bank banks/parts" in again.stderr
