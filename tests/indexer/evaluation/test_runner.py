"""A dataset through detectors: figures, JSON, report, command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from mrad_indexer import loading
from mrad_indexer.cli import calibrate as cli_calibrate
from mrad_indexer.cli import eval as cli_eval
from mrad_indexer.cli.common.console import MRADGroup
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.names import candidate_names, shortest
from mrad_indexer.evaluation.report import notes, render, table
from mrad_indexer.evaluation.runner import METRICS, evaluate
from mrad_indexer.known import SAME_IMAGE
from mrad_indexer.loading import HeadChoice
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from mrad import Detector, Encoder, MemoryBank
from mrad.calibration import Calibration
from mrad.errors import DataError, MRADError


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_image):
    """Two objects in MVTec's layout; a name that HTML must escape."""
    root = tmp_path_factory.mktemp("sets")
    for place, name in enumerate(("cap", "ring & <b>")):
        for seed in range(8):
            bad = seed % 2 == 1
            image, mask = make_image(100 * place + seed, (80, 64 + 8 * place), defect=bad)
            kind = root / name / "test" / ("blob" if bad else "good")
            kind.mkdir(parents=True, exist_ok=True)
            image.save(kind / f"{seed}.png")
            if mask is not None and not (place == 1 and seed == 7):
                truth = root / name / "ground_truth/blob"
                truth.mkdir(parents=True, exist_ok=True)
                mask.save(truth / f"{seed}_mask.png")
    return root


@pytest.fixture(scope="module")
def detectors(tiny_encoder, tiny_bank):
    return {
        "tf": Detector(tiny_encoder, tiny_bank),
        "map only": Detector(tiny_encoder, tiny_bank, fusion=0.0),
    }


@pytest.fixture(scope="module")
def evaluation(detectors, data):
    return evaluate(detectors, read_dataset(data), batch_size=3)


def test_figures_equal_sklearn_on_the_detectors_own_predictions(evaluation, detectors, data):
    dataset = read_dataset(data).select(object_name="cap")
    for candidate in evaluation.candidates:
        predictions = detectors[candidate.name].predict([r.image for r in dataset.records])
        truth = [r.anomalous for r in dataset.records]
        result = candidate.objects[0]
        scores = [p.score for p in predictions]
        assert result.image.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
        pixels = np.concatenate([p.anomaly_map.ravel() for p in predictions])
        masks = np.concatenate(
            [r.read_mask(p.size).ravel() for r, p in zip(dataset.records, predictions)]
        )
        assert result.pixel.auroc == pytest.approx(roc_auc_score(masks, pixels), abs=1e-3)
        assert result.pixel.ap == pytest.approx(average_precision_score(masks, pixels), abs=5e-3)
        assert result.masked == 4


def test_the_mean_is_over_objects(evaluation):
    for candidate in evaluation.candidates:
        for level, metric in METRICS:
            values = [getattr(getattr(item, level), metric) for item in candidate.objects]
            assert candidate.mean(level, metric) == pytest.approx(np.mean(values))


def test_an_unmasked_defect_counts_for_images_only(evaluation):
    result = evaluation.candidates[0].objects[1]
    assert (result.images, result.anomalous, result.masked) == (8, 4, 3)
    assert any(
        "without a mask, so left out of the pixel metrics: 1 of 4" in note
        for note in notes(evaluation)
    )


def test_batches_do_not_matter(evaluation, detectors, data):
    other = evaluate(detectors, read_dataset(data), batch_size=8)
    for one, two in zip(evaluation.candidates, other.candidates):
        for a, b in zip(one.objects, two.objects):
            assert a.pixel.aupro == pytest.approx(b.pixel.aupro, abs=1e-3)
            assert [s.score for s in a.scores] == pytest.approx(
                [s.score for s in b.scores], abs=1e-6
            )


def test_fixed_resolution(detectors, data):
    result = evaluate(detectors, read_dataset(data), resolution=48).candidates[0].objects[0]
    assert result.pixel.auroc is not None


