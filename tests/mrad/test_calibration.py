"""What a stored calibration answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mrad import MemoryBank
from mrad.calibration import Calibration, Isotonic, Platt, Reliability, Summary, Tail, Threshold
from mrad.errors import CalibrationError
from mrad.thresholds.verdicts import Verdicts


def make_calibration(**changes) -> Calibration:
    good = np.linspace(0.4, 0.5, 101)
    cut = Threshold(value=0.49, low=0.48, high=0.5, rule="f1", precision=1, recall=1, f1=1, fpr=0)
    facts = {
        "head": "tf",
        "settings": {"fusion": 0.7},
        "scored": "held-out",
        "made_at": "2026-01-01T00:00:00Z",
        "normal": 101,
        "anomalous": 10,
        "image": cut,
        "pixel": cut,
        "normal_scores": Tail.of(good),
        "model": Platt(slope=2, offset=0, centre=0.5, scale=0.01),
        "prevalence": 0.5,
        "reliability": Reliability(
            predicted=[0.5], observed=[0.5], count=[10], brier=0.1, expected_error=0
        ),
        "scores_normal": Summary.of(good),
        "scores_anomalous": Summary.of(good + 0.1),
        "similarity_image": Summary.of(good),
        "similarity_patch": Summary.of(good),
    }
    return Calibration(**facts | changes)


@pytest.mark.parametrize("count", [7, 100, 2_000, 50_000])
@pytest.mark.parametrize("target", [0.0, 0.001, 0.01, 0.05, 0.3, 1.0])
def test_a_wanted_false_alarm_rate_is_kept_and_nearly_used(count, target):
    good = np.random.default_rng(count).normal(0.5, 0.01, count).astype(np.float32)
    threshold = Tail.of(good).threshold_at(target)
    flagged = int((good >= threshold).sum())  # float32 against a Python float, as users compare
    assert flagged <= target * count + 1e-6
    assert flagged >= int(target * count) * 0.98 - 1


def test_ties_are_flagged_together_or_not_at_all():
    tail = Tail.of(np.array([0.5] * 10 + [0.4] * 10))
    assert tail.threshold_at(0.2) > 0.5
    assert tail.threshold_at(0.5) == 0.5
    assert tail.fpr_at(0.5) == 0.5
    assert tail.fpr_at(0.51) == 0.0
    assert tail.fpr_at(0.1) == 1.0


def test_weights_stand_for_many_pixels():
    tail = Tail.of(np.array([0.9, 0.1]), np.array([1, 999]))
    assert tail.total == 1000
    assert tail.threshold_at(0.001) == 0.9


def test_bounded_size_whatever_the_number_of_good_images():
    tail = Tail.of(np.random.default_rng(0).random(100_000))
    assert len(tail.value) <= 2_000
    assert tail.total == 100_000


def test_probability_rises_stays_in_range_and_follows_prevalence():
    calibration = make_calibration()
    scores = np.linspace(0, 1, 50)
    values = [calibration.probability(score) for score in scores]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)
    assert calibration.probability(0.5) == pytest.approx(0.5)
    assert calibration.probability(0.5, prevalence=0.01) == pytest.approx(0.01)
    with pytest.raises(CalibrationError, match="prevalence"):
        calibration.probability(0.5, prevalence=1.0)


def test_a_rate_that_the_good_images_cannot_promise_is_told():
    calibration = make_calibration(normal_scores=Tail.of(np.linspace(0.4, 0.5, 20)))
    assert calibration.shortfall(0.05) is None
    told = calibration.shortfall(0.01)
    assert told.startswith("rate_not_promised: 20 good images cannot promise 1 %")
    assert "4.8 %" in told
    assert calibration.threshold_at(0.01) == calibration.threshold_at(0.0)


def test_isotonic_is_applied_by_interpolation():
    calibration = make_calibration(model=Isotonic(x=[0.4, 0.6], y=[0.1, 0.9]))
    assert calibration.probability(0.5) == pytest.approx(0.5)
    assert calibration.probability(9.0) == pytest.approx(0.9)


def test_stored_in_the_bank_and_read_back_per_head(tiny_bank, tmp_path):
    calibration = make_calibration()
    bank = make_calibration(head="ft").into(calibration.into(tiny_bank))
    assert Calibration.of(bank, "tf") == calibration
    bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert Calibration.of(loaded, "tf") == calibration
    assert Calibration.of(loaded, "ft").head == "ft"
    assert Calibration.of(loaded, "tf").threshold_at(0.01) == calibration.threshold_at(0.01)
    with pytest.raises(CalibrationError, match=r"'clip'.*ft, tf"):
        Calibration.of(loaded, "clip")


def test_a_damaged_calibration_is_refused_not_guessed(tiny_bank):
    bank = tiny_bank.with_calibration({"tf": {"head": "tf"}})
    with pytest.raises(CalibrationError, match="cannot be used"):
        Calibration.of(bank, "tf")


def test_asking_for_what_is_not_there():
    calibration = make_calibration(pixel=None)
    with pytest.raises(CalibrationError, match="pixel threshold"):
        _ = calibration.pixel_threshold
    with pytest.raises(CalibrationError, match="no maps of good images"):
        calibration.threshold_at(0.01, "pixel")
    with pytest.raises(CalibrationError, match="false-alarm rate"):
        calibration.threshold_at(1.5)


def test_people_read_scores_from_0_to_100_with_the_threshold_at_50():
    calibration = make_calibration()
    cut, good = calibration.image_threshold, calibration.scores_normal.quantiles[10]
    assert calibration.calibrated(cut) == pytest.approx(50)
    values = [calibration.calibrated(score) for score in np.linspace(0, 1, 50)]
    assert all(0 <= low <= high <= 100 for low, high in pairwise(values))
    assert 10 - 1e-9 <= calibration.calibrated(good) < 50
    assert calibration.calibrated(0.9, threshold=0.9) == pytest.approx(50), "the request's own cut"
    tight = calibration.model_copy(update={"scores_anomalous": calibration.scores_normal})
    near = calibration.scores_normal.model_copy(update={"std": 0.0})
    tight = tight.model_copy(update={"scores_normal": near, "scores_anomalous": near})
    assert tight.calibrated(good) == pytest.approx(10)
    assert tight.calibrated(2 * cut - good) == pytest.approx(90)


def test_colours_are_one_scale_with_the_pixel_threshold_in_the_middle():
    calibration = make_calibration()
    pixels = Tail.of(np.linspace(0.1, 0.3, 100))
    held = calibration.model_copy(update={"normal_pixels": pixels})
    low, high = held.map_range(0.5)
    assert low == pytest.approx(pixels.threshold_at(0.25))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert held.map_range(0.05) is None, "good pixels lie above that cut"
    assert calibration.model_copy(update={"normal_pixels": None}).map_range(0.5) is None


def test_a_score_at_a_threshold_of_few_digits_is_anomalous_at_every_door() -> None:
    """Scores are float32: 0.7 of them is a little less than the number that people write."""
    verdicts = Verdicts.of(None, threshold=0.7)
    assert float(np.float32(0.7)) < 0.7
    assert verdicts.verdict(float(np.float32(0.7))) == "anomalous"
    assert verdicts.verdict(float(np.nextafter(np.float32(0.7), np.float32(0)))) == "normal"
