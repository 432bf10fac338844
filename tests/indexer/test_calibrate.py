"""Calibration from scores, and the scores themselves: an image never retrieves itself."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mrad_indexer.calibration.apart import apart
from mrad_indexer.calibration.calibrate import judge_held, score_without_self, without_a_file
from mrad_indexer.cli.calibrate import say_apart, show
from mrad_indexer.cli.common import console
from mrad_indexer.datasets import read_dataset

from mrad import Detector, MemoryBank, Sample
from mrad.errors import CalibrationError
from mrad.fitting import Points, fit_isotonic, fit_platt
from mrad.heads.good_parts import left_out
from mrad.heads.good_parts.left_out import watched
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling
from mrad.maps import anomaly_map, fuse, top_mean
from mrad.memory.keys import encode_samples
from mrad.thresholds.calibrate import Scored, calibrate
from mrad.thresholds.own import score_own


def fake_scores(good_only=200, bads=60, gap=0.004, seed=0) -> Scored:
    rng = np.random.default_rng(seed)
    scored = Scored()
    for i in range(good_only + bads):
        bad = i >= good_only
        scored.score.append(float(np.float32(0.5 + bad * gap + rng.normal(0, 0.001))))
        scored.anomalous.append(bad)
        scored.own_row.append(-1)
        scored.sketch.append(None)
        scored.peak.append(0.51 + float(rng.normal(0, 0.002)) + 0.02 * bad)
        scored.similarity_image.append(0.9)
        scored.similarity_patch.append(0.8)
        for truth in (False, True) if bad else (False,):
            scored.pixels.append(rng.normal(0.5 + 0.01 * truth, 0.002, 100))
            scored.pixel_image.append(i)
            scored.pixel_truth.append(truth)
            scored.pixel_weight.append(20.0 if not truth else 1.0)
    return scored


@pytest.fixture(scope="module")
def surface(tmp_path_factory, make_image):
    root = tmp_path_factory.mktemp("surface")
    for seed in range(8):
        bad = seed % 2 == 1
        image, mask = make_image(seed, (80, 64), defect=bad)
        for name in ("good", "defect", "masks"):
            (root / name).mkdir(exist_ok=True)
        image.save(root / ("defect" if bad else "good") / f"{seed}.png")
        if mask:
            mask.save(root / "masks" / f"{seed}.png")
    return read_dataset(root)


def bank_without(encoder, dataset, left_out):
    records = [r for i, r in enumerate(dataset.records) if i != left_out]
    return MemoryBank.from_samples(encoder, [r.sample() for r in records])


def at_shares_of(whole: MemoryBank, detector: Detector, image) -> float:
    """The score of an image by a smaller bank, were its classes as frequent as in the whole."""

    def back(probability, part, level):
        odds = [np.log(np.mean(x.labels == 1) / np.mean(x.labels == 0)) for x in (part, level)]
        return torch.sigmoid(torch.logit(probability.double()) - odds[0] + odds[1]).float()

    found = detector.head(detector.encoder.encode([image]))
    patch = back(found.patch, detector.bank.patch, whole.patch)
    square = anomaly_map(patch, detector.encoder.image_size)
    image_level = back(found.image, detector.bank.image, whole.image)
    return float(fuse(top_mean(square), image_level, detector.fusion)[0])


def test_leave_one_out_equals_a_bank_built_without_the_image(tiny_encoder, surface):
    bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in surface.records])
    scored = score_without_self(Detector(tiny_encoder, bank), surface, batch_size=3)
    for i in (0, 5):
        other = Detector(tiny_encoder, bank_without(tiny_encoder, surface, i))
        alone = at_shares_of(bank, other, surface.records[i].image)
        assert scored.score[i] == pytest.approx(alone, abs=1e-5)
        itself = Detector(tiny_encoder, bank).predict([surface.records[i].image])[0].score
        assert abs(itself - alone) > 1e-4
    assert scored.own_row == list(range(len(surface)))


def test_an_image_known_under_another_name_is_still_itself(tiny_encoder, surface):
    samples = [r.sample() for r in surface.records]
    renamed = [type(s)(s.image, s.anomalous, s.mask, source=f"x{i}") for i, s in enumerate(samples)]
    bank = MemoryBank.from_samples(tiny_encoder, renamed)
    scored = score_without_self(Detector(tiny_encoder, bank), surface)
    assert scored.own_row == list(range(len(surface)))
    half = MemoryBank.from_samples(tiny_encoder, renamed[2:])
    scored = score_without_self(Detector(tiny_encoder, half), surface)
    assert scored.own_row == [-1, -1, 0, 1, 2, 3, 4, 5]


def test_thresholds_sit_between_the_classes_with_an_interval(tiny_detector):
    got = calibrate(tiny_detector, fake_scores(gap=0.02), draws=50)
    assert 0.503 < got.image_threshold < 0.517
    assert got.image.low <= got.image.value <= got.image.high
    assert got.image.f1 == got.image.recall == 1
    assert 0.504 < got.pixel_threshold < 0.512
    assert got.scored == "held-out"
    assert got.normal_pixels.total == 20 * 100 * 260


def test_a_wanted_false_alarm_rate(tiny_detector):
    scored = fake_scores(gap=0.001)
    got = calibrate(tiny_detector, scored, rule="fpr", target_fpr=0.05, draws=50)
    good_only = np.array(scored.score)[:200]
    assert (good_only >= got.image_threshold).mean() <= 0.05
    assert (good_only >= got.image_threshold).mean() == pytest.approx(got.image.fpr)
    assert got.image.fpr >= 0.04
    assert got.image.promise.rate == pytest.approx(10 / 201)
    assert got.image.recall > 0
    assert (good_only >= got.threshold_at(0.1)).sum() == 19, "20 of 201 orders of a new one"
    none = calibrate(tiny_detector, scored, rule="fpr", target_fpr=0.0, draws=10)
    assert (good_only.astype(np.float32) >= none.image_threshold).sum() == 0
    assert none.image.promise.rate == pytest.approx(1 / 201)
    assert not none.image.promise.keeps(0.0)


def test_good_images_alone_give_thresholds_and_no_probability(tiny_detector):
    scored = fake_scores(40, 0)
    got = calibrate(tiny_detector, scored)
    assert (got.normal, got.anomalous, got.image.rule) == (40, 0, "fpr")
    assert got.image.target_fpr == 0.05
    assert got.image.promise.rate == pytest.approx(2 / 41)
    assert got.image.promise.low < 2 / 41 < got.image.promise.high
    assert sum(score >= got.image_threshold for score in scored.score) == 1
    assert sum(peak >= got.pixel_threshold for peak in scored.peak) == 1
    assert got.image.recall is got.model is got.reliability is got.scores_anomalous is None
    assert got.probability(0.9) is None
    assert got.p_value(0.9) == pytest.approx(1 / 41)
    assert got.p_value(0.0) == 1
    assert got.calibrated(got.image_threshold) == pytest.approx(50)
    low, high = got.map_range()
    assert low < got.pixel_threshold < high
    assert type(got).model_validate(got.model_dump(mode="json")) == got


@pytest.mark.parametrize(
    ("good_only", "target", "rank"), [(20, 0.01, 1), (20, 0.05, 1), (40, 0.05, 2), (99, 0.05, 5)]
)
def test_few_good_images_promise_what_they_can(tiny_detector, good_only, target, rank):
    cut = calibrate(tiny_detector, fake_scores(good_only, 0), target_fpr=target).image
    assert cut.promise.rate == pytest.approx(rank / (good_only + 1))
    assert cut.promise.keeps(target) == (rank / (good_only + 1) <= target)
    assert cut.fpr == pytest.approx((rank - 1) / good_only)


def test_a_single_defect_leaves_the_good_images_to_decide(tiny_detector):
    got = calibrate(tiny_detector, fake_scores(40, 1))
    assert got.image.rule == "fpr"
    assert got.model is None
    with pytest.raises(CalibrationError, match="--rule fpr"):
        calibrate(tiny_detector, fake_scores(40, 1), rule="f1")


def test_defects_without_masks_give_probabilities_and_a_pixel_threshold_by_false_alarms(
    tiny_detector,
):
    scored = fake_scores(40, 20, gap=0.02)
    for name in ("pixels", "pixel_image", "pixel_truth", "pixel_weight"):
        kept = [v for v, bad in zip(getattr(scored, name), scored.pixel_truth) if not bad]
        setattr(scored, f"_{name}", kept)
    for name in ("pixels", "pixel_image", "pixel_truth", "pixel_weight"):
        setattr(scored, name, getattr(scored, f"_{name}"))
    got = calibrate(tiny_detector, scored, draws=10)
    assert (got.image.rule, got.pixel.rule) == ("f1", "fpr")
    assert got.probability(0.6) > 0.5


def test_maps_that_tell_nothing_give_no_threshold_that_marks_everything(tiny_detector, capsys):
    """The best F1 of a defect that no map shows is that of marking all pixels."""
    scored = fake_scores(40, 20, gap=0.02)
    for values, truth in zip(scored.pixels, scored.pixel_truth):
        values -= 0.4 * truth
    got = calibrate(tiny_detector, scored, draws=10)
    assert (got.image.rule, got.pixel.rule) == ("f1", "fpr")
    assert got.pixel.value > 0.5
    assert got.map_range() is not None
    show(got)
    assert "the pixel threshold is by false alarms" in " ".join(capsys.readouterr().out.split())


def test_what_a_restored_export_holds_without_a_file_is_judged(tiny_encoder, surface, tmp_path):
    samples = [record.sample() for record in surface.records]
    MemoryBank.from_samples(tiny_encoder, samples).save(tmp_path / "b")
    bank = MemoryBank.load(tmp_path / "b")
    files, detector = replace(surface, records=surface.records[:5]), Detector(tiny_encoder, bank)
    assert (without_a_file(bank, surface), without_a_file(bank, files)) == ([], [5, 6, 7])
    scored = score_without_self(detector, files)
    assert judge_held(detector, scored, [5, 6, 7]) == 3
    assert sorted(scored.own_row) == list(range(8))


def test_a_burst_counts_once(tiny_detector):
    scored = fake_scores(12, 0)
    one = torch.nn.functional.normalize(torch.randn(8, generator=torch.manual_seed(0)), dim=0)
    scored.sketch[:4] = [one, one * 0.999, one + 1e-4, one]
    got = calibrate(tiny_detector, scored)
    assert got.normal == 12
    assert got.normal_scores.total == got.image.promise.parts == 9
    assert max(scored.score[:4]) in got.normal_scores.value
    assert min(scored.score[:4]) not in got.normal_scores.value


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_are_calibrated_on_unseen_images(tiny_detector, method):
    got = calibrate(tiny_detector, fake_scores(2000, 1000, gap=0.002), method=method, draws=5)
    assert got.reliability.expected_error < 0.04
    assert sum(got.reliability.count) == 3000
    fresh = fake_scores(2000, 1000, gap=0.002, seed=9)
    predicted = np.array([got.probability(value) for value in fresh.score])
    high = (predicted > 0.6) & (predicted < 0.9)
    assert np.mean(np.array(fresh.anomalous)[high]) == pytest.approx(
        predicted[high].mean(), abs=0.06
    )


def test_separable_classes_do_not_give_certainty():
    score = np.array([0.1] * 10 + [0.9] * 10)
    truth = score > 0.5
    assert fit_platt(score, truth)(0.9) < 0.99
    assert fit_isotonic(score, truth)(0.9) < 0.99


def test_the_bootstrap_narrows_with_more_images(tiny_detector):
    few = calibrate(tiny_detector, fake_scores(30, 10), draws=100).image
    many = calibrate(tiny_detector, fake_scores(1500, 500), draws=100).image
    assert many.high - many.low < few.high - few.low


def test_equal_values_are_never_parted():
    points = Points.of(
        np.array([0.5, 0.5, 0.5, 0.4]),
        np.array([True, False, True, False]),
        np.arange(4),
        np.ones(4),
    )
    chosen = points.choose(np.ones(4))
    assert 0.4 < chosen["value"] <= 0.5
    assert chosen["fpr"] == 0.5


def test_refusals(tiny_detector):
    with pytest.raises(CalibrationError, match="at least two good images, there are 1"):
        calibrate(tiny_detector, fake_scores(1, 10))
    with pytest.raises(CalibrationError, match="do not score higher"):
        calibrate(tiny_detector, fake_scores(50, 50, gap=-0.01), rule="f1")
    with pytest.raises(CalibrationError, match="unknown"):
        calibrate(tiny_detector, fake_scores(10, 10), method="magic")


def test_scores_that_say_nothing_are_said_and_what_can_be_stored_is(tiny_detector):
    weak = calibrate(tiny_detector, fake_scores(50, 50, gap=-0.01), draws=5)
    assert weak.image.rule == "fpr", "the best F1 would flag nearly every good part"
    assert weak.image.fpr <= 0.06
    assert weak.model is None
    assert weak.probability(0.4) is None
    found = weak.separation
    assert found.low <= found.auroc <= found.high
    assert not found.significant
    assert "cannot tell" in weak.weakness
    assert f"{found.low:.2f} to {found.high:.2f}" in weak.weakness
    assert "--fusion" not in weak.weakness
    scored = fake_scores(50, 50, gap=-0.01)
    scored.whole = list(scored.score)
    scored.top = [float(bad) + score for bad, score in zip(scored.anomalous, scored.score)]
    assert "--fusion 0" in calibrate(tiny_detector, scored, draws=5).weakness
    assert calibrate(tiny_detector, fake_scores(50, 50), draws=5).weakness == ""


def test_nothing_raw_changes(tiny_encoder, tiny_bank, make_image):
    image, _ = make_image(40, defect=True)
    before = Detector(tiny_encoder, tiny_bank).predict([image])[0]
    calibration = calibrate(Detector(tiny_encoder, tiny_bank), fake_scores(), draws=5)
    after = Detector(tiny_encoder, calibration.into(tiny_bank)).predict([image])[0]
    assert before.score == after.score
    assert torch.equal(torch.from_numpy(before.anomaly_map), torch.from_numpy(after.anomaly_map))


@pytest.mark.parametrize("head", ["tf", "nn"])
def test_lessons_are_judged_beside_the_images_of_the_build(
    tiny_encoder, surface, make_image, head
) -> None:
    bank = MemoryBank.from_samples(tiny_encoder, [r.sample() for r in surface.records])
    lessons = [Sample(make_image(50)[0], False), Sample(make_image(51, defect=True)[0], True)]
    for entry, keys in encode_samples(tiny_encoder, lessons):
        bank = bank.add(entry, keys)
    detector = Detector(tiny_encoder, bank, head)
    scored = score_without_self(detector, surface)
    pixels = len(scored.pixels)
    assert judge_held(detector, scored, without_a_file(bank, surface)) == 2
    assert sorted(scored.own_row) == list(range(10))
    assert scored.anomalous[-2:] == [False, True]
    own = dict(zip(*(getattr(score_own(detector), name) for name in ("own_row", "score"))))
    for row, score in zip(scored.own_row, scored.score):
        assert score == pytest.approx(own[row], abs=2e-4)
    assert len(scored.pixels) > pixels
    assert set(scored.pixel_image[pixels:]) == {8}, "nobody knows where the bare defect is"
    made = calibrate(detector, scored, rule="fpr", draws=10)
    assert (made.normal, made.anomalous, made.scored) == (5, 5, "leave-one-out")


def test_a_threshold_that_catches_no_defect_and_what_probabilities_suppose_are_said(
    tiny_detector, capsys
):
    made = calibrate(tiny_detector, fake_scores(100, 50, gap=0.002), rule="fpr", draws=5)
    none = made.image.model_copy(update={"recall": 0.0})
    show(made.model_copy(update={"image": none}))
    said = " ".join(capsys.readouterr().out.split())
    assert "the image threshold catches none of the known defective images (recall 0 %)" in said
    assert "suppose that 33.3 % of images are defective" in said
    show(made)
    assert "catches none" not in capsys.readouterr().out


def odd_ones(scores: dict[str, float], bad: tuple[float, ...] = ()) -> Scored:
    """30 good images near 0.5, and others by name."""
    usual = {f"{i:02}.png": 0.48 + 0.002 * i for i in range(30)}
    every = {**usual, **scores, **{f"bad{value}.png": value for value in bad}}
    return Scored(
        score=list(every.values()),
        anomalous=[name.startswith("bad") for name in every],
        source=list(every),
    )


def test_good_images_that_alone_make_the_threshold_are_named():
    found = apart(odd_ones({"turned.png": 0.7, "far.png": 0.75}, bad=(0.9, 0.95)), 0.05)
    assert found is not None
    assert found.sources == ("far.png", "turned.png")
    assert found.others == 30
    assert found.next_score == pytest.approx(0.538)
    assert found.threshold == pytest.approx(0.538, abs=1e-3)
    assert apart(odd_ones({}), 0.05) is None, "evenly spread"
    kind = {f"kind{i}.png": 0.8 for i in range(10)}
    assert apart(odd_ones(kind), 0.05) is None, "so many are a kind of their own"
    few = Scored(score=[0.5, 0.5, 0.9], anomalous=[False] * 3)
    assert apart(few, 0.05) is None


def test_a_threshold_that_rests_on_odd_images_says_so(tiny_detector, capsys):
    scored = fake_scores(40, 0)
    scored.source = [f"{i}.png" for i in range(40)]
    made = calibrate(tiny_detector, scored, draws=5)
    say_apart(made, scored)
    assert capsys.readouterr().out == ""
    scored.score[7] = 0.6
    say_apart(calibrate(tiny_detector, scored, target_fpr=0.02, draws=5), scored)
    said = " ".join(capsys.readouterr().out.split())
    assert "rests on 1 good image that scores far above the other 39" in said
    assert "7.png (0.600)" in said
    say_apart(calibrate(tiny_detector, scored, target_fpr=0.5, draws=5), scored)
    assert capsys.readouterr().out == "", "there it rests on the others"


def test_measuring_a_memorys_own_tiles_against_each_other_shows_how_far_it_is(
    tiny_encoder, make_image, monkeypatch, capsys
):
    image = make_image(1, (128, 128))[0]
    samples = [Sample(make_image(seed, (128, 128))[0], False) for seed in (1, 2, 3)]
    bank = MemoryBank.from_samples(tiny_encoder, samples, layout=Layout(Tiling(64)))
    told: list[tuple[int, int]] = []
    with watched(lambda done, total: told.append((done, total))):
        detector = Detector(tiny_encoder, bank, "nn")
    assert told[-1][0] == told[-1][1] == len(detector.head.views)
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    count = len(told)
    Detector(tiny_encoder, bank, "nn").predict([image])
    assert len(told) == count, "nobody watches any more"
    for seconds, shown in ((100.0, False), (0.0, True)):
        monkeypatch.setattr(console, "QUIET", seconds)
        with console.measuring():
            Detector(tiny_encoder, bank, "nn")
        assert ("own images measured" in capsys.readouterr().err) == shown


def test_only_the_measuring_itself_is_timed_and_what_follows_it_is_said(monkeypatch, capsys):
    """Loading an encoder takes seconds: then the bar would flash for the smallest memory."""
    for quiet, shown in ((0.2, False), (0.0, True)):
        monkeypatch.setattr(console, "QUIET", quiet)
        with console.measuring():
            time.sleep(0.25)  # an encoder is loaded
            tell = left_out._progress.get()
            tell(1, 2)
            tell(2, 2)
        said = capsys.readouterr().err
        assert ("images measured, scales follow" in said) is shown
