"""What decides whether a precision may be offered."""

from __future__ import annotations

import pytest

from benchmarks.precision import datasets, verdict


@pytest.mark.parametrize(
    ("ranks", "found", "kept"),
    [
        ([0.9995, 0.9999], (80.05, 70.0), "yes"),
        ([0.9985, 0.9999], (80.0, 70.0), "NO"),  # one map is enough
        ([0.9999], (80.11, 70.0), "NO"),
        ([0.9999], (80.0, 69.85), "NO"),
        ([0.9999, float("nan")], (80.0, 70.0), "NO"),
    ],
)
def test_every_map_and_both_areas_must_hold(
    ranks: list[float], found: tuple[float, float], kept: str
) -> None:
    assert verdict(ranks, (80.0, 70.0), found)[-1] == kept


def test_both_halves_have_both_classes() -> None:
    for records in datasets(quick=True).values():
        for half in (records[::2], records[1::2]):
            assert {record.anomalous for record in half} == {False, True}
