"""What a threshold promises of good parts to come, and whether it keeps it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrad.calibration import Tail
from mrad.confidence import Promise, independent, rank_of
from mrad.fitting import by_false_alarms

SHAPES = {
    "normal": lambda rng, shape: rng.normal(0.5, 0.05, shape),
    "heavy tail": lambda rng, shape: rng.pareto(1.5, shape),
    "two kinds": lambda rng, shape: rng.normal(0.4 + 0.2 * (rng.random(shape) < 0.1), 0.01),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("parts", "target"), [(40, 0.05), (20, 0.05), (9, 0.05), (200, 0.01)])
def test_the_promised_rate_holds_on_average_whatever_the_scores(shape, parts, target):
    rng = np.random.default_rng(parts)
    runs = 20_000
    scores = SHAPES[shape](rng, (runs, parts + 1))
    rank = rank_of(target, parts)
    cut = np.sort(scores[:, :parts], axis=1)[:, parts - rank]
    rate = float((scores[:, parts] > cut).mean())
    promise = Promise.of(rank, parts)
    assert rate == pytest.approx(promise.rate, abs=4 * (promise.rate / runs) ** 0.5)
    assert by_false_alarms(scores[0, :parts], target).value > cut[0]


def test_the_interval_holds_the_rate_of_one_threshold_in_95_of_100_sets():
    rng = np.random.default_rng(0)
    promise = Promise.of(2, 40)
    cuts = np.sort(rng.random((10_000, 40)), axis=1)[:, 38]
    rates = 1 - cuts  # of uniform scores
    inside = ((rates >= promise.low) & (rates <= promise.high)).mean()
    assert inside == pytest.approx(0.95, abs=0.01)


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    target=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_no_more_of_the_known_parts_are_flagged_than_promised(scores, target):
    values = np.array(scores)
    threshold, promise = Tail.of(values).promise_at(target)
    flagged = int((values.astype(np.float32) >= threshold).sum())
    assert flagged <= max(target * (len(values) + 1) - 1, 0) + 1e-6
    assert promise.rate <= max(target, 1 / (len(values) + 1)) + 1e-9
    assert 0 <= promise.low <= promise.rate <= promise.high <= 1


def test_thinned_tails_promise_no_less():
    values = np.random.default_rng(0).random(50_000)
    tail = Tail.of(values)
    for target in (0.0001, 0.01, 0.1, 0.5):
        threshold, promise = tail.promise_at(target)
        assert (values >= threshold).mean() <= target
        assert promise.rate == pytest.approx(target, rel=0.05)


def test_doubles_are_one_part():
    got = independent(np.array([0.1, 0.5, 0.3, 0.2]), np.array([7, 7, 2, 9]))
    assert sorted(got) == [0.2, 0.3, 0.5]