def test_images_of_the_memory_are_pointed_out(tiny_encoder, data):
    dataset = read_dataset(data)
    bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in dataset.records[:6]])
    found = evaluate({"tf": Detector(tiny_encoder, bank)}, dataset)
    assert found.candidates[0].in_memory == 6
    assert any(
        "In the memory of tf, or equal to one there: 6 images" in note for note in notes(found)
    )
    assert SAME_IMAGE < 1


def test_fusion_is_compared_without_judging_again(evaluation, detectors, data):
    fused, maps = evaluation.candidates
    assert maps.mean_by_fusion() == pytest.approx(fused.mean_by_fusion(), abs=1e-6)
    for weight in (0.0, 0.7, 1.0):
        detector = Detector(detectors["tf"].encoder, detectors["tf"].bank, fusion=weight)
        own = evaluate({"own": detector}, read_dataset(data)).candidates[0]
        assert fused.mean_by_fusion()[weight] == pytest.approx(own.mean("image", "auroc"))


def test_a_better_fusion_is_named(evaluation):
    def shifted(candidate, gain):
        items = []
        for item in candidate.objects:
            by = dict.fromkeys(item.image_auroc_by_fusion, item.image.auroc)
            items.append(replace(item, image_auroc_by_fusion=by | {1.0: item.image.auroc + gain}))
        return replace(candidate, objects=tuple(items))

    for gain, named in ((0.01, False), (0.1, True)):
        candidates = tuple(shifted(c, gain) for c in evaluation.candidates)
        found = notes(replace(evaluation, candidates=candidates))
        assert any("Another --fusion" in note for note in found) is named


def test_one_class_gives_no_image_metrics_but_says_so(detectors, data):
    dataset = read_dataset(data)
    bad = type(dataset)(
        dataset.name, dataset.root, tuple(r for r in dataset.records if r.anomalous)
    )
    found = evaluate(detectors, bad)
    result = found.candidates[0].objects[0]
    assert result.image.auroc is None
    assert result.pixel.auroc is not None
    assert any("one class only" in note for note in notes(found))
    assert found.candidates[0].mean("image", "auroc") is None
    assert "–" in {cell.text for row in table(found) for cell in row.cells}
    assert "Pixels: ROC" in render(found, detectors, bad, cards=0)


def test_detectors_of_different_encoders_are_refused(detectors, tiny_clip, tiny_samples, data):
    encoder = Encoder.from_clip(tiny_clip, image_size=64, name="tiny", device="cpu")
    other = Detector(encoder, MemoryBank.from_samples(encoder, tiny_samples))
    with pytest.raises(MRADError, match="one encoder"):
        evaluate({"a": detectors["tf"], "b": other}, read_dataset(data))


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "xlink:href", "href") and v]
        if tag not in ("meta", "img", "br", "path", "use", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_report_is_one_sound_page(evaluation, detectors, data):
    text = render(evaluation, detectors, read_dataset(data), cards=2)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in page.sources)
    assert page.tags.count("img") == 2 * 2 * 4 * 2 * 2  # objects, candidates, rows, cards, pictures
    assert page.tags.count("figure") == 4
    assert "<script" not in text
    assert "ring &amp; &lt;b&gt;" in text
    assert "ring & <b>" not in text
    assert str(data.parent) not in text


def test_json_is_complete_and_plain(evaluation):
    content = json.loads(json.dumps(evaluation.to_json()))
    first = content["candidates"][0]
    assert set(first["mean"]) == {f"{a}_{b}" for a, b in METRICS}
    assert len(first["objects"][0]["scores"]) == 8
    assert {"source", "score", "class_score", "anomalous"} <= set(first["objects"][0]["scores"][0])


def test_the_best_is_marked_only_where_there_is_one(evaluation):
    for row in table(evaluation):
        assert len(row.cells) == len(METRICS)
    single = type(evaluation)(
        evaluation.dataset, evaluation.candidates[:1], evaluation.settings, 0.0
    )
    assert not any(cell.best for row in table(single) for cell in row.cells)


@pytest.fixture
def command(monkeypatch, tiny_encoder, tmp_path, data):
    """`mrad eval` and `mrad calibrate` on a bank of the tiny encoder, which has no file."""
    monkeypatch.setattr(loading.Encoder, "load", lambda *a, **k: tiny_encoder)
    records = read_dataset(data).records
    bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in records])
    bank.save(tmp_path / "bank")
    app = typer.Typer(cls=MRADGroup)
    app.command("eval")(cli_eval.eval_command)
    app.command("calibrate")(cli_calibrate.calibrate_command)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


