"""Tiles by every door of the indexer: build, calibrate, eval, score, watch, data check."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.build.build import BuildOptions, build
from mrad_indexer.calibration.calibrate import score_without_self
from mrad_indexer.datasets import Dataset, read_dataset
from mrad_indexer.evaluation.runner import evaluate
from mrad_indexer.scoring.judge import Judge
from PIL import Image

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import DataError
from mrad.images.layout import Layout
from mrad.images.regions import Area, parse_parts
from mrad.images.tiles import Tiling
from tests.plates import LEFT, SIZE, moved, plate

LAYOUT = Layout(Tiling(96, 0.25))


@pytest.fixture(scope="module")
def strips(tmp_path_factory, make_image) -> Path:
    """Eight pictures of 240 x 96, four with a defect somewhere, in the folders of a dataset."""
    root = tmp_path_factory.mktemp("strips")
    for name in ("good", "defect", "masks"):
        (root / name).mkdir()
    for seed in range(8):
        picture, _ = make_image(seed, (240, 96))
        if seed % 2:
            picture.save(root / "good" / f"{seed}.png")
            continue
        bad, mask = make_image(seed + 50, (96, 96), defect=True)
        whole, x = Image.new("L", (240, 96)), 18 * seed
        picture.paste(bad, (x, 0))
        whole.paste(mask, (x, 0))
        picture.save(root / "defect" / f"{seed}.png")
        whole.save(root / "masks" / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def dataset(strips) -> Dataset:
    return read_dataset(strips)


@pytest.fixture(scope="module")
def bank(tmp_path_factory, dataset, tiny_encoder) -> MemoryBank:
    out = tmp_path_factory.mktemp("banks") / "tiled"
    return build(tiny_encoder, dataset, out, BuildOptions(layout=LAYOUT, batch_size=3)).bank


def test_the_bank_is_the_one_built_in_memory(bank, dataset, tiny_encoder):
    samples = [record.sample() for record in dataset.records]
    other = MemoryBank.from_samples(tiny_encoder, samples, layout=LAYOUT, batch_size=3)
    for level in ("image", "patch"):
        for name in ("keys", "labels", "entry", "region", "size", "tile"):
            one, two = getattr(getattr(bank, level), name), getattr(getattr(other, level), name)
            np.testing.assert_array_equal(one, two)
    assert bank.layout == other.layout == LAYOUT


def test_another_layout_is_another_build(bank, dataset, tiny_encoder, tmp_path):
    other = BuildOptions(layout=Layout(Tiling(64)), batch_size=3)
    again = build(tiny_encoder, dataset, tmp_path / "bank", other).bank
    fingerprints = [b.metadata["build"]["fingerprint"] for b in (bank, again)]
    assert fingerprints[0] != fingerprints[1]


def test_calibration_leaves_out_the_whole_picture(bank, dataset, tiny_encoder, tmp_path):
    scored = score_without_self(Detector(tiny_encoder, bank), dataset)
    assert scored.own_row == list(range(8))
    renamed = Dataset(
        dataset.name,
        dataset.root,
        tuple(r.__class__(r.image, r.anomalous, r.mask, f"x/{r.source}") for r in dataset.records),
    )
    by_pixels = score_without_self(Detector(tiny_encoder, bank), renamed)
    assert by_pixels.own_row == list(range(8))
    assert by_pixels.score == scored.score


def test_eval_compares_tiles_with_the_picture_as_a_whole(bank, dataset, tiny_encoder, tmp_path):
    plain = build(tiny_encoder, dataset, tmp_path / "plain").bank
    detectors = {
        "tiles": Detector(tiny_encoder, bank),
        "whole": Detector(tiny_encoder, plain),
    }
    done: list[int] = []
    result = evaluate(detectors, dataset, progress=done.append)
    assert done[-1] == len(dataset)
    for candidate in result.candidates:
        assert candidate.in_memory == 8
        assert candidate.mean("pixel", "aupro") is not None
        (item,) = candidate.objects
        direct = detectors[candidate.name].predict([dataset.records[0].image])[0]
        assert item.scores[0].score == pytest.approx(direct.score, abs=1e-6)
    small = evaluate({"tiles": detectors["tiles"]}, dataset, resolution=64)
    assert small.candidates[0].mean("pixel", "auroc") is not None


def test_pixels_outside_the_region_of_interest_count_for_nothing(dataset, tiny_encoder, tmp_path):
    roi = Area.of_box((0, 0, 120, 96), (240, 96))
    bank = build(
        tiny_encoder, dataset, tmp_path / "bank", BuildOptions(layout=Layout(None, roi))
    ).bank
    detector = Detector(tiny_encoder, bank)
    result = evaluate({"roi": detector}, dataset)
    (item,) = result.candidates[0].objects
    prediction = detector.predict([dataset.records[0].image])[0]
    assert not prediction.anomaly_map[:, 120:].any()
    assert item.low > 0  # zeros outside are no pixels of it
    scored = score_without_self(detector, dataset)
    assert min(values.min() for values in scored.pixels) > 0


def test_anomalib_gets_maps_of_one_size(bank, dataset, tiny_encoder):
    from mrad_indexer.anomalib import batches

    (batch, *_) = batches(Detector(tiny_encoder, bank), dataset, side=48)
    assert batch["anomaly_map"].shape == (8, 48, 48)
    assert isinstance(tiny_encoder, Encoder)


def run(*words: object) -> str:
    from mrad_indexer.cli.main import app
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory, demo_images) -> Path:
    """Mosaics of DeepPCB boards, 1,920 x 1,280: six boards each, one of them defective or none."""
    root = tmp_path_factory.mktemp("boards")
    for name in ("good", "defect", "masks"):
        (root / name).mkdir()
    memory = demo_images / "memory"
    good = sorted((memory / "good").iterdir())
    bad = sorted((memory / "defect").iterdir())
    for number in range(4):
        sheet, mask = Image.new("L", (1920, 1280)), Image.new("L", (1920, 1280))
        for place in range(6):
            at = place % 3 * 640, place // 3 * 640
            sheet.paste(Image.open(good[6 * number + place]).convert("L"), at)
        sheet.save(root / "good" / f"{number}.png")
        at = number % 3 * 640, number // 3 * 640
        sheet.paste(Image.open(bad[number]).convert("L"), at)
        mask.paste(Image.open(memory / "masks" / bad[number].name).convert("L"), at)
        sheet.save(root / "defect" / f"{number}.png")
        mask.save(root / "masks" / f"{number}.png")
    return root


def test_mosaics_go_through_build_and_score_by_the_command_line(mosaics, tmp_path):
    out = run("build", mosaics, "--out", tmp_path / "bank", "--tile", 640, "--tile-overlap", 0)
    assert "tiles of 640 px" in out
    assert "6 tiles in a picture of 1920 x 1280" in out
    bank = MemoryBank.load(tmp_path / "bank")
    assert bank.layout == Layout(Tiling(640, 0.0))
    assert len(bank.image) == 8 * 6
    assert int(bank.image.labels.sum()) == 4
    assert "tiles of 640 px" in run("bank", "inspect", tmp_path / "bank")
    run("score", mosaics / "defect", "--bank", tmp_path / "bank", "--out", tmp_path / "scores")
    table = (tmp_path / "scores" / "results.csv").read_text()
    assert "peak_box" in table.splitlines()[0]
    assert len(list((tmp_path / "scores" / "overlays").iterdir())) == 4


def test_auto_says_what_it_chose_and_without_tiles_what_is_lost(mosaics, tmp_path):
    auto = run("build", mosaics, "--out", tmp_path / "auto", "--tile", "auto")
    assert "tiles of" in auto
    assert MemoryBank.load(tmp_path / "auto").layout.tiling is not None
    plain = run("build", mosaics, "--out", tmp_path / "plain")
    assert "--tile auto would cut them into tiles" in plain
    checked = run("data", "check", mosaics)
    assert "large images" in checked
    assert "mrad build --tile auto" in checked


def test_pictures_of_several_sizes_in_tiles_are_warned_of(tmp_path, make_image):
    for number, size in enumerate([(300, 200), (300, 200), (200, 300), (120, 80)]):
        (tmp_path / "good").mkdir(exist_ok=True)
        make_image(number, size)[0].save(tmp_path / "good" / f"{number}.png")
    said = run("build", tmp_path / "good", "--out", tmp_path / "bank", "--tile", "100")
    said = " ".join(said.split())
    assert "pictures differ in size: 300 x 200 (2), 200 x 300 (1), 120 x 80 (1)." in said
    whole = run("build", tmp_path / "good", "--out", tmp_path / "plain")
    assert "differ in size" not in whole, "each is scaled to the encoder's input"
    (tmp_path / "good" / "3.png").unlink()
    turned = run("build", tmp_path / "good", "--out", tmp_path / "turned", "--tile", "100")
    assert "differ in size" not in turned


def test_data_check_says_how_much_is_squeezed_away(tmp_path, make_image):
    (tmp_path / "good").mkdir()
    (tmp_path / "defect").mkdir()
    make_image(0, (50, 125))[0].save(tmp_path / "good" / "a.png")
    make_image(1, (100, 100), defect=True)[0].save(tmp_path / "defect" / "b.png")
    assert "50 x 125 loses 60 % of its height" in run("data", "check", tmp_path)


def test_each_part_has_its_own_figures(dataset, tiny_encoder, tmp_path):
    """Truth of a part is what is marked inside it; metrics at the picture's own size."""
    from mrad_indexer.evaluation.report import table

    areas = tuple(
        Area.of_box((x, 0, x + 120, 96), (240, 96), name)
        for name, x in (("left", 0), ("right", 120))
    )
    options = BuildOptions(layout=Layout(None, None, areas))
    bank = build(tiny_encoder, dataset, tmp_path / "bank", options).bank
    result = evaluate({"parts": Detector(tiny_encoder, bank)}, dataset)
    (item,) = result.candidates[0].objects
    marked = [record.read_mask((240, 96)) for record in dataset.records]
    for part, half in zip(item.parts, (slice(0, 120), slice(120, 240))):
        assert part.images == 8
        assert part.anomalous == sum(bool(mask[:, half].any()) for mask in marked)
        assert part.image.auroc is not None
        assert part.pixel.aupro is not None
    assert [part.name for part in item.parts] == ["left", "right"]
    assert [row.name for row in table(result)][-2:] == [
        f"{item.name or 'images'}: part {name}" for name in ("left", "right")
    ]
    assert result.to_json()["candidates"][0]["objects"][0]["parts"][1]["name"] == "right"


