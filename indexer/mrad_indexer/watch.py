"""A folder that a camera writes into -> verdicts as they come.

OUT/verdicts.jsonl is the record: a line for each image, synced to disk; what stands in it is not
scored again, what does not will be. The first line says with what the folder is judged; after a
change of memory or threshold another such line follows.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mrad_client.batch.journal import Journal, Row
from mrad_client.batch.pictures import Places
from mrad_client.batch.runner import Judged
from mrad_client.batch.sources import Item, images_below, is_hidden, is_image, not_taken
from watchfiles import Change, watch

from mrad.errors import DataError
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.local import LocalTransport

TICK = 0.1
"""Seconds between looks at files that are still being written."""
PATIENCE = 5.0
"""Seconds for which a file that is no whole image may still become one."""
KINDS = {"normal": "ok", "anomalous": "ng"}
ERROR = "error"
"""Where images are moved to by verdict, and those without one."""
GONE = "has gone (moved away, unmounted?): the watch goes on once it is back"
RESCAN = 60.0
"""Seconds between looks at the whole folder, for events that a file system swallowed."""


@dataclass(frozen=True)
class WatchOptions:
    """How to watch."""

    out: Path
    overlays: bool = True
    settle: float = 0.5
    """Seconds for which a file must not change before it counts as completely written."""
    move_to: Path | None = None
    """Folder whose ok/, ng/ and error/ take the images that were judged."""
    poll: float | None = None
    """Seconds between looks, for network folders that send no events; None: events."""
    batch_size: int = 8

    @property
    def own(self) -> list[Path]:
        """Folders that the watch itself writes pictures into."""
        kinds = () if self.move_to is None else (*KINDS.values(), ERROR)
        moved = [self.move_to / kind for kind in kinds if self.move_to is not None]
        return [path.resolve() for path in (self.out / "overlays", *moved)]


@dataclass
class Arrivals:
    """Files seen whose size or time still changes, and those that came to rest."""

    settle: float
    seen: dict[Path, tuple[str, float]] = field(default_factory=dict)

    def add(self, paths: Iterable[Path]) -> None:
        """Look at these files until they rest."""
        for path in paths:
            self.seen.setdefault(path, ("", 0.0))

    def rested(self, folder: Path, now: float) -> Iterator[tuple[Item, str]]:
        """Items unchanged for `settle` seconds, with their stamps; each is given once."""
        for path, (stamp, since) in list(self.seen.items()):
            item = Item(path.relative_to(folder).as_posix(), path)
            current = item.stamp()
            if not current:  # gone again
                del self.seen[path]
            elif current != stamp:
                self.seen[path] = (current, now)
            elif now - since >= self.settle:
                del self.seen[path]
                yield item, current


def watch_folder(
    folder: Path,
    judge: Judge,
    options: WatchOptions,
    *,
    stop: threading.Event,
    report: Callable[[Row], None] = lambda row: None,
) -> None:
    """Judge what lies in `folder` and what arrives, until `stop` is set.

    Raises `DataError` when the folder is missing or takes what the watch writes, or when verdicts
    would be needed to move images and there is no threshold; `JournalError` when another process
    watches into the same `out`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    if options.move_to is not None and judge.threshold is None:
        raise DataError("to move images by verdict, calibrate the memory or give a --threshold")
    folder = folder.resolve()  # as its own folders are, which may lie in it
    if any(folder.is_relative_to(place) for place in options.own):
        raise DataError(f"{folder} takes what this watch writes: give another folder or --out")
    asked = judge.asked() | {"overlays": options.overlays}
    with (
        Journal(options.out / "verdicts.jsonl", asked, follow=True) as journal,
        LocalTransport(judge, batch_size=options.batch_size) as transport,
    ):
        worker = _Worker(folder, transport, options, journal, report)
        arrivals = Arrivals(options.settle)
        pause = RESCAN if options.poll is None else options.poll
        scanned = told = float("-inf")
        for changes in _changes(folder, options.poll, stop):
            if changes is None:
                scanned = told = float("-inf")
                report(Judged.failed("folder_gone", f"{folder} {GONE}").row(Item(".", folder), ""))
                continue
            arrivals.add(worker.mine(_files(changes)))
            now = time.monotonic()
            if now - scanned >= pause:  # the first time after the watch began: nothing slips
                scanned = now
                arrivals.add(worker.unfinished())
            if now - told >= RESCAN:
                told = now
                worker.report_not_taken()
            arrivals.add(worker.handle(list(arrivals.rested(folder, now)), now))


def _changes(
    folder: Path, poll: float | None, stop: threading.Event
) -> Iterator[set[tuple[Change, str]] | None]:
    """What changed, or nothing every `TICK`; None when the folder has gone, which sends no event.

    Ends when `stop` is set. A folder that comes in its place is watched in turn.
    """
    while not stop.is_set():
        known = _identity(folder)
        if known is None:
            stop.wait(TICK)
            continue
        with suppress(FileNotFoundError):  # gone since a moment ago
            for changes in _events(folder, poll, stop):
                if _identity(folder) != known:
                    yield None
                    break
                yield changes


