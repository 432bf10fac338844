"""Flipped bits and missing files: never silently another memory; what a repair keeps."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.cli.main import app
from mrad_service.memory import DurableMemory
from mrad_service.memory.repair import repair
from typer.testing import CliRunner

from mrad.errors import BankCorruptError, BaseChangedError, LogCorruptError, MRADError
from mrad.memory.bank import MemoryBank
from mrad.memory.store import save_calibration

RELEASED = Path(__file__).parents[2] / "release" / "living_v1"


def fingerprint(bank: MemoryBank) -> tuple:
    """Everything that decides a verdict."""
    arrays = [
        getattr(level, name).tobytes()
        for level in (bank.image, bank.patch)
        for name in ("keys", "labels", "entry", "region", "size", "tile")
    ]
    reference = bank.image.refers_to, bank.patch.refers_to
    return bank.entries, *arrays, reference, bank.calibration, bank.metadata, bank.identity


def state_of(base: Path) -> tuple:
    with DurableMemory.open(base) as memory:
        values = dict(memory.values)
        ledger = [(key, vars(use)) for key, use in memory._state.requests.items()]
        jpegs = {e.entry_id: memory.thumbnail(e.entry_id) for e in memory.bank.entries}
        return fingerprint(memory.bank), values, ledger, jpegs


@pytest.fixture
def taught(base: Path, lesson) -> Path:
    """Six operations and a value in the database, a calibration in `bank.json`."""
    bank = MemoryBank.load(base)
    save_calibration(bank.with_calibration({"tf": {"image": {"value": 0.41}}}), base)
    with DurableMemory.open(base) as memory:
        ids = [
            memory.add(*lesson(seed), bytes([seed] * 20), f"key {seed}", "content").entry_id
            for seed in range(5)
        ]
        memory.remove(ids[1])
        memory.remove(memory.bank.entries[0].entry_id)
        memory.put("calibration/nn", b'{"value": 1}')
    return base


@pytest.fixture
def killed(taught: Path, lesson, tmp_path: Path) -> Path:
    """The same after a kill: what came last stands in SQLite's journal alone."""
    copy = tmp_path / "killed" / "bank"
    with DurableMemory.open(taught) as memory:
        for seed in range(10, 14):
            memory.add(*lesson(seed), bytes(40), f"key {seed}")
        memory.remove(memory.bank.entries[4].entry_id)
        shutil.copytree(taught, copy)
        shutil.copytree(taught.with_name("bank.live"), copy.with_name("bank.live"))
    assert copy.with_name("bank.live").joinpath("memory.sqlite-wal").stat().st_size > 0
    return copy


def flips(size: int, every: bool, seed: int = 0) -> list[tuple[int, int]]:
    """Bits to flip: all of them, or 2,000 at random."""
    if every:
        return [(place, bit) for place in range(size) for bit in range(8)]
    draw = random.Random(seed)
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(2_000)]


def check_flips(base: Path, path: Path, places: list[tuple[int, int]]) -> tuple[int, int]:
    """Flip each bit alone: the memory is as it was, or refused. Returns how many of each."""
    live = base.with_name(base.name + ".live")
    kept, spare = base.parent / "kept", base.parent / "kept.live"
    shutil.copytree(base, kept)
    shutil.copytree(live, spare)
    before = state_of(base)
    same = refused = 0
    for place, bit in places:
        for folder, copy in ((live, spare), (base, kept)):
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
        data = bytearray(path.read_bytes())
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with contextlib.suppress(MRADError):
            read = fingerprint(MemoryBank.load(base))
            assert read == before[0], f"a reader takes byte {place} bit {bit} of {path.name}"
        try:
            after = state_of(base)
        except MRADError as error:
            refused, said = refused + 1, str(error)
        else:
            assert after == before, f"byte {place} bit {bit} of {path.name}"
            same += 1
            continue
        assert path.parent == base or "mrad memory repair" in said, said
    shutil.rmtree(kept)
    shutil.rmtree(spare)
    print(f"{path.name}: {len(places)} bits, {refused} refused, {same} without effect")
    return same, refused


@pytest.mark.parametrize("name", ["HEAD", "memory.sqlite", "memory.sqlite-wal", "bank.json"])
def test_flipped_bits_never_give_another_memory(killed: Path, taught: Path, name: str) -> None:
    base = killed if name == "memory.sqlite-wal" else taught
    path = (base if name == "bank.json" else base.with_name("bank.live")) / name
    places = flips(path.stat().st_size, every=False, seed=len(name))[:60]
    check_flips(base, path, places)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["HEAD", "memory.sqlite", "memory.sqlite-wal", "bank.json"])
@pytest.mark.parametrize("state", ["killed", "closed"])
def test_every_bit_of_small_files_and_2000_of_large(
    killed: Path, taught: Path, name: str, state: str
) -> None:
    base = killed if state == "killed" else taught
    path = (base if name == "bank.json" else base.with_name("bank.live")) / name
    if not path.exists():
        pytest.skip("a journal that is gone has no bits")
    places = flips(path.stat().st_size, every=path.stat().st_size < 3_000)
    check_flips(base, path, places)


