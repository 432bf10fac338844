"""`mrad watch`: files that arrive, grow, come again; a kill; moving by verdict."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from mrad_indexer import watch
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.watch import WatchOptions, move, watch_folder

from mrad.errors import DataError
from mrad.images.reader import read_image
from mrad.memory.bank import MemoryBank
from mrad.types import Sample
from tests.cases import CASES, PICTURES, close


def verdicts(out: Path) -> list[dict]:
    """The record's lines, without headers."""
    path = out / "verdicts.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [row for row in rows if "name" in row]


def until(condition, seconds=300):
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def judge(board_bank):
    return Judge.load(board_bank, device="cpu")


@pytest.fixture
def inbox(tmp_path, make_image):
    """A folder with two images, and `inbox.put(name, seed)` for more."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    for seed in range(2):
        make_image(seed, (40, 32), defect=seed == 1)[0].save(folder / f"{seed}.png")
    return folder


@contextlib.contextmanager
def watching(folder, judge, options, report=lambda row: None):
    """The watch in a thread; an error of it is raised here."""
    stop, failed = threading.Event(), []

    def run():
        try:
            watch_folder(folder, judge, options, stop=stop, report=report)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(300)
    assert not thread.is_alive()
    assert not failed


def test_a_name_that_is_used_again_within_a_second_is_noticed_by_polling(
    tmp_path, inbox, judge, make_image, monkeypatch
):
    """Times of one whole second, as a poller that keeps no fractions sees them; the size tells."""
    monkeypatch.setattr(watch, "RESCAN", 1e9)
    out, second = tmp_path / "out", 1_700_000_000
    image = inbox / "0.png"
    os.utime(image, ns=(second * 10**9, second * 10**9))
    with watching(inbox, judge, WatchOptions(out, settle=0.1, poll=0.1)):
        until(lambda: len(verdicts(out)) == 2)
        new = tmp_path / "new.png"
        make_image(8, (44, 32))[0].save(new)
        os.utime(new, ns=(second * 10**9 + 5, second * 10**9 + 5))
        new.rename(image)
        until(lambda: len(verdicts(out)) == 3)


@pytest.mark.parametrize("poll", [None, 0.1])
def test_what_lies_there_and_what_arrives(tmp_path, inbox, judge, make_image, poll):
    out = inbox / "out"  # inside: its own overlays must not be judged
    with watching(inbox, judge, WatchOptions(out, settle=0.1, poll=poll)):
        until(lambda: len(verdicts(out)) == 2)
        (inbox / "late").mkdir()
        make_image(7, (40, 32))[0].save(inbox / "late/7.png")
        (inbox / "note.txt").write_text("not an image")
        until(lambda: len(verdicts(out)) == 3)
        make_image(8, (44, 32))[0].save(inbox / "0.png")  # the camera uses a name again
        until(lambda: len(verdicts(out)) == 4)
    rows = verdicts(out)
    assert Counter(row["name"] for row in rows) == {"0.png": 2, "1.png": 1, "late/7.png": 1}
    first, second = (row for row in rows if row["name"] == "0.png")
    assert first["overlay"] != second["overlay"]
    for row in rows:
        assert (out / row["overlay"]).is_file()
        assert row["verdict"] in ("normal", "anomalous")
        assert row["scored_at"].endswith("Z")


def test_what_is_too_small_or_of_another_shape_is_in_the_record(tmp_path, inbox, judge, make_image):
    make_image(3, (3, 3))[0].save(inbox / "thumb.png")
    make_image(3, (400, 60))[0].save(inbox / "long.png")
    make_image(3, (64, 64))[0].save(inbox / "alike.png")
    out = tmp_path / "out"
    with watching(inbox, judge, WatchOptions(out, settle=0.0)):
        until(lambda: len(verdicts(out)) == 5)
    told = {row["name"]: " ".join(row["warnings"] or ()) for row in verdicts(out)}
    assert "too_small: the picture is 3 x 3 pixels" in told["thumb.png"]
    assert "other_shape: width over height is 6.67" in told["long.png"]
    assert "too_small" not in told["alike.png"]


def test_a_file_is_judged_only_when_whole(tmp_path, inbox, judge, make_image, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE", 1.5)
    out = tmp_path / "out"
    make_image(9, (64, 64))[0].save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    with watching(inbox, judge, WatchOptions(out, settle=0.2)):
        with (inbox / "slow.png").open("wb") as file:
            for start in range(0, len(data), len(data) // 5 + 1):
                file.write(data[start : start + len(data) // 5 + 1])
                file.flush()
                time.sleep(0.3)  # longer than `settle`, shorter than the patience
        (inbox / "torn.png").write_bytes(data[:200])
        until(lambda: len(verdicts(out)) == 4)
    rows = {row["name"]: row for row in verdicts(out)}
    assert len(rows) == 4
    assert rows["slow.png"]["status"] == "ok"
    assert (rows["torn.png"]["status"], rows["torn.png"]["code"]) == ("error", "invalid_image")


def test_moved_by_verdict_and_finished_after_a_stop(tmp_path, inbox, judge, make_image):
    out, sorted_to = tmp_path / "out", tmp_path / "sorted"
    with watching(inbox, judge, WatchOptions(out, settle=0.1)):
        until(lambda: len(verdicts(out)) == 2)
    # Judged but not moved, as after a kill between the two.
    options = WatchOptions(out, settle=0.1, move_to=sorted_to)
    with watching(inbox, judge, options):
        until(lambda: not list(inbox.glob("*.png")))
        make_image(5, (40, 36))[0].save(inbox / "0.png")
        until(lambda: len(verdicts(out)) == 3 and not list(inbox.glob("*.png")))
    rows = verdicts(out)
    assert [row["name"] for row in rows[:2]] == ["0.png", "1.png"]
    moved = sorted(path.relative_to(sorted_to).as_posix() for path in sorted_to.rglob("*.png"))
    kinds = {"normal": "ok", "anomalous": "ng"}
    expected = [f"{kinds[row['verdict']]}/{row['name']}" for row in rows]
    again = expected[2].replace("0.png", "0~2.png") if expected[2] in expected[:2] else expected[2]
    assert moved == sorted([*expected[:2], again])


def test_moving_needs_a_threshold_and_a_folder(tmp_path, inbox, judge):
    from dataclasses import replace

    stop = threading.Event()
    blind = replace(judge, threshold=None)
    with pytest.raises(DataError, match="--threshold"):
        watch_folder(inbox, blind, WatchOptions(tmp_path, move_to=tmp_path), stop=stop)
    with pytest.raises(DataError, match="not a folder"):
        watch_folder(tmp_path / "none", judge, WatchOptions(tmp_path), stop=stop)
    move(tmp_path / "gone.png", tmp_path / "x.png")  # someone took it: nothing to do


def test_sorted_within_the_folder_itself(tmp_path, inbox, judge):
    """ok/, ng/ and error/ of the watched folder are not watched, the folder is."""
    (inbox / ".trash").mkdir()
    shutil.copy(inbox / "0.png", inbox / ".trash" / "0.png")
    out = inbox / "verdicts"
    with watching(inbox, judge, WatchOptions(out, settle=0.1, move_to=inbox)):
        until(lambda: not list(inbox.glob("*.png")))
        time.sleep(0.5)
    assert sorted(row["name"] for row in verdicts(out)) == [".trash/0.png", "0.png", "1.png"]
    moved = [path.name for kind in ("ok", "ng") for path in (inbox / kind).glob("*")]
    assert sorted(moved) == ["0.png", "1.png"]
    again = WatchOptions(tmp_path / "other", move_to=inbox)
    with pytest.raises(DataError, match="what this watch writes"):
        watch_folder(inbox / "ng", judge, again, stop=threading.Event())


def test_a_later_picture_is_not_moved_by_the_verdict_of_an_earlier(
    tmp_path, inbox, judge, monkeypatch
):
    """The camera writes the name again while the verdict is being recorded."""
    plain, sort = watch._Worker._record, tmp_path / "sorted"
    arrived = []

    def late(self, judged):
        plain(self, judged)
        if not arrived:
            arrived.append(shutil.copy(inbox / "1.png", inbox / "0.png"))

    monkeypatch.setattr(watch._Worker, "_record", late)
    options = WatchOptions(tmp_path / "out", settle=0.1, move_to=sort)
    with watching(inbox, judge, options):
        until(lambda: not list(inbox.glob("*.png")))
    assert [row["name"] for row in verdicts(tmp_path / "out")].count("0.png") == 2
    assert len(list(sort.rglob("*.png"))) == 2


@pytest.mark.parametrize("poll", [None, 0.1])
def test_a_folder_that_goes_and_comes_back(tmp_path, inbox, judge, poll):
    """No event tells of it: a share unmounted, a folder put aside by another program."""
    out, rows = tmp_path / "out", []
    options = WatchOptions(out, settle=0.1, poll=poll)
    with watching(inbox, judge, options, rows.append):
        until(lambda: len(verdicts(out)) == 2)
        inbox.rename(tmp_path / "aside")
        until(lambda: any(row.get("code") == "folder_gone" for row in rows))
        inbox.mkdir()
        shutil.copy(tmp_path / "aside" / "1.png", inbox / "2.png")
        until(lambda: len(verdicts(out)) == 3)
        shutil.copy(tmp_path / "aside" / "1.png", inbox / "3.png")
        until(lambda: len(verdicts(out)) == 4)
    assert [row["status"] for row in verdicts(out)] == ["ok"] * 4


def test_a_file_that_is_taken_away_in_between_ends_nothing(tmp_path, inbox, judge, monkeypatch):
    """Renamed by another program after it came to rest, before it was read."""
    plain, out = watch._Worker.handle, tmp_path / "out"

    def late(self, items, now):
        if (inbox / "0.png").exists() and any(item.name == "0.png" for item, _ in items):
            (inbox / "0.png").rename(inbox / "renamed.png")
        return plain(self, items, now)

    monkeypatch.setattr(watch._Worker, "handle", late)
    with watching(inbox, judge, WatchOptions(out, settle=0.1)):
        until(lambda: len(verdicts(out)) == 2)
    assert {row["name"] for row in verdicts(out)} == {"1.png", "renamed.png"}


def test_across_file_systems_a_move_copies_first(tmp_path, monkeypatch):
    import errno

    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "a.png").write_bytes(b"a")
    monkeypatch.setattr(Path, "rename", refuse)
    move(tmp_path / "a.png", tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def test_killed_in_the_middle_and_started_again(tmp_path, make_image, board_bank, spawn):
    """The real command, SIGKILL while images are judged, then again, stopped by SIGTERM."""
    inbox, out, sorted_to = tmp_path / "in", tmp_path / "out", tmp_path / "sorted"
    inbox.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(24):
        make_image(seed, (40, 32))[0].save(source / f"{seed:02}.png")
    for path in sorted(source.iterdir())[:16]:
        shutil.copy(path, inbox)
    command = ["watch", inbox, "--bank", board_bank, "--out", out, "--move-to", sorted_to]
    command += ["--settle", 0.05, "--batch-size", 2, "--device", "cpu"]
    running = spawn(*command, slow=0.2)
    until(lambda: len(verdicts(out)) >= 4 or running.poll() is not None, 900)
    assert running.poll() is None, running.communicate()[1]
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert len(verdicts(out)) < 16
    for path in sorted(source.iterdir())[16:]:  # arrive while nothing watches
        shutil.copy(path, inbox)
    running = spawn(*command)
    until(lambda: not list(inbox.iterdir()) or running.poll() is not None, 900)
    running.send_signal(signal.SIGTERM)
    stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    names = sorted(row["name"] for row in verdicts(out))
    assert names == [f"{seed:02}.png" for seed in range(24)]
    assert sorted(path.name for path in sorted_to.rglob("*.png")) == names
    assert sum(line.startswith(("ok", "NG")) for line in stdout.splitlines()) >= 8


def test_no_encoding_of_a_board_passes_as_ok_in_silence(tmp_path, tiny_encoder):
    """Every file of the cases arrives; what is moved to ok/ is right, or its row has a warning."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for path in PICTURES:
        shutil.copy(path, inbox / path.name)
    (inbox / "photo.unknown").write_bytes(PICTURES[0].read_bytes())
    (inbox / "cut.png").write_bytes(PICTURES[0].read_bytes()[:300])
    own, masks = CASES / "images", CASES / "masks"
    samples = [
        Sample(own / "a_base8.png", False),
        Sample(own / "bw8.png", False),
        Sample(masks / "_image.png", True, masks / "g255.png"),
    ]
    bank = MemoryBank.from_samples(tiny_encoder, samples)
    judge = Judge.of(tiny_encoder, bank, threshold=1.0)  # whatever is judged is called normal
    out, moved = tmp_path / "out", tmp_path / "moved"
    options = WatchOptions(out, False, 0.0, moved)
    with watching(inbox, judge, options):
        until(lambda: {p.name for p in inbox.iterdir()} == {"photo.unknown"})
        until(lambda: len(verdicts(out)) >= len(PICTURES) + 2)
    rows = {row["name"]: row for row in verdicts(out)}
    assert rows["photo.unknown"]["code"] == "not_taken"
    assert (moved / "error" / "cut.png").is_file()
    passed = list((moved / "ok").iterdir())
    assert len(passed) == len(PICTURES)
    for path in passed:
        assert rows[path.name]["warnings"] or close(read_image(path).image, path.name)
