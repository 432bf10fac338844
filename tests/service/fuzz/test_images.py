"""Mutated images by the thousand: no 5xx, no leak, no hang, and the server answers afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken files
AT_ONCE = 64
SECONDS = 120
"""Longest time for one request, on a busy machine."""
EXPECTED = {"invalid_image", "image_too_large"}
MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory, without those that glibc keeps for later (`keep_freed_memory`)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def score_many(client, files: list[bytes]) -> tuple[int, int]:
    """How many were judged and how many refused; fails on anything else."""
    parts = [("images", (f"{i}", file)) for i, file in enumerate(files)]
    began = time.monotonic()
    answer = client.post("/v1/score", files=parts, data={"fields": "score"})
    assert time.monotonic() - began < SECONDS, "a request took too long"
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == len(files)
    for result, file in zip(results, files):
        if result["status"] == "ok":
            assert math.isfinite(result["score"])
        else:
            assert result["problem"]["code"] in EXPECTED, (result, file.hex())
            assert result["problem"]["status"] < 500
    judged = sum(result["status"] == "ok" for result in results)
    return judged, len(files) - judged


def fuzz(client, mutant, cases: int) -> None:
    """`cases` mutants in requests of 64; memory is compared after a fifth and at the end."""
    judged = refused = 0
    early = threads = 0
    for first in range(0, cases, AT_ONCE):
        rng = np.random.default_rng(first)
        ok, bad = score_many(client, [mutant(rng) for _ in range(min(AT_ONCE, cases - first))])
        judged, refused = judged + ok, refused + bad
        if early == 0 and first >= cases // 5:
            early, threads = resident(), threading.active_count()
    grown = (resident() - early) / MIB
    print(
        f"{cases} mutated images: {judged} judged, {refused} refused, none failed; memory "
        f"{grown:+.0f} MiB over the last four fifths"
    )
    assert refused > cases // 10, "too few were broken"
    assert judged > cases // 50, "too few got past the decoders"
    assert grown < 64 + 0.001 * cases, "memory grows with the images"
    assert threading.active_count() <= threads + 2, "threads are left behind"


def test_every_format_is_read(client, valid_files):
    assert len({name.split()[0] for name in valid_files}) >= 6
    # A TGA of one bit a pixel is outside its format, and nothing in the file says that it is one.
    known = [data for name, data in valid_files.items() if name != "TGA 1"]
    judged, refused = score_many(client, known)
    assert refused == 0, (judged, refused)


def test_2000_mutated_images(client, mutant):
    fuzz(client, mutant, 2_000)


@pytest.mark.nightly
def test_100000_mutated_images(client, mutant):
    fuzz(client, mutant, 100_000)


def teach_many(client, mutant, png, cases: int) -> None:
    """Mutants as lessons and as masks: refused cleanly, or learned."""
    rng = np.random.default_rng(7)
    for case in range(cases):
        files = {"image": mutant(rng)}
        if case % 2:
            files = {"image": png(case % 9), "mask": mutant(rng)}
        data = {"label": "anomalous" if case % 2 else "normal"}
        answer = client.post("/v1/memory/entries", files=files, data=data)
        assert answer.status_code in (201, 413, 422), answer.text
        if answer.status_code != 201:
            assert answer.json()["code"] in EXPECTED | {"invalid_mask"}
    assert client.get("/health/ready").status_code == 200


def test_mutated_lessons(client, mutant, png):
    teach_many(client, mutant, png, 100)


@pytest.mark.nightly
def test_5000_mutated_lessons(client, mutant, png):
    teach_many(client, mutant, png, 5_000)