@pytest.mark.parametrize("name", ["CURRENT", "log/00000000000000000006.wal", "bank.json"])
def test_flipped_bits_of_an_older_release_never_give_another_memory(
    tmp_path: Path, name: str
) -> None:
    shutil.copytree(RELEASED / "bank", tmp_path / "bank")
    shutil.copytree(RELEASED / "bank.live", tmp_path / "bank.live")
    if name == "bank.json":
        name = "generations/00000001/ledger.json"
    path = tmp_path / "bank.live" / name
    size = path.stat().st_size
    places = [(place, place % 8) for place in range(0, size, max(size // 60, 1))]
    same, refused = check_flips(tmp_path / "bank", path, places)
    assert refused > same


@pytest.mark.parametrize("name", ["HEAD", "memory.sqlite", "memory.sqlite-wal"])
def test_a_missing_file_is_noticed(killed: Path, name: str) -> None:
    killed.with_name("bank.live").joinpath(name).unlink()
    with pytest.raises(LogCorruptError, match="mrad memory repair"):
        DurableMemory.open(killed)
    with pytest.raises(LogCorruptError, match="mrad memory repair"):
        MemoryBank.load(killed)


def test_an_older_copy_of_the_database_is_noticed(taught: Path, lesson) -> None:
    path = taught.with_name("bank.live") / "memory.sqlite"
    old = path.read_bytes()
    with DurableMemory.open(taught) as memory:
        memory.add(*lesson(30))
    path.write_bytes(old)
    with pytest.raises(LogCorruptError, match="the newest are missing"):
        DurableMemory.open(taught)


def damage(path: Path, what: bytes) -> None:
    data = path.read_bytes()
    place = data.rindex(what)
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_repair_keeps_every_whole_row(taught: Path, lesson) -> None:
    live = taught.with_name("bank.live")
    before = MemoryBank.load(taught)
    damage(live / "memory.sqlite", b'"source":"2.png"')
    damaged = (live / "memory.sqlite").read_bytes()
    runner = CliRunner()
    looked = runner.invoke(app, ["memory", "repair", str(taught), "--dry-run"])
    assert looked.exit_code == 0, looked.output
    assert "lost: " in looked.output
    assert (live / "memory.sqlite").read_bytes() == damaged, "it only looked"
    with pytest.raises(LogCorruptError):
        DurableMemory.open(taught)
    done = runner.invoke(app, ["memory", "repair", str(taught)])
    assert done.exit_code == 0, done.output
    (aside,) = (live / "set-aside").iterdir()
    assert (aside / "memory.sqlite").read_bytes() == damaged
    with DurableMemory.open(taught) as memory:
        assert len(memory) in (len(before.entries), len(before.entries) - 1)
        assert memory.values == {"calibration/nn": b'{"value": 1}'}
        assert len(memory._state.requests) in (4, 5)
        assert memory.thumbnail(memory.bank.entries[-1].entry_id) == bytes([4] * 20)
        memory.add(*lesson(30))


def test_repair_of_a_damaged_first_page_loses_nothing(taught: Path) -> None:
    before = state_of(taught)
    path = taught.with_name("bank.live") / "memory.sqlite"
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    assert repair(taught).lost == []
    assert state_of(taught) == before


def test_repair_of_a_damaged_journal_says_what_is_lost(killed: Path) -> None:
    live = killed.with_name("bank.live")
    path = live / "memory.sqlite-wal"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogCorruptError, match="the newest are missing"):
        MemoryBank.load(killed)
    found = repair(killed)
    assert any("the newest" in lost for lost in found.lost)
    with DurableMemory.open(killed) as memory:
        assert len(memory) == found.entries
    assert repair(killed).lost == []


def test_repair_where_nothing_is_wrong_changes_nothing(taught: Path) -> None:
    before = state_of(taught)
    found = repair(taught)
    assert (found.lost, found.set_aside) == ([], None)
    assert found.entries == 4 + 5 - 2
    assert state_of(taught) == before


def test_repair_refuses_what_was_learned_on_another_bank(taught: Path) -> None:
    """It said that nothing was wrong, and the server refused to start."""
    bank = MemoryBank.load(taught, living=False)
    bank.remove(bank.entries[0].entry_id).save(taught, replace=True)
    for dry_run in (True, False):
        with pytest.raises(BaseChangedError, match="rebuilt"):
            repair(taught, dry_run=dry_run)


def test_repair_drops_thresholds_that_fail_their_checksum_and_refuses_more(taught: Path) -> None:
    manifest = taught / "bank.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b"0.41", b"0.61"))
    with pytest.raises(BankCorruptError, match="calibration fails its checksum"):
        MemoryBank.load(taught)
    assert "run mrad calibrate" in CliRunner().invoke(app, ["memory", "repair", str(taught)]).output
    assert set(MemoryBank.load(taught).calibration) == {"nn"}
    facts = json.loads(whole)
    facts["metadata"]["line"] = 2
    manifest.write_text(json.dumps(facts))
    with pytest.raises(BankCorruptError, match="metadata"):
        repair(taught)


def test_repair_of_an_older_release_keeps_every_whole_record(tmp_path: Path) -> None:
    shutil.copytree(RELEASED / "bank", tmp_path / "bank")
    shutil.copytree(RELEASED / "bank.live", tmp_path / "bank.live")
    (path,) = (tmp_path / "bank.live" / "log").iterdir()
    expected = json.loads((RELEASED / "expected.json").read_text())
    data = bytearray(path.read_bytes())
    data[1000] ^= 2
    path.write_bytes(data)
    found = repair(tmp_path / "bank")
    assert found.lost
    assert found.set_aside
    assert (found.set_aside / "log" / path.name).read_bytes() == data
    with DurableMemory.open(tmp_path / "bank") as memory:
        ids = [entry.entry_id for entry in memory.bank.entries]
    assert set(ids) - {expected["ids"][3]} <= set(expected["entries"])
    assert len(ids) >= len(expected["entries"]) - 1
    assert np.isfinite(MemoryBank.load(tmp_path / "bank").image.keys).all()
