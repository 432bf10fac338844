"""Crashes at each step of what replaces files, full disks, the lock, copies of a folder in use."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrad_indexer.cli.main import app
from mrad_service.memory import DurableMemory
from typer.testing import CliRunner

from mrad.errors import BankLockedError, LogCorruptError, LogWriteError
from mrad.memory.bank import MemoryBank


def live(base: Path) -> Path:
    return base.with_name(base.name + ".live")


def learned(base: Path) -> set[str]:
    with DurableMemory.open(base) as memory:
        return {entry.entry_id for entry in memory.bank.entries[4:]}


@pytest.fixture
def limited() -> Iterator[None]:
    """No file may grow beyond 200 KiB: a write then fails as on a broken disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_disk_refuses_is_never_acknowledged(base: Path, lesson, limited) -> None:
    added = []
    with DurableMemory.open(base) as memory:
        failed = ""
        while not failed:
            try:
                entry = memory.add(*lesson(len(added)), thumbnail=os.urandom(20_000))
                added.append(entry.entry_id)
            except LogWriteError as error:
                failed = str(error)
        assert "cannot be used" in failed
        assert added
        with pytest.raises(LogWriteError, match="restart"):
            memory.add(*lesson(101))
        assert len(memory.bank.entries) == 4 + len(added)
    assert learned(base) == set(added)


def test_a_full_disk_fails_the_writer_and_later_writes_go_on(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        memory.add(*lesson(1))
        memory._database._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(LogWriteError, match="make room"):
            memory.add(*lesson(2), thumbnail=os.urandom(50_000))
        assert len(memory.bank.entries) == 5
        memory._database._connection.execute("PRAGMA max_page_count = 1000000")
        memory.add(*lesson(3))
    with DurableMemory.open(base) as memory:
        assert [entry.source for entry in memory.bank.entries[4:]] == ["1.png", "3.png"]


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import make_lesson, save_base
from mrad.errors import MRADError
from mrad_service.memory import DurableMemory
disk, phase = Path(sys.argv[1]), sys.argv[3]
base, filler = save_base(disk / "bank"), disk / "filler"

def fill(free):
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    with filler.open("r+b") as file:
        file.truncate(max(filler.stat().st_size - free, 0))

said = []
def trying(what):
    try:
        what()
        return True
    except MRADError as error:
        said.append(str(error))
        return False

added = []
if phase == "start":
    fill(8192)
    trying(lambda: DurableMemory.open(base))
    filler.unlink()
with DurableMemory.open(base) as memory:
    for seed in range(10):
        added.append(memory.add(*make_lesson(seed), thumbnail=bytes(9000)).entry_id)
    if phase == "lesson":
        fill(30_000)
        for seed in range(10, 40):
            entry, keys = make_lesson(seed)
            if trying(lambda: memory.add(entry, keys, thumbnail=bytes(9000))):
                added.append(entry.entry_id)
    elif phase == "checkpoint":
        fill(4096)
        memory._rest()
    elif phase == "compact":
        fill(8192)
        trying(memory.compact)
    elif phase == "export":
        fill(8192)
        trying(lambda: memory.export(disk / "out"))
        assert not (disk / "out").exists()
    filler.unlink(missing_ok=True)
    memory.add(*make_lesson(90)) if "restart" not in "".join(said) else None
    kept = [entry.entry_id for entry in memory.bank.entries[4:]]
with DurableMemory.open(base) as memory:
    assert kept == [entry.entry_id for entry in memory.bank.entries[4:]]
    assert set(added) <= set(kept)
print(phase, said[:1])
"""


@pytest.mark.parametrize("phase", ["start", "lesson", "checkpoint", "compact", "export"])
def test_a_disk_that_is_really_full(tmp_path: Path, phase: str) -> None:
    """On a file system of its own, where this user may mount one."""
    script = tmp_path / "fill.py"
    script.write_text(FILL)
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"mount -t tmpfs -o size=1m none {disk} && exec {sys.executable} {script} {disk} "
    run += f"{Path(__file__).parent} {phase}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", run], capture_output=True, text=True)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("no mount here")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert ("full" in said or "No space" in said) or phase == "checkpoint", said


NOWHERE = """
import subprocess, sys
from pathlib import Path
from mrad_service.memory import DurableMemory
from mrad.errors import MRADError
from mrad.memory.bank import MemoryBank

disk, how, bank = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
import shutil
shutil.copytree(bank, disk / "bank")
if how == "full":
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(512)):
                pass
        except OSError:
            pass
else:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
try:
    DurableMemory.open(disk / "bank")
