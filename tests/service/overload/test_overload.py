"""Ten times the rate: every refusal clean, nothing else, memory flat. Figures are printed."""

from __future__ import annotations

import pytest

from benchmarks.overload import Seen, measure


def check(calm: Seen, flood: Seen, rate: float) -> None:
    assert calm.unclean == []
    assert flood.unclean == []
    assert flood.refused, "it was no overload"
    assert flood.accepted, "a server that refuses everything is down"
    assert flood.growth < 64, "memory grows with the refusals"
    print(
        f"{rate:.1f} images/s; unloaded p99 {1e3 * calm.quantile(0.99):.0f} ms; at ten times the "
        f"rate {len(flood.accepted)} accepted with p99 {1e3 * flood.quantile(0.99):.0f} ms, "
        f"{len(flood.refused)} refused cleanly, memory {flood.growth:+.1f} MiB"
    )


def test_six_seconds() -> None:
    check(*measure(6, quick=True))


@pytest.mark.nightly
def test_a_minute() -> None:
    check(*measure(60, quick=False))
