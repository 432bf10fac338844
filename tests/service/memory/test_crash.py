"""Logs cut at every byte, flipped bits, crashes at each step of a compaction, repair, the lock."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrad_service.cli.memory import app
from mrad_service.memory import BankLockedError, DurableMemory, LogCorruptError
from mrad_service.memory.frames import Segment
from mrad_service.memory.log import segment_paths
from mrad_service.memory.repair import repair
from typer.testing import CliRunner

from mrad.errors import MRADError


def live(base: Path) -> Path:
    return base.with_name(base.name + ".live")


@pytest.fixture
def taught(base: Path, lesson) -> tuple[Path, list[str]]:
    """A bank with six operations in its log: five additions and the removal of the second."""
    ids = []
    with DurableMemory.open(base) as memory:
        for seed in range(5):
            ids.append(memory.add(*lesson(seed), thumbnail=bytes([seed] * 20)).entry_id)
        memory.remove(ids[1])
    return base, ids


def states(ids: list[str]) -> list[set[str]]:
    """What the memory has learnt after each prefix of the six operations."""
    return [*[set(ids[:count]) for count in range(6)], set(ids) - {ids[1]}]


def learnt(base: Path) -> set[str]:
    with DurableMemory.open(base) as memory:
        return {entry.entry_id for entry in memory.bank.entries[4:]}


def test_a_log_cut_at_every_byte_gives_the_longest_whole_prefix(base: Path, lesson, caplog) -> None:
    with DurableMemory.open(base) as memory:
        first = memory.add(*lesson(0), thumbnail=b"jpeg").entry_id
        second = memory.add(*lesson(1), idempotency_key="k").entry_id
        memory.remove(first)
    (path,) = segment_paths(live(base) / "log")
    whole = path.read_bytes()
    segment = Segment(path)
    ends = [frame.end for frame in segment.frames(segment.header()[1])]
    assert ends[-1] == len(whole)
    prefixes: list[set[str]] = [set(), {first}, {first, second}, {second}]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        survived = sum(end <= size for end in ends)
        assert learnt(base) == prefixes[survived], f"cut at {size}"
        if size % 10 == 0:
            assert learnt(base) == prefixes[survived], "and again, after the tail was cut"
    assert "never acknowledged" in caplog.text
    with DurableMemory.open(base) as memory:
        entry = memory.add(*lesson(9))
    assert learnt(base) == {first, second, entry.entry_id}


def test_every_flipped_bit_is_noticed(taught) -> None:
    """Also in the last record: it was whole once, so it may have been acknowledged."""
    base, _ = taught
    (path,) = segment_paths(live(base) / "log")
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(MRADError) as caught:
            DurableMemory.open(base)
        assert isinstance(caught.value, LogCorruptError), place
        assert "damaged at byte" in str(caught.value)
        assert f"mrad memory repair {base.resolve()}" in str(caught.value)
        assert path.read_bytes() == damaged, "nothing is cut on suspicion"


def test_sectors_that_a_power_cut_left_empty_are_a_torn_tail(taught, lesson) -> None:
    base, ids = taught
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(7), thumbnail=os.urandom(5000))
    (path,) = segment_paths(live(base) / "log")
    whole = bytearray(path.read_bytes())
    hole = len(whole) - 2048 & ~511
    whole[hole : hole + 512] = bytes(512)
    path.write_bytes(whole)
    assert learnt(base) == states(ids)[6]


def test_a_missing_segment_is_noticed(taught, lesson, monkeypatch) -> None:
    base, _ = taught
    with DurableMemory.open(base) as memory:
        monkeypatch.setattr(memory.folder, "write_generation", _crash)
        with pytest.raises(RuntimeError):
            memory.compact()
        memory.add(*lesson(8))
    paths = segment_paths(live(base) / "log")
    assert len(paths) == 2
    kept = paths[0].read_bytes()
    paths[0].unlink()
    with pytest.raises(LogCorruptError, match="a file of the log is gone"):
        DurableMemory.open(base)
    paths[0].write_bytes(kept[:-5])
    with pytest.raises(LogCorruptError, match="in the middle of a record"):
        DurableMemory.open(base)


def _crash(*_: object) -> None:
    raise RuntimeError("crash")


@pytest.mark.parametrize(
    "step", ["folder.write_generation", "folder.write_current", "_log.drop_through",
             "folder.sweep_generations"]
)  # fmt: skip
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_of_a_compaction_loses_nothing(
    taught, lesson, monkeypatch, step: str, after: bool
) -> None:
    base, ids = taught
    memory = DurableMemory.open(base)
    owner, name = step.rsplit(".", 1)
    target = getattr(memory, owner)
    real = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *a: (after and real(*a), _crash()))
    with pytest.raises(RuntimeError):
        memory.compact()
    copy = base.parent / "copy"  # the disk as a kill would have left it
    shutil.copytree(base, copy / "bank")
    shutil.copytree(live(base), copy / "bank.live")
    memory.close()
    assert learnt(copy / "bank") == states(ids)[6]
    with DurableMemory.open(copy / "bank") as memory:
        memory.add(*lesson(20))
        memory.compact()
        assert len(list((copy / "bank.live" / "generations").iterdir())) == 1
    assert len(learnt(copy / "bank")) == 5


def test_repair_keeps_every_whole_record(taught, lesson) -> None:
    base, ids = taught
    (path,) = segment_paths(live(base) / "log")
    segment = Segment(path)
    third = list(segment.frames(segment.header()[1]))[2]
    damaged = bytearray(segment.data)
    damaged[third.offset + 50] ^= 4
    path.write_bytes(damaged)
    runner = CliRunner()
    looked = runner.invoke(app, ["repair", str(base), "--dry-run"])
    assert looked.exit_code == 0, looked.output
    assert "lost: operations 3 to 3" in looked.output
    with pytest.raises(LogCorruptError):
        DurableMemory.open(base)
    done = runner.invoke(app, ["repair", str(base)])
    assert done.exit_code == 0, done.output
    assert learnt(base) == {ids[0], ids[3], ids[4]}
    (aside,) = (live(base) / "set-aside").iterdir()
    assert (aside / path.name).read_bytes() == damaged
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(30))
    assert len(learnt(base)) == 4


def test_repair_of_a_damaged_header_and_of_nothing(taught) -> None:
    base, ids = taught
    (path,) = segment_paths(live(base) / "log")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert repair(base).missing == []
    assert learnt(base) == states(ids)[6]
    assert repair(base).damaged_bytes == 0
    assert learnt(base) == states(ids)[6]


def _hold(path: str, ready) -> None:
    with DurableMemory.open(path):
        ready.set()
        time.sleep(60)


def test_a_second_process_is_told_who_writes(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(base), ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BankLockedError, match=f"process {holder.pid} on "):
            DurableMemory.open(base)
        assert "has a writer" in CliRunner().invoke(app, ["repair", str(base)]).output
        holder.kill()
        holder.join()
        DurableMemory.open(base).close()
    finally:
        holder.kill()
        holder.join()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30)),
        st.tuples(st.just("repeat"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["compact", "reopen"]), st.just(0)),
    ),
    max_size=30,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_any_story_gives_what_a_dictionary_gives(base: Path, lesson, steps) -> None:
    shutil.rmtree(live(base), ignore_errors=True)
    model: dict[str, str] = {}
    keys: dict[str, str] = {}
    memory = DurableMemory.open(base)
    standing = [entry.entry_id for entry in memory.bank.entries]
    try:
        for what, number in steps:
            if what in ("add", "repeat"):
                key = f"key {number}"
                entry, vectors = lesson(number)
                added = memory.add(entry, vectors, idempotency_key=key)
                if key not in keys:
                    keys[key] = model[added.entry_id] = entry.entry_id
                assert added.entry_id == keys[key]
            elif what == "remove" and model:
                memory.remove(victim := sorted(model)[number % len(model)])
                del model[victim]
            elif what == "compact":
                memory.compact()
            elif what == "reopen":
                memory.close()
                memory = DurableMemory.open(base)
            ids = [entry.entry_id for entry in memory.bank.entries]
            assert ids == [*standing, *model]
            listed = [entry.entry_id for entry in memory.list(limit=1000).entries]
            assert listed == sorted(ids, reverse=True)
            assert len(memory.bank.image) == len(memory.bank.patch) == len(ids)
            assert [*memory.bank.image.entry] == list(range(len(ids)))
    finally:
        memory.close()