def test_eval_command(command, data, tmp_path):
    out = tmp_path / "out"
    result = command(
        "eval", data, "--bank", tmp_path / "bank", "--out", out, "--cards", 1, "--only", "cap"
    )
    assert result.exit_code == 0, result.output
    content = json.loads((out / "report.json").read_text())
    assert content["dataset"]["objects"] == ["cap"]
    assert content["candidates"][0]["images_in_memory"] == 8
    assert "cap, 4 + 4 images" in result.output
    assert re.search(r"^tf( +[\d.]+){7}$", result.output, re.MULTILINE)
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_a_comparison_names_checkpoints_and_banks_and_breaks_no_word(evaluation, capsys):
    """At 80 columns, as a console that is no terminal has."""
    heads = [HeadChoice("tf"), *(HeadChoice("ft", Path(f"{n}/ft.safetensors")) for n in "ab")]
    banks = [Path("old/parts"), Path("new/parts")]
    found = candidate_names([(head, bank) for head in [*heads, heads[0]] for bank in banks])
    assert list(found.values()) == [
        f"{head} on {bank}/parts"
        for head in ("tf", "ft:a/ft", "ft:b/ft")
        for bank in ("old", "new")
    ]
    assert list(candidate_names([(h, banks[0]) for h in heads[:2]]).values()) == ["tf", "ft:ft"]
    assert shortest([Path("a/x"), Path("a/y"), Path("a/../a/x")])[Path("a/y")] == "y"

    def shown(*names):
        named = [replace(evaluation.candidates[0], name=name) for name in names]
        cli_eval.show(replace(evaluation, candidates=tuple(named)))
        text = capsys.readouterr().out
        figures = text[: text.index("percent;")].splitlines()
        assert max(map(len, figures)) <= 80
        return text

    text = shown("tf on old/parts", "tf on new/parts")
    assert re.search(r"^tf on old/parts( +[\d.]+){7}$", text, re.MULTILINE)
    long = [f"ft:{kind}-checkpoint-of-a-long-name on new/parts" for kind in ("first", "second")]
    text = shown(*long)
    assert f"#2  {long[1]}" in text
    assert re.search(r"^#2 +( +[\d.]+){7}$", text, re.MULTILINE)


def test_the_note_on_binning_names_its_detector_and_object(evaluation):
    first, second = evaluation.candidates
    rough = replace(second.objects[1], pixel=replace(second.objects[1].pixel, binning_error=0.01))
    changed = replace(second, objects=(second.objects[0], rough))
    said = [n for n in notes(replace(evaluation, candidates=(first, changed))) if "bins" in n]
    assert len(said) == 1
    assert said[0].startswith(f"{second.name} on {rough.name}:")


def test_eval_command_says_what_is_wrong(command, data, tmp_path):
    assert command("eval", data, "--bank", tmp_path / "none").exit_code == 2
    assert command("eval", tmp_path / "none", "--bank", tmp_path / "bank").exit_code == 2
    wrong = command("eval", data, "--bank", tmp_path / "bank", "--only", "cup")
    assert wrong.exit_code == 2


def test_calibrate_command_writes_into_the_bank_its_thresholds_and_nothing_else(
    command, data, tmp_path, tiny_encoder
):
    before = MemoryBank.load(tmp_path / "bank")

    def everything() -> dict[str, bytes]:
        """But the manifest, which holds the thresholds, and what is worked out again where it is gone."""
        kept = (tmp_path / "bank/bank.json", tmp_path / "bank/derived")
        found = (p for p in tmp_path.rglob("*") if p.is_file() and not {p, p.parent} & {*kept})
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in found}

    files = everything()
    dry = command("calibrate", tmp_path / "bank", data, "--draws", 10, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert MemoryBank.load(tmp_path / "bank").digest == before.digest
    plot = tmp_path / "plots/reliability.png"
    done = command("calibrate", tmp_path / "bank", data, "--draws", 10, "--plot", plot)
    assert done.exit_code == 0, done.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    after = MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)
    assert everything() == files | {"plots/reliability.png": plot.read_bytes()}
    calibration = Calibration.of(after, "tf")
    assert calibration.scored == "leave-one-out"
    assert (calibration.normal, calibration.anomalous) == (8, 8)
    assert calibration.image.low <= calibration.image_threshold <= calibration.image.high
    assert 0 < calibration.pixel_threshold < 1


