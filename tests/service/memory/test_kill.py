"""kill -9 at random moments under concurrent writes: nothing acknowledged is lost or doubled.

The workers are forked from a server process that has imported everything, so that a restart costs
milliseconds and a kill falls into commits, checkpoints and compactions rather than into imports.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import random
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load_worker():
    """The worker as a module that a forked process can import by name."""
    name = "mrad_test_kill_worker"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "kill_worker.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _run(base: str, acknowledged: str, round_: int, ready) -> None:
    _load_worker().teach(base, acknowledged, round_, 4, ready)


def _wait_for(acknowledged: Path, promises: int) -> None:
    """Until so many more were given: progress, not seconds, so that a busy machine tests as much."""
    count = _lines(acknowledged) + promises
    until = time.monotonic() + 30
    while _lines(acknowledged) < count and time.monotonic() < until:
        time.sleep(0.002)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill_often(tmp_path: Path, kills: int) -> None:
    worker = _load_worker()
    base, acknowledged = tmp_path / "bank", tmp_path / "acknowledged"
    worker.save_base(base)
    context = multiprocessing.get_context("fork")
    pause = random.Random(kills)
    journal, midway, promises = tmp_path / "bank.live" / "memory.sqlite-wal", 0, 0
    for round_ in range(kills):
        ready = context.Event()
        process = context.Process(target=_run, args=(str(base), str(acknowledged), round_, ready))
        process.start()
        assert ready.wait(60), f"restart {round_} did not answer: see the traceback above"
        _wait_for(acknowledged, pause.randrange(40))
        time.sleep(pause.uniform(0, 0.02))
        assert process.is_alive(), "a worker died by itself"
        process.kill()
        process.join()
        midway += journal.exists() and journal.stat().st_size > 0
    from mrad_service.memory import DurableMemory

    with DurableMemory.open(base) as memory:
        promises = worker.check(memory, acknowledged)
    print(f"{kills} kills, {midway} of them with a journal left; {promises} promises kept")
    assert promises > 5 * kills
    assert midway > kills // 4, "the kills hardly met a write"


def test_25_kills(tmp_path: Path) -> None:
    _kill_often(tmp_path, 25)


@pytest.mark.nightly
def test_200_kills(tmp_path: Path) -> None:
    _kill_often(tmp_path, 200)
