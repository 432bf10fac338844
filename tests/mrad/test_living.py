"""A bank and what it learned since: one memory for every reader; the log of 0.1 comes in."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrad.encoder.identity import EncoderIdentity
from mrad.errors import BankError, BankLockedError, BaseChangedError, LogCorruptError
from mrad.lock import WriterLock
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit
from mrad.memory.living import LivingFolder, save_calibration, writing
from mrad.memory.operations import Add, Put, Remove

RELEASED = Path(__file__).parents[1] / "release" / "living_v1"


def lesson(seed: int) -> Add:
    rng = np.random.default_rng(seed)
    label = seed % 2
    entry = Entry(new_entry_id(), label, source=f"{seed}.png", tags=("a",))
    keys = (
        Key("image", label, entry.entry_id, "image", 16, unit(rng.normal(size=6)), tile=seed),
        Key("patch", label, entry.entry_id, "normal", 5, unit(rng.normal(size=9))),
    )
    return Add(entry, keys, b"jpeg", f"key {seed}")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    lessons = [lesson(seed) for seed in range(100, 104)]
    entries = [one.entry for one in lessons]
    keys = [key for one in lessons for key in one.keys]
    MemoryBank.from_keys(EncoderIdentity("none", 64, "0" * 64), entries, keys).save(
        tmp_path / "bank"
    )
    return tmp_path / "bank"


def teach(base: Path, *operations: Add | Remove | Put) -> None:
    with writing(base) as (database, _):
        database.commit(operations)


def test_a_reader_finds_what_was_learned_and_says_so(base: Path) -> None:
    built = MemoryBank.load(base)
    assert built.changes is None
    assert built.composition == "4 images"
    one, other = lesson(1), lesson(2)
    teach(base, one, other, Remove(built.entries[0].entry_id))
    bank = MemoryBank.load(base)
    assert bank.entries == (*built.entries[1:], one.entry, other.entry)
    assert bank.composition == "5 images: 4 as built, 2 added and 1 removed since (bank.live)"
    assert (bank.changes.added, bank.changes.removed, bank.changes.sequence) == (2, 1, 3)
    np.testing.assert_array_equal(bank.image.keys[-1], other.keys[0].vector)
    assert bank.image.tile.tolist()[-2:] == [1, 2]
    assert bank.image.refers_to == built.image.counts, "scores keep to the shares of the bank"
    assert bank.thumbnails[one.entry.entry_id] == b"jpeg"
    assert bank.digest not in (None, built.digest)
    assert MemoryBank.load(base).digest == bank.digest
    assert MemoryBank.load(base, living=False).entries == built.entries


def test_a_changed_bank_saved_elsewhere_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    teach(base, lesson(1))
    bank = MemoryBank.load(base)
    bank.save(tmp_path / "copy")
    copy = MemoryBank.load(tmp_path / "copy")
    assert copy.changes is None
    assert copy.entries == bank.entries
    assert bank.remove(bank.entries[0].entry_id).changes is None


def test_a_calibration_goes_where_the_memory_lies(base: Path) -> None:
    built = MemoryBank.load(base)
    save_calibration(built.with_calibration({"tf": {"a": 1}, "nn": {"b": 1}}), base)
    manifest = (base / "bank.json").read_bytes()
    teach(base, lesson(1))
    bank = MemoryBank.load(base)
    assert bank.calibration == {"tf": {"a": 1}, "nn": {"b": 1}}
    save_calibration(bank.with_calibration({"tf": {"a": 2}, "nn": {"b": 1}}), base)
    assert (base / "bank.json").read_bytes() == manifest, "the bank itself stays as it was"
    assert MemoryBank.load(base).calibration == {"tf": {"a": 2}, "nn": {"b": 1}}
    assert MemoryBank.load(base, living=False).calibration == {"tf": {"a": 1}, "nn": {"b": 1}}


def test_a_calibration_of_a_memory_that_changed_meanwhile_is_refused(base: Path) -> None:
    teach(base, lesson(1))
    bank = MemoryBank.load(base)
    teach(base, lesson(2))
    with pytest.raises(BankError, match="learned since it was read"):
        save_calibration(bank.with_calibration({"tf": {}}), base)
    lock = WriterLock(LivingFolder(base).lock)
    with pytest.raises(BankLockedError):
        save_calibration(MemoryBank.load(base).with_calibration({"tf": {}}), base)
    lock.release()


def test_a_bank_that_was_rebuilt_under_lessons_is_refused(base: Path) -> None:
    teach(base, lesson(1))
    bank = MemoryBank.load(base, living=False)
    bank.remove(bank.entries[0].entry_id).save(base, replace=True)
    with pytest.raises(BaseChangedError, match="was rebuilt"):
        MemoryBank.load(base)
    assert len(MemoryBank.load(base, living=False).entries) == 3


def _count_as_nobody(base: Path, found) -> None:
    os.setgid(65534)
    os.setuid(65534)
    found.put(len(MemoryBank.load(base).entries))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
@pytest.mark.parametrize("state", ["writing", "closed", "killed"])
def test_a_user_who_may_not_write_reads_all_the_same(base: Path, state: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        bank = Path(place) / "bank"
        shutil.copytree(base, bank)
        context = multiprocessing.get_context("fork")
        found = context.SimpleQueue()
        reader = context.Process(target=_count_as_nobody, args=(bank, found))
        with writing(bank) as (database, _):
            database.commit([lesson(1)])
            if state == "killed":
                copy = Path(place) / "copy"
                shutil.copytree(Path(place) / "bank.live", copy)
                (copy / "memory.sqlite-shm").unlink()
            elif state == "writing":
                reader.start()
                reader.join(60)
        if state == "killed":
            shutil.rmtree(Path(place) / "bank.live")
            copy.rename(Path(place) / "bank.live")
        if state != "writing":
            reader.start()
            reader.join(60)
        assert reader.exitcode == 0
        assert found.get() == 5


def released(tmp_path: Path) -> tuple[Path, dict]:
    shutil.copytree(RELEASED / "bank", tmp_path / "old")
    shutil.copytree(RELEASED / "bank.live", tmp_path / "old.live")
    return tmp_path / "old", json.loads((RELEASED / "expected.json").read_text())


def test_what_release_0_1_learned_is_read_and_comes_in(tmp_path: Path) -> None:
    bank, expected = released(tmp_path)
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "old.live").rglob("*"))
    read = MemoryBank.load(bank)
    assert before == sorted(p.relative_to(tmp_path) for p in (tmp_path / "old.live").rglob("*"))
    with writing(bank) as (_, saved):
        assert list(saved.requests) == [f"key {seed}" for seed in range(6)]
        assert saved.requests["key 1"].content == "content 1"
        assert saved.requests["key 1"].entry.entry_id == expected["ids"][1]
    for memory in (read, MemoryBank.load(bank)):
        assert [entry.entry_id for entry in memory.entries] == expected["entries"]
        assert float(abs(memory.image.keys).sum()) == pytest.approx(expected["image_sum"])
        assert float(abs(memory.patch.keys).sum()) == pytest.approx(expected["patch_sum"])
        assert memory.thumbnails[expected["ids"][0]] == bytes(20)
    (aside,) = (tmp_path / "old.live" / "set-aside").iterdir()
    kept = {path.name: path for path in aside.iterdir()}
    assert set(kept) == {"CURRENT", "log", "generations"}, "nothing is deleted"


def test_a_log_of_0_1_without_its_newest_file_or_its_snapshot_is_refused(tmp_path: Path) -> None:
    bank, _ = released(tmp_path)
    live = tmp_path / "old.live"
    (segment,) = (live / "log").iterdir()
    whole = segment.read_bytes()
    segment.unlink()
    with pytest.raises(LogCorruptError, match="mrad memory repair"):
        MemoryBank.load(bank)
    segment.write_bytes(whole)
    for change in ({"generation": 0}, {"applied": 7}, {"generation": 2}):
        facts = json.loads((RELEASED / "bank.live" / "CURRENT").read_text())
        (live / "CURRENT").write_text(json.dumps(facts | change))
        with pytest.raises(LogCorruptError):
            MemoryBank.load(bank)


@pytest.mark.parametrize("cut", [1, 3, 40, 200])
def test_a_log_of_0_1_that_a_kill_cut_short_gives_its_whole_records(
    tmp_path: Path, cut: int
) -> None:
    bank, expected = released(tmp_path)
    (segment,) = (tmp_path / "old.live" / "log").iterdir()
    segment.write_bytes(segment.read_bytes()[:-cut])
    ids = [entry.entry_id for entry in MemoryBank.load(bank).entries]
    assert expected["ids"][3] in ids, "its removal was never acknowledged"


def test_the_encoder_is_checked_with_what_was_learned(base: Path) -> None:
    teach(base, lesson(1))
    wrong = lesson(2).keys[0]._replace(vector=np.full(6, np.nan, np.float32))
    teach(base, replace(lesson(2), keys=(wrong._replace(entry_id="x"),)))
    assert not MemoryBank.load(base).image.finite
