"""The store: what it answers, what it refuses, what it still knows after a restart."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mrad_service.memory import DurableMemory, EntryNotFoundError
from mrad_service.memory.errors import (
    EntryExistsError,
    IdempotencyConflictError,
    MemoryClosedError,
)

from mrad.errors import (
    BankError,
    BankNotFoundError,
    BaseChangedError,
    DimensionError,
    LogWriteError,
    NonFiniteError,
    OneClassError,
)
from mrad.memory.bank import MemoryBank
from mrad.memory.store import save_calibration


def test_what_was_added_is_there_at_once_and_after_a_restart(base: Path, lesson) -> None:
    entry, keys = lesson(1)
    with DurableMemory.open(base) as memory:
        before = memory.bank
        assert memory.add(entry, keys, thumbnail=b"jpeg") == entry
        assert memory.bank.entries[-1] == entry
        assert len(before.entries) == 4, "an earlier view never changes"
    with DurableMemory.open(base) as memory:
        assert memory.get(entry.entry_id) == entry
        assert memory.thumbnail(entry.entry_id) == b"jpeg"
        np.testing.assert_array_equal(memory.bank.image.keys[-1], keys[0].vector)
        np.testing.assert_array_equal(memory.bank.patch.keys[-1], keys[1].vector)
        row = memory.bank.patch.entry[-1]
        assert memory.bank.entries[row].entry_id == entry.entry_id
    assert len(MemoryBank.load(base, living=False).entries) == 4, "the bank is never written"


def test_grown_bank_equals_one_built_at_once(base: Path, lesson) -> None:
    lessons = [lesson(seed) for seed in range(200)]
    with DurableMemory.open(base) as memory:
        expected = memory.bank
        for entry, keys in lessons:
            memory.add(entry, keys)
            expected = expected.add(entry, keys)
        for entry, _ in lessons[::3]:
            memory.remove(entry.entry_id)
            expected = expected.remove(entry.entry_id)
        got = memory.bank
    assert got.entries == expected.entries
    for level in ("image", "patch"):
        ours, theirs = getattr(got, level), getattr(expected, level)
        for name in ("keys", "labels", "entry", "region", "size", "tile"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_views_stay_as_they_were(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        views = []
        for seed in range(100):
            memory.add(*lesson(seed))
            views.append(
                (memory.bank, memory.bank.image.keys.copy(), memory.bank.image.labels.copy())
            )
        memory.remove(views[-1][0].entries[10].entry_id)
        for view, keys, labels in views:
            np.testing.assert_array_equal(view.image.keys, keys)
            np.testing.assert_array_equal(view.image.labels, labels)


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_an_idempotency_key_adds_once(base: Path, lesson, reopen: bool, compact: bool) -> None:
    first, keys = lesson(1)
    again, again_keys = lesson(1)
    memory = DurableMemory.open(base)
    memory.add(first, keys, idempotency_key="k", content="pixels")
    if compact:
        memory.compact()
    if reopen:
        memory.close()
        memory = DurableMemory.open(base)
    same = {"idempotency_key": "k", "content": "pixels"}
    assert memory.add(again, again_keys, **same) == first
    assert len(memory) == len(memory.bank.entries) == 5
    with pytest.raises(IdempotencyConflictError):
        memory.add(*lesson(2), **same)
    with pytest.raises(IdempotencyConflictError):
        memory.add(again, again_keys, idempotency_key="k", content="other pixels")
    memory.remove(first.entry_id)
    assert memory.add(again, again_keys, **same) == first, "a late retry adds nothing"
    assert len(memory) == 4
    memory.close()


def test_a_stampede_with_one_key_adds_once(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory, ThreadPoolExecutor(16) as pool:
        barrier = threading.Barrier(16)

        def add(_: int) -> str:
            entry, keys = lesson(1)
            barrier.wait()
            return memory.add(entry, keys, idempotency_key="one").entry_id

        assert len(set(pool.map(add, range(16)))) == 1
        assert len(memory) == 5


def test_concurrent_writers_share_commits(base: Path, lesson, monkeypatch) -> None:
    with DurableMemory.open(base) as memory, ThreadPoolExecutor(8) as pool:
        commits, commit = [], memory._database.commit
        monkeypatch.setattr(
            memory._database, "commit", lambda ops: (commits.append(len(ops)), commit(ops))[1]
        )
        lessons = [lesson(seed) for seed in range(200)]
        list(pool.map(lambda item: memory.add(*item), lessons))
        assert sum(commits) == 200
        assert len(commits) < 200, "no two additions ever shared a sync"
        assert {e.entry_id for e, _ in lessons} <= {e.entry_id for e in memory.bank.entries}


def test_what_it_refuses(base: Path, lesson) -> None:
    entry, keys = lesson(1)
    with DurableMemory.open(base) as memory:
        memory.add(entry, keys)
        with pytest.raises(EntryExistsError):
            memory.add(entry, keys)
        with pytest.raises(EntryNotFoundError):
            memory.remove("nobody")
        other, keys = lesson(3)
        with pytest.raises(DimensionError):
            memory.add(other, [keys[0]._replace(vector=np.ones(5, np.float32))])
        with pytest.raises(NonFiniteError):
            memory.add(other, [keys[0]._replace(vector=keys[0].vector * np.float32(np.nan))])
        with pytest.raises(BankError, match="no key"):
            memory.add(other, [])
        with pytest.raises(BankError, match="came with"):
            memory.add(other, lesson(4)[1])
        for wrong in (0, 1001):
            with pytest.raises(BankError, match="limit"):
                memory.list(limit=wrong)
        assert len(memory) == 5
        assert memory.bank.changes.sequence == 1, "what is refused is not written"
    with pytest.raises(MemoryClosedError):
        memory.add(other, keys)
    with pytest.raises(BankNotFoundError):
        DurableMemory.open(base.with_name("none"))
    assert not base.with_name("none.live").exists()


def test_the_last_of_a_class_stays(base: Path) -> None:
    with DurableMemory.open(base) as memory:
        defects = [entry for entry in memory.bank.entries if entry.label]
        memory.remove(defects[0].entry_id)
        with pytest.raises(OneClassError):
            memory.remove(defects[1].entry_id)
        assert memory.get(defects[1].entry_id)


def test_two_removals_in_one_commit_cannot_take_the_last_of_a_class(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        defects = [entry.entry_id for entry in memory.bank.entries if entry.label]
        entered, held = threading.Event(), threading.Event()
        memory.subscribe(lambda _: (entered.set(), held.wait(10)))
        first = threading.Thread(target=memory.add, args=lesson(99, 0))
        first.start()  # the committer waits in the callback; both removals queue behind it
        assert entered.wait(10)
        errors: list[BaseException] = []

        def remove(entry_id: str) -> None:
            try:
                memory.remove(entry_id)
            except OneClassError as error:
                errors.append(error)

        threads = [threading.Thread(target=remove, args=(entry_id,)) for entry_id in defects]
        for thread in threads:
            thread.start()
        while len(memory._committer._queue) < 2:
            time.sleep(0.001)
        held.set()
        for thread in [first, *threads]:
            thread.join()
        assert len(errors) == 1
        assert sum(memory.bank.image.labels) == 1


def test_pages_walk_everything_newest_first(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        for seed in range(23):
            memory.add(*lesson(seed))
        seen, cursor = [], None
        while True:
            page = memory.list(cursor=cursor, limit=5)
            seen += [entry.entry_id for entry in page.entries]
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
            memory.remove(page.entries[-1].entry_id)  # what the cursor stands on may go
            memory.add(*lesson(100 + len(seen)))  # and more may come
        assert len(seen) == len(set(seen))
        assert len(seen) == 27
        with pytest.raises(BankError, match="no cursor"):
            memory.list(cursor="yesterday")
        defects = memory.list(label=1, limit=1000).entries
        assert defects
        assert all(entry.label == 1 for entry in defects)


def test_subscribers_see_it_before_the_writer_does(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        seen: list[MemoryBank] = []
        unsubscribe = memory.subscribe(seen.append)
        entry, keys = lesson(1)
        memory.add(entry, keys)
        assert seen[-1].entries[-1] == entry
        unsubscribe()
        memory.add(*lesson(2))
        assert len(seen) == 1


def test_a_change_that_the_server_cannot_take_up_is_the_last(base: Path, lesson, caplog) -> None:
    with DurableMemory.open(base) as memory:
        memory.subscribe(lambda bank: 1 / 0)
        entry = memory.add(*lesson(1))
        assert "could not take it up" in caplog.text
        assert "ZeroDivisionError" in memory.trouble(), "unready, with the reason"
        with pytest.raises(LogWriteError, match="restart the server"):
            memory.add(*lesson(2))
    with DurableMemory.open(base) as memory:
        assert memory.get(entry.entry_id) == entry, "the change stands"
        assert not memory.trouble()


def test_export_is_an_ordinary_bank(base: Path, lesson, tmp_path: Path) -> None:
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(1), thumbnail=b"jpeg")
        memory.export(tmp_path / "copy")
        copy = MemoryBank.load(tmp_path / "copy")
        assert copy.entries == memory.bank.entries
        assert copy.thumbnails[copy.entries[-1].entry_id] == b"jpeg"
        assert copy.metadata == {"line": 1, "settled": 4}
    with DurableMemory.open(tmp_path / "copy") as again:
        assert len(again) == 5


def test_a_clock_that_is_put_back_does_not_reorder_entries(base: Path, lesson) -> None:
    """Ids begin with the time; the order is that of the operations."""
    ids = [f"01990e5c-7d1e-7c3a-9a56-{9 - number:012d}" for number in range(5)]
    with DurableMemory.open(base) as memory:
        for seed, entry_id in enumerate(ids):
            memory.add(*lesson(seed, None, entry_id))
    with DurableMemory.open(base) as memory:
        assert [e.entry_id for e in memory.list(limit=5).entries] == ids[::-1]


def test_compaction_gives_room_back_and_changes_nothing_else(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        for seed in range(60):
            memory.add(*lesson(seed), thumbnail=os.urandom(3000))
        for entry in memory.bank.entries[10:50]:
            memory.remove(entry.entry_id)
        memory.remove(memory.bank.entries[1].entry_id)
        expected = memory.bank
    with DurableMemory.open(base) as memory:
        before = memory.folder.database.stat().st_size
        memory.compact()
        assert memory.folder.database.stat().st_size < before - 40 * 3000
        memory.compact()
        memory.add(*lesson(90))
    with DurableMemory.open(base) as memory:
        assert memory.bank.entries[:-1] == expected.entries
        np.testing.assert_array_equal(memory.bank.patch.keys[:-1], expected.patch.keys)
        assert memory.bank.changes.sequence == 102


def test_a_journal_is_moved_into_the_database_when_nothing_comes(
    base: Path, lesson, monkeypatch
) -> None:
    monkeypatch.setattr("mrad_service.memory.committer.QUIET", 0.01)
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(1))
        journal = Path(f"{memory.folder.database}-wal")
        until = time.monotonic() + 30
        while journal.stat().st_size and time.monotonic() < until:
            time.sleep(0.01)
        assert journal.stat().st_size == 0


def test_values_stand_beside_the_entries(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        memory.put("scores/tf", b"1234")
        memory.put("scores/tf", b"5678")
        memory.put("other", b"")
        memory.put("other", None)
        memory.put("never", None)
        assert memory.values == {"scores/tf": b"5678"}
    with DurableMemory.open(base) as memory:
        assert memory.values == {"scores/tf": b"5678"}


def test_a_calibration_of_the_living_memory_stands_before_the_banks(base: Path, lesson) -> None:
    bank = MemoryBank.load(base)
    save_calibration(bank.with_calibration({"tf": {"a": 1}, "nn": {"b": 2}}), base)
    with DurableMemory.open(base) as memory:
        seen: list[MemoryBank] = []
        memory.subscribe(seen.append)
        assert memory.bank.calibration == {"tf": {"a": 1}, "nn": {"b": 2}}
        memory.put("calibration/tf", b'{"a": 3}')
        assert seen[-1].calibration == {"tf": {"a": 3}, "nn": {"b": 2}}
        save_calibration(bank.with_calibration({"tf": {"a": 9}, "nn": {"b": 4}}), base)
        memory.renew()
        assert memory.bank.calibration == {"tf": {"a": 3}, "nn": {"b": 4}}
    with DurableMemory.open(base) as memory:
        assert memory.bank.calibration == {"tf": {"a": 3}, "nn": {"b": 4}}


def test_a_bank_rebuilt_under_lessons_is_refused_and_under_none_taken(
    base: Path, lesson, save_base
) -> None:

    DurableMemory.open(base).close()
    shutil.rmtree(base)
    save_base(base, 6)
    with DurableMemory.open(base) as memory:
        assert len(memory) == 6
        memory.add(*lesson(1))
    shutil.rmtree(base)
    save_base(base, 8)
    with pytest.raises(BaseChangedError, match="rebuilt"):
        DurableMemory.open(base)


@pytest.mark.parametrize("name", ["LOCK", "HEAD", "memory.sqlite", "memory.sqlite-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_files_that_are_taken_away_end_the_acknowledging(
    base: Path, lesson, name: str, how: str
) -> None:
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(1))
        assert not memory.trouble()
        path = memory.folder.live / name
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        copy.rename(path) if how == "replaced" else path.unlink()
        with pytest.raises(LogWriteError, match=f"{name} was {how} while the server ran"):
            memory.add(*lesson(2))
        assert name in memory.trouble()
        assert len(memory.bank.entries) == 5, "reading goes on"


def test_a_bank_that_is_overwritten_in_place_harms_nothing_in_memory(
    base: Path, lesson, save_base
) -> None:
    other = save_base(base.with_name("other"), 8)
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(1))
        keys = memory.bank.patch.keys.copy()
        for file in other.iterdir():  # cp -r other/. bank/
            shutil.copyfile(file, base / file.name)
        with pytest.raises(LogWriteError, match="was overwritten while the server ran"):
            memory.add(*lesson(2))
        np.testing.assert_array_equal(memory.bank.patch.keys, keys)


def test_after_a_failed_write_nothing_more_is_promised(base: Path, lesson, monkeypatch) -> None:
    """Nobody knows then what the disk holds."""
    with DurableMemory.open(base) as memory:

        def commit(operations):
            raise LogWriteError("disk I/O error", final=True)

        monkeypatch.setattr(memory._database, "commit", commit)
        with pytest.raises(LogWriteError, match="restart"):
            memory.add(*lesson(2))
        monkeypatch.undo()
        with pytest.raises(LogWriteError, match="restart"):
            memory.add(*lesson(3))
        assert len(memory.bank.entries) == 4
        assert memory.list().entries, "reading goes on"
