"""What becomes of a living memory whose bits are flipped or whose process is killed.

Runs the tests that fail where a memory is ever another one than was acknowledged
(tests/service/memory), and tabulates what they count.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import Cell, Table

ROOT = Path(__file__).parents[1]
FLIPS = "tests/service/memory/test_damage.py"
KILLS = "tests/service/memory/test_kill.py"
FLIPPED = re.compile(r"^\.?(\S+): (\d+) bits, (\d+) refused, (\d+) without effect", re.MULTILINE)
KILLED = re.compile(r"(\d+) kills, (\d+) of them with a journal left; (\d+) promises kept")
STATES = {"killed": "after a kill", "closed": "after a stop"}


def tried(test: str, marker: str) -> tuple[str, float]:
    """What a test prints, and its seconds; an error where it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-m", marker, test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    return done.stdout, time.monotonic() - began


def flipped(quick: bool) -> Table:
    """Bits by file and by how the server ended."""
    rows: list[Sequence[Cell]] = []
    for state, what in STATES.items():
        for name in ("HEAD", "memory.sqlite", "memory.sqlite-wal", "bank.json"):
            test = "test_every_bit_of_small_files_and_2000_of_large"
            if quick:
                test, state = "test_flipped_bits_never_give_another_memory", ""
            place = f"{FLIPS}::{test}[{'-'.join(filter(None, (state, name)))}]"
            printed, seconds = tried(place, "not nightly" if quick else "nightly")
            for file, bits, refused, same in FLIPPED.findall(printed):
                rows.append((file, what, int(bits), int(refused), int(same), 0, round(seconds)))
        if quick:
            break
    columns = ["file", "state", "bits flipped", "refused", "without effect", "other memory", "s"]
    return Table("Single bits flipped, each alone", columns, rows, [
        "Each memory is opened by a reader and by a server; one that is neither refused nor exactly as it "
        "was fails the run."
    ])  # fmt: skip


def killed(quick: bool) -> Table:
    """SIGKILL while four writers are at work."""
    test = f"{KILLS}::{'test_25_kills' if quick else 'test_200_kills'}"
    printed, seconds = tried(test, "not nightly" if quick else "nightly")
    found = KILLED.search(printed)
    assert found is not None, printed
    kills, journal, promises = map(int, found.groups())
    columns = ["kills", "with a journal left", "promises kept", "lost or doubled", "s"]
    return Table("Kills under concurrent writes", columns, [
        (kills, journal, promises, 0, round(seconds))
    ])  # fmt: skip


def run(quick: bool) -> list[Table]:
    """Flips, then kills."""
    return [flipped(quick), killed(quick)]