def test_a_head_is_not_trained_on_a_memory_of_tiles(bank, dataset, tiny_encoder, tmp_path):
    from mrad_indexer.training.run import train

    from mrad.errors import HeadError

    checkpoint = tmp_path / "ft.safetensors"
    with pytest.raises(HeadError, match="in tiles"):
        train("ft", tiny_encoder, dataset.records, checkpoint, tmp_path / "cache", bank=bank)
    assert not checkpoint.exists()


PARTS = {
    "size": [640, 640],
    "parts": {"left": {"box": [0, 0, 320, 640]}, "right": {"box": [320, 0, 640, 640]}},
}


def test_parts_and_a_share_of_tiles_by_the_command_line(board_bank, demo_images, tmp_path):
    """`--parts` of `mrad score` and `mrad watch`: a score and a verdict for each part."""
    parts = tmp_path / "parts.json"
    parts.write_text(json.dumps(PARTS))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    source = sorted((demo_images / "memory" / "defect").iterdir())[0]
    shutil.copy(source, inbox / source.name)
    given = ("--bank", board_bank, "--parts", parts, "--threshold", 0.5, "--format", "jsonl")
    run("score", inbox, *given, "--out", tmp_path / "scores", "--no-overlays")
    (line,) = (tmp_path / "scores" / "results.jsonl").read_text().splitlines()
    told = json.loads(json.loads(line)["parts"])
    areas = parse_parts(PARTS)
    (wanted,) = Judge.load(board_bank, parts=areas, device="cpu").detector.predict([source])
    assert {name: part["score"] for name, part in told.items()} == {
        part.name: pytest.approx(part.score, abs=1e-5) for part in wanted.parts
    }
    assert all(part["verdict"] in ("normal", "anomalous") for part in told.values())

    out = tmp_path / "watched"
    words = ["watch", inbox, "--bank", board_bank, "--parts", parts, "--out", out]
    watch = subprocess.Popen(
        [str(Path(sys.executable).parent / "mrad"), *map(str, words), "--settle", "0"],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        record = out / "verdicts.jsonl"
        while not record.exists() or source.name not in record.read_text():
            assert time.monotonic() < deadline
            assert watch.poll() is None
            time.sleep(0.1)
    finally:
        watch.terminate()
        watch.wait(60)
    row = json.loads(record.read_text().splitlines()[-1])
    assert set(json.loads(row["parts"])) == {"left", "right"}


def test_a_coarse_look_by_the_command_line(mosaics, tmp_path):
    bank = tmp_path / "bank"
    out = run("build", mosaics, "--out", bank, "--tile", 320, "--tile-closely", 0.25)
    assert "25 % of them closely" in out
    assert MemoryBank.load(bank).layout.tiling == Tiling(320, 0.25, 0.25)
    image = mosaics / "defect" / "0.png"
    for words, some in (((), True), (("--tile-closely", 1), False)):
        folder = tmp_path / f"scores{len(words)}"
        run("score", image, "--bank", bank, "--out", folder, "--format", "jsonl", *words)
        (line,) = (folder / "results.jsonl").read_text().splitlines()
        assert ("looked_at_coarsely" in line) is some


def test_eval_judges_coarse_to_fine_as_the_detector_does(bank, dataset, tiny_encoder):
    layout = bank.layout.looked_at_closely(0.3)
    detector = Detector(tiny_encoder, bank).with_layout(layout)
    result = evaluate({"some": detector}, dataset)
    (item,) = result.candidates[0].objects
    direct = detector.predict([dataset.records[0].image])[0]
    assert any(not tile.closely for tile in direct.tiles)
    assert item.scores[0].score == pytest.approx(direct.score, abs=1e-6)


def test_parts_that_move_by_the_command_line(tmp_path):
    """The first good picture is what others are aligned with; one that cannot be is skipped and named."""
    data, parts = tmp_path / "data", tmp_path / "parts.json"
    (data / "good").mkdir(parents=True)
    for number, shift in enumerate(((0, 0), (12, 7), (-8, 5))):
        moved(plate(), shift).save(data / "good" / f"{number}.png")
    plate(5).save(data / "good" / "other.png")
    facts = {"size": SIZE, "align": True, "parts": {"left": {"box": LEFT}}}
    parts.write_text(json.dumps(facts))
    out = run("build", data, "--out", tmp_path / "bank", "--parts", parts)
    assert "aligned with a reference picture" in out
    assert "1 image skipped" in out
    assert "other.png: the picture could not be aligned" in out
    detector = Judge.load(tmp_path / "bank", device="cpu").detector
    scored = score_without_self(detector, read_dataset(data))
    assert len(scored.score) == 3, "what a build leaves out says nothing of thresholds"
    assert "could not be aligned" in scored.skipped[0]
    moved(plate(), (30, -10)).save(tmp_path / "asked.png")
    words = ("--bank", tmp_path / "bank", "--format", "jsonl", "--no-overlays")
    for number, given in enumerate(((), ("--parts", parts))):
        folder = tmp_path / f"scores{number}"
        run("score", tmp_path / "asked.png", *words, *given, "--out", folder)
        row = json.loads((folder / "results.jsonl").read_text())
        assert set(json.loads(row["parts"])) == {"left"}
        assert "not_aligned" not in json.dumps(row)
    result = run("eval", data, "--bank", tmp_path / "bank", "--out", tmp_path / "report")
    assert "part left" in result
    assert "left out" in result
    assert "other.png: it could not be aligned" in result


def test_a_build_that_aligns_hardly_any_picture_is_an_error(aligned_plates, tiny_encoder, tmp_path):
    """A memory of one picture in five would pass for one of all; a few refused are counted and named."""
    data, layout = aligned_plates
    options = BuildOptions(layout=layout)
    assert len(build(tiny_encoder, read_dataset(data), tmp_path / "few", options).skipped) == 1
    for number in range(3):
        plate(6 + number).save(data / "good" / f"other{number}.png")
    out = tmp_path / "bank"
    with pytest.raises(
        DataError, match=r"4 of 7 images .* no memory was written: align with"
    ) as told:
        build(tiny_encoder, read_dataset(data), out, options)
    assert "could not be aligned" in str(told.value)
    assert not out.exists()
    for number in range(3):
        (data / "good" / f"other{number}.png").unlink()
    assert len(build(tiny_encoder, read_dataset(data), out, options).bank.entries) == 3


def test_a_build_of_mostly_broken_files_says_so(tiny_encoder, tmp_path):
    (tmp_path / "good").mkdir()
    plate().save(tmp_path / "good" / "0.png")
    for number in range(2):
        (tmp_path / "good" / f"broken{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 3 images .* mend them"):
        build(tiny_encoder, read_dataset(tmp_path), tmp_path / "bank")