except MRADError as error:
    print(error)
assert len(MemoryBank.load(disk / "bank").entries)  # it can be read all the same
"""


@pytest.mark.parametrize(("how", "said"), [("full", "No space"), ("read-only", "Read-only file")])
def test_a_disk_that_takes_nothing_is_one_line(base: Path, tmp_path: Path, how, said) -> None:
    script = tmp_path / "nowhere.py"
    script.write_text(NOWHERE)
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"mount -t tmpfs -o size=1m none {disk} && exec {sys.executable} {script} {disk} {how} {base}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", run], capture_output=True, text=True)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("no mount here")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "mrad serve --read-only" in done.stdout


@pytest.mark.parametrize("step", ["replace", "fsync_path", "write"])
def test_a_crash_while_the_first_database_is_made(
    base: Path, lesson, monkeypatch, step: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("crash")

    target = {
        "replace": "pathlib.Path.replace",
        "fsync_path": "mrad.memory.database.fsync_path",
        "write": "mrad.memory.database.Head.write",
    }[step]
    with monkeypatch.context() as patched:
        patched.setattr(target, crash)
        with pytest.raises(RuntimeError):
            DurableMemory.open(base)
    with DurableMemory.open(base) as memory:
        entry = memory.add(*lesson(1))
    assert learned(base) == {entry.entry_id}


def _hold(path: str, ready) -> None:
    with DurableMemory.open(path):
        ready.set()
        time.sleep(60)


def test_a_second_process_is_told_who_writes_and_readers_are_not_kept_out(base: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(base), ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BankLockedError, match=f"process {holder.pid} on "):
            DurableMemory.open(base)
        runner = CliRunner()
        for command in (["memory", "repair", str(base)], ["memory", "compact", str(base)]):
            assert "has a writer" in runner.invoke(app, command).output
        assert (
            runner.invoke(app, ["memory", "export", str(base), str(base) + "-copy"]).exit_code == 0
        )
        holder.kill()
        holder.join()
        DurableMemory.open(base).close()
    finally:
        holder.kill()
        holder.join()


def test_a_copy_of_the_folder_in_use_is_whole_or_refused(base: Path, lesson) -> None:
    """`cp -r` of a memory that is taught meanwhile: never silently less than was acknowledged."""
    stop, added = threading.Event(), []
    whole = refused = 0
    with DurableMemory.open(base) as memory:

        def teach() -> None:
            seed = 0
            while not stop.is_set():
                added.append(memory.add(*lesson(seed := seed + 1)).entry_id)
                time.sleep(0.001)

        teacher = threading.Thread(target=teach)
        teacher.start()
        for number in range(20):
            before = set(added)
            copy = base.parent / f"copy-{number}"
            shutil.copytree(base, copy / "bank")
            shutil.copytree(live(base), copy / "bank.live")
            try:
                assert before <= learned(copy / "bank")
                whole += 1
            except LogCorruptError:
                refused += 1
        stop.set()
        teacher.join()
    print(f"{whole} copies whole, {refused} refused")
    assert whole + refused == 20


def test_a_reader_beside_a_writer_sees_what_was_acknowledged(base: Path, lesson) -> None:
    with DurableMemory.open(base) as memory:
        for seed in range(30):
            entry = memory.add(*lesson(seed))
            if seed % 5 == 0:
                assert MemoryBank.load(base).entries[-1] == entry
            if seed % 7 == 0:
                memory._rest()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30)),
        st.tuples(st.just("repeat"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("again"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["compact", "reopen", "remove built"]), st.just(0)),
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
    gone: list[tuple] = []
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
                gone.append(lesson(number, None, victim))
                del model[victim]
            elif what == "again" and gone:
                entry, vectors = gone.pop()
                memory.add(entry, vectors)
                model[entry.entry_id] = entry.entry_id
            elif what == "remove built" and len(standing) == 4:
                memory.remove(standing.pop(0))
            elif what == "compact":
                memory.compact()
            elif what == "reopen":
                memory.close()
                memory = DurableMemory.open(base)
            ids = [entry.entry_id for entry in memory.bank.entries]
            assert ids == [*standing, *model]
            listed = [entry.entry_id for entry in memory.list(limit=1000).entries]
            assert listed == ids[::-1]
            assert len(memory.bank.image) == len(memory.bank.patch) == len(ids)
            assert [*memory.bank.image.entry] == list(range(len(ids)))
        read = MemoryBank.load(base)
        assert read.entries == memory.bank.entries
        assert (read.image.keys == memory.bank.image.keys).all()
    finally:
        memory.close()