def test_what_the_banks_own_threshold_finds_and_flags_is_said(command, data, tmp_path):
    """The best AUROC tells nothing of a threshold that lies above every defect."""
    bank, out = tmp_path / "bank", tmp_path / "out"

    def judged(*options: object) -> tuple[str, dict]:
        done = command("eval", data, "--bank", bank, "--out", out, "--cards", 0, *options)
        assert done.exit_code == 0, done.output
        content = json.loads((out / "report.json").read_text())
        return " ".join(done.output.split()), content["candidates"][0]

    assert "own threshold" not in judged()[0], "not calibrated"
    assert command("calibrate", bank, data, "--draws", 5).exit_code == 0
    said, candidate = judged()
    cut = Calibration.of(MemoryBank.load(bank), "tf").image_threshold
    assert candidate["config"]["threshold"] == cut
    scores = [score for item in candidate["objects"] for score in item["scores"]]
    caught, alarms = (
        sum(s["score"] >= cut for s in scores if s["anomalous"] == bad) for bad in (True, False)
    )
    assert (
        f"threshold, {cut:.5f}, tf: {caught} of 8 defective images found, {alarms} of 8 good images "
        "flagged." in said
    )
    assert "own threshold" in (out / "report.html").read_text()
    said, candidate = judged("--fusion", "0.4")
    assert "own threshold" not in said, "it holds for another weight"
    assert candidate["config"]["threshold"] is None


def test_calibrate_command_refuses_an_unknown_rule(command, data, tmp_path):
    assert command("calibrate", tmp_path / "bank", data, "--rule", "luck").exit_code == 2


def test_what_cannot_be_read_is_left_out_and_named(detectors, data, tmp_path, evaluation):
    for file in (path for path in data.rglob("*.png")):
        there = tmp_path / file.relative_to(data)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(file.read_bytes())
    (tmp_path / "cap/test/good/0.png").write_bytes(b"no picture")
    (tmp_path / "cap/ground_truth/blob/1_mask.png").write_bytes(b"no mask")
    found = evaluate(detectors, read_dataset(tmp_path), batch_size=1)
    skipped = found.dataset["skipped"]
    assert {Path(text.partition(": ")[0]).as_posix() for text in skipped} == {
        "cap/test/good/0.png",
        "cap/test/blob/1.png",
    }
    assert evaluation.dataset["skipped"] == []
    cap = found.candidates[0].objects[0]
    assert (cap.images, cap.anomalous) == (6, 3)
    assert "left out, because they cannot be read or aligned: 2 images" in notes(found)[0]
    for file in (tmp_path / "cap/test").rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image of cap can be judged"):
        evaluate(detectors, read_dataset(tmp_path), batch_size=3)


def test_calibrating_again_says_what_it_replaces_and_a_threshold_that_catches_nothing(
    command, data, tmp_path
):
    bank = tmp_path / "bank"
    strict = command("calibrate", bank, data, "--draws", 5, "--fpr", "0.01")
    assert strict.exit_code == 0, strict.output
    held = Calibration.of(MemoryBank.load(bank), "tf")
    shown = " ".join(command("calibrate", bank, data, "--draws", 5, "--dry-run").output.split())
    assert f"would replace {held.image_threshold:.5f} (--fpr 0.01), made {held.made_at}" in shown
    again = " ".join(command("calibrate", bank, data, "--draws", 5).output.split())
    new = Calibration.of(MemoryBank.load(bank), "tf")
    assert f"{new.image_threshold:.5f} (--rule {new.image.rule}) replaces" in again
    flags = "fewer" if new.image_threshold > held.image_threshold else "more"
    assert new.image_threshold == held.image_threshold or f"{flags} pictures are flagged" in again
    other = " ".join(
        command("calibrate", bank, data, "--draws", 5, "--fusion", "0.5").output.split()
    )
    assert "with other settings of fusion" in other
