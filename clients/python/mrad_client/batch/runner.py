"""Files in, journal rows out: chunks in flight, as many as the pace allows."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from mrad_client.async_client import AsyncClient
from mrad_client.batch.journal import Journal, Row
from mrad_client.batch.pace import Pace
from mrad_client.batch.pictures import save_pictures
from mrad_client.batch.sources import Item
from mrad_client.errors import (
    AuthenticationError,
    CalibrationError,
    ConnectionFailedError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    TooLargeError,
    UnavailableError,
)
from mrad_client.types import Result

HOPELESS = (AuthenticationError, ForbiddenError, NotFoundError, CalibrationError)
"""The same for every file: the run ends."""
TRANSIENT = (OverloadedError, UnavailableError, ConnectionFailedError)


@dataclass(frozen=True)
class Options:
    """How to score; `asked()` is what decides the content of the rows."""

    threshold: float | None = None
    target_fpr: float | None = None
    maps: Path | None = None
    overlays: Path | None = None
    per_request: int = 4
    most_requests: int = 64
    patience: float = 300.0
    """Seconds without any answered request after which the run ends (and can be resumed)."""

    def asked(self) -> Row:
        """For the journal."""
        return {
            "threshold": self.threshold,
            "target_fpr": self.target_fpr,
            "maps": self.maps is not None,
            "overlays": self.overlays is not None,
        }


@dataclass
class Chunk:
    """Files that travel in one request."""

    items: list[Item]
    failures: int = 0


@dataclass
class _Run:
    client: AsyncClient
    journal: Journal
    options: Options
    pace: Pace
    report: Callable[[list[Row], Pace], None]
    waiting: deque[Chunk]
    in_flight: int = 0
    resume_at: float = 0.0
    last_answer: float = field(default_factory=time.monotonic)
    changed: anyio.Event = field(default_factory=anyio.Event)

    async def go(self) -> None:
        async with anyio.create_task_group() as group:
            while self.waiting or self.in_flight:
                pause = self.resume_at - time.monotonic()
                if self.waiting and self.in_flight < self.pace.slots and pause <= 0:
                    self.in_flight += 1
                    group.start_soon(self._work, self.waiting.popleft())
                    continue
                with anyio.move_on_after(pause if pause > 0 else None):
                    await self.changed.wait()
                self.changed = anyio.Event()

    async def _work(self, chunk: Chunk) -> None:
        try:
            await self._score(chunk)
        finally:
            self.in_flight -= 1
            self.changed.set()

    async def _score(self, chunk: Chunk) -> None:
        files, unreadable = await anyio.to_thread.run_sync(_read, chunk.items)
        self._keep(unreadable)
        chunk.items = [item for item, _, _ in files]
        if not files:
            return
        sent = time.monotonic()
        options = self.options
        pictures = options.maps or options.overlays
        try:
            scores = await self.client.score(
                [data for _, _, data in files],
                threshold=options.threshold,
                target_fpr=options.target_fpr,
                map="png16" if pictures else "none",
            )
        except HOPELESS:
            raise
        except TRANSIENT as error:
            self._try_later(chunk, error, sent)
            return
        except (TooLargeError, InvalidRequestError, ServerError) as error:
            self._isolate(chunk, [stamp for _, stamp, _ in files], error)
            return
        self.last_answer = time.monotonic()
        self.pace.done(len(files), self.last_answer)
        rows = []
        for (item, stamp, data), result in zip(files, scores):
            row = _row(item, stamp, result)
            if result.ok and pictures:
                row |= await anyio.to_thread.run_sync(
                    save_pictures, item.name, data, result, options
                )
            rows.append(row)
        self._keep(rows)

    def _try_later(self, chunk: Chunk, error: Exception, sent: float) -> None:
        """Back to the front of the queue; nobody sends before the server wants to be asked."""
        now = time.monotonic()
        if now - self.last_answer > self.options.patience:
            raise error
        self.pace.refused(sent, now)
        asked = getattr(error, "retry_after", None) or 0.0
        wait = asked + random.uniform(0.05, 0.5 if asked else 1.0)
        self.resume_at = max(self.resume_at, now + wait)
        self.waiting.appendleft(chunk)

    def _isolate(self, chunk: Chunk, stamps: list[str], error: Exception) -> None:
        """Halve a refused request until the file at fault stands alone, then record it."""
        if len(chunk.items) > 1:
            middle = len(chunk.items) // 2
            halves = (Chunk(chunk.items[:middle]), Chunk(chunk.items[middle:]))
            self.waiting.extendleft(reversed(halves))
        elif isinstance(error, ServerError) and chunk.failures < 2:
            self.waiting.append(Chunk(chunk.items, chunk.failures + 1))
        else:
            code = getattr(error, "code", "error")
            self._keep([_error_row(chunk.items[0], stamps[0], code, str(error))])

    def _keep(self, rows: list[Row]) -> None:
        if rows:
            self.journal.append(rows)
            self.report(rows, self.pace)


async def run(
    client: AsyncClient,
    items: Iterable[Item],
    journal: Journal,
    options: Options,
    report: Callable[[list[Row], Pace], None] = lambda rows, pace: None,
) -> None:
    """Score what the journal does not hold yet. `client` must not retry by itself.

    Every file ends as one row: judged, or with its error. Raises the error that ended the run;
    what was scored stays in the journal. `report` is called with each group of durable rows.
    """
    todo = [item for item in items if not journal.has(item.name, item.stamp())]
    size = options.per_request
    chunks = deque(Chunk(todo[start : start + size]) for start in range(0, len(todo), size))
    pace = Pace(most=options.most_requests)
    state = _Run(client, journal, options, pace, report, chunks)
    try:
        await state.go()
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _read(items: list[Item]) -> tuple[list[tuple[Item, str, bytes]], list[Row]]:
    """Files with their stamps (taken before reading, so that a change is seen), and error rows."""
    files, errors = [], []
    for item in items:
        stamp = item.stamp()
        try:
            files.append((item, stamp, item.path.read_bytes()))
        except OSError as error:
            text = f"{item.path} cannot be read: {error.strerror or error}"
            errors.append(_error_row(item, stamp, "unreadable_file", text))
    return files, errors


def _row(item: Item, stamp: str, result: Result) -> Row:
    if result.error is not None:
        return _error_row(item, stamp, result.error.code, result.error.detail)
    return {
        "name": item.name,
        "stamp": stamp,
        "status": "ok",
        "score": result.score,
        "class_score": result.class_score,
        "verdict": result.verdict,
        "threshold": result.threshold,
        "probability": result.probability,
    }


def _error_row(item: Item, stamp: str, code: str, text: str) -> Row:
    return {"name": item.name, "stamp": stamp, "status": "error", "code": code, "error": text}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the rest is its consequence."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
