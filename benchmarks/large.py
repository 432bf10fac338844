"""`benchmarks/sizes.py` at 10 M keys: a quarter of an hour or more, 21 GB of disk under TMPDIR, and
under 20 GiB of memory. Exact retrieval is not timed there, and no bank is built: it would take 40 GB.
"""

from __future__ import annotations

from benchmarks.features import KEY_WIDTH, wide_patches
from benchmarks.geometry import Geometry
from benchmarks.sizes import size_tables
from benchmarks.tables import Table

KEYS = 10_000_000


def run(quick: bool) -> list[Table]:
    """See the module."""
    real = wide_patches(700 if quick else 70_000, quick)
    if quick:
        return size_tables(real, 9, (4_000,), Geometry.tiny())
    return size_tables(real, 37, (KEYS,), KEY_WIDTH)