def _events(
    folder: Path, poll: float | None, stop: threading.Event
) -> Iterator[set[tuple[Change, str]]]:
    """What changed, or nothing every `TICK`; ends when `stop` is set.

    Nothing at all where there are no events (`poll`), and the whole folder is looked at again instead:
    watchfiles' own polling compares times in whole seconds, and would miss a name that is used again at once.
    """
    if poll is not None:
        while not stop.wait(TICK):
            yield set()
        return
    yield from watch(
        folder,
        stop_event=stop,
        yield_on_timeout=True,
        rust_timeout=int(TICK * 1000),
        debounce=int(TICK * 1000),
        step=int(TICK * 500),
        watch_filter=None,
        raise_interrupt=False,
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    """The same for a path only as long as it is the same folder; None without one."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return (facts.st_dev, facts.st_ino)


def _files(changes: set[tuple[Change, str]]) -> Iterator[Path]:
    """Files that came or changed; of a new folder all, for it may be older than its watch."""
    for kind, name in changes:
        path = Path(name)
        if kind == Change.added and path.is_dir():
            yield from images_below(path)
        elif kind != Change.deleted:
            yield path


@dataclass
class _Worker:
    folder: Path
    transport: LocalTransport
    options: WatchOptions
    journal: Journal
    report: Callable[[Row], None]
    doubtful: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Name -> stamp and first time at which it was no whole image."""
    own: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.own = self.options.own

    def mine(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Images that are not our own output, where that lies inside the folder."""
        for path in paths:
            if is_image(path) and not is_hidden(path, self.folder) and not self._is_ours(path):
                yield path

    def report_not_taken(self) -> None:
        """A row for each file that may be a picture and gets no verdict, so that it is noticed."""
        rows = []
        for path, why in not_taken(self.folder, self.own):
            item = Item(path.relative_to(self.folder).as_posix(), path)
            stamp = "" if path.is_dir() else item.stamp()
            if self.journal.has(item.name, stamp):
                continue
            rows.append(Judged.failed("not_taken", f"{path}: {why}").row(item, stamp))
        self.journal.append(rows)
        for row in rows:
            self.report(row)

    def _is_ours(self, path: Path) -> bool:
        return any(path.is_relative_to(place) for place in self.own)

    def unfinished(self) -> list[Path]:
        """Images in the folder that are not judged, or judged but not moved yet."""
        found = []
        for path in images_below(self.folder, self.own):
            item = Item(path.relative_to(self.folder).as_posix(), path)
            if self.options.move_to is not None or not self.journal.has(item.name, item.stamp()):
                found.append(path)
        return found

    def handle(self, items: list[tuple[Item, str]], now: float) -> list[Path]:
        """Judge, record, then move: in this order a kill loses nothing.

        Returns files that are no whole images yet, to be looked at again.
        """
        fresh = [item for item, stamp in items if not self.journal.has(item.name, stamp)]
        size, later = self.transport.size, []
        for start in range(0, len(fresh), size):
            chunk = [(item, item.stamp()) for item in fresh[start : start + size]]
            answers = self.transport.judge_files([item.path for item, _ in chunk])
            whole = []
            for (item, stamp), answer in zip(chunk, answers):
                if self._may_grow(item, stamp, answer, now):
                    later.append(item.path)
                else:
                    whole.append((item, stamp, answer))
            self._record(whole)
        if self.options.move_to is not None:
            for item, _ in items:
                # The picture that was judged, and none that came since.
                if self.journal.has(item.name, item.stamp()):
                    self._move(item, self.journal.row(item.name), self.options.move_to)
        return later

    def _may_grow(self, item: Item, stamp: str, answer: Judged, now: float) -> bool:
        if answer.columns["status"] == "ok":
            self.doubtful.pop(item.name, None)
            return False
        if not stamp:  # taken away since it came to rest: the next look drops it
            return True
        if self.doubtful.get(item.name, ("", 0.0))[0] != stamp:
            self.doubtful[item.name] = (stamp, now)
        if now - self.doubtful[item.name][1] < PATIENCE:
            return True
        del self.doubtful[item.name]
        return False

    def _record(self, judged: list[tuple[Item, str, Judged]]) -> None:
        out = self.options.out
        places = Places(overlays=out / "overlays" if self.options.overlays else None, base=out)
        rows = []
        for item, stamp, answer in judged:
            # A camera may use a name again: an earlier picture stays.
            again = item.name in self.journal
            tag = f"~{sha256(stamp.encode()).hexdigest()[:8]}" if again else ""
            pictures = places.save(item.name, answer.pictures, tag)
            rows.append(answer.row(item, stamp) | pictures | {"scored_at": _now()})
        self.journal.append(rows)
        for row in rows:
            self.report(row)

    def _move(self, item: Item, row: Row, root: Path) -> None:
        kind = KINDS.get(row.get("verdict") or "", ERROR)
        target = root / kind / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():  # never over an earlier image of the same name
            number += 1
            target = (root / kind / item.name).with_stem(f"{item.path.stem}~{number}")
        move(item.path, target)


def move(source: Path, target: Path) -> None:
    """Rename; across file systems copy, then take the copy's name, then remove the source."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return  # someone else took it; its verdict is recorded
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise DataError(f"{source} cannot be moved to {target}: {error.strerror}") from error
        part = target.with_name(f".{target.name}.part")
        shutil.copy2(source, part)
        os.replace(part, target)  # noqa: PTH105
        source.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
