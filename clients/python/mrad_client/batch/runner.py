"""Files in, journal rows out: chunks in flight, as many as the transport takes.

A transport judges some files: through a server (`http`), or in this process (`mrad score`). What is
done with its answers, and with files and requests that fail, is the same for all.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread

from mrad_client.batch.journal import Journal, Row
from mrad_client.batch.pictures import Draw, Places
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

HOPELESS = (AuthenticationError, ForbiddenError, NotFoundError, CalibrationError)
"""The same for every file: the run ends."""
TRANSIENT = (OverloadedError, UnavailableError, ConnectionFailedError)
PATIENCE = 300.0
"""Seconds without any answered request after which the run ends (and can be resumed)."""


@dataclass(frozen=True)
class Judged:
    """What a transport says of one file."""

    columns: Mapping[str, Any]
    """`status`; with `ok` the scores, with `error` a `code` and an `error`."""
    pictures: Mapping[str, Draw] = field(default_factory=dict)
    """`map` and `overlay`, drawn when asked for."""
    final: bool = True
    """Whether the same file would be judged so again; if not, a run that is started again asks again."""

    @classmethod
    def failed(cls, code: str, text: str, *, final: bool = True) -> Judged:
        """A file that could not be judged, and why."""
        return cls({"status": "error", "code": code, "error": text}, final=final)

    def row(self, item: Item, stamp: str) -> Row:
        """For the journal, without the places of pictures."""
        return {"name": item.name, "stamp": stamp, **self.columns}


class Limit(Protocol):
    """How many calls of a transport may be under way at once."""

    @property
    def slots(self) -> int:
        """Calls that may begin or go on now."""

    def done(self, images: int, now: float) -> None:
        """A call with so many images was answered at `now`."""

    def refused(self, sent: float, now: float) -> None:
        """A call begun at `sent` was turned away at `now`."""


class Transport(Protocol):
    """What judges files."""

    limit: Limit

    async def score(self, paths: Sequence[Path]) -> Sequence[Judged]:
        """One `Judged` for each file, in order; a file that cannot be read is one of them.

        Raises an error of `mrad_client.errors` when the call as a whole was refused: it is made
        again later, or in halves, or ends the run, by the kind of error. Any other error ends it.
        """


@dataclass(frozen=True)
class Steady:
    """A limit that never moves."""

    slots: int

    def done(self, images: int, now: float) -> None:
        """Nothing to learn."""

    def refused(self, sent: float, now: float) -> None:
        """Nothing to learn."""


Report = Callable[[Sequence[Row], int], None]


@dataclass
class Chunk:
    """Files that travel in one call."""

    items: list[Item]
    failures: int = 0


@dataclass
class _Run:
    transport: Transport
    journal: Journal
    places: Places
    patience: float
    report: Report
    waiting: deque[Chunk]
    in_flight: int = 0
    resume_at: float = 0.0
    last_answer: float = field(default_factory=time.monotonic)
    changed: anyio.Event = field(default_factory=anyio.Event)

    async def go(self) -> None:
        async with anyio.create_task_group() as group:
            while self.waiting or self.in_flight:
                pause = self.resume_at - time.monotonic()
                if self.waiting and self.in_flight < self.transport.limit.slots and pause <= 0:
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
        # Taken before a file is read, so that a later change is seen.
        stamps = await anyio.to_thread.run_sync(lambda: [item.stamp() for item in chunk.items])
        sent = time.monotonic()
        try:
            answers = await self.transport.score([item.path for item in chunk.items])
        except HOPELESS:
            raise
        except TRANSIENT as error:
            self._try_later(chunk, error, sent)
            return
        except (TooLargeError, InvalidRequestError, ServerError) as error:
            self._isolate(chunk, stamps, error)
            return
        self.last_answer = time.monotonic()
        self.transport.limit.done(len(answers), self.last_answer)
        self._keep(await anyio.to_thread.run_sync(self._rows, chunk.items, stamps, answers))

    def _rows(self, items: list[Item], stamps: list[str], answers: Sequence[Judged]) -> list[Row]:
        """With the pictures written: a row never names one that is not there."""
        return [
            answer.row(item, stamp if answer.final else "")
            | self.places.save(item.name, answer.pictures)
            for item, stamp, answer in zip(items, stamps, answers)
        ]

    def _try_later(self, chunk: Chunk, error: Exception, sent: float) -> None:
        """Back to the front of the queue; nobody sends before the server wants to be asked."""
        now = time.monotonic()
        if now - self.last_answer > self.patience:
            raise error
        self.transport.limit.refused(sent, now)
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
            failed = Judged.failed(getattr(error, "code", "error"), str(error))
            final = not isinstance(error, ServerError)  # another day the server may do better
            self._keep([failed.row(chunk.items[0], stamps[0] if final else "")])

    def _keep(self, rows: list[Row]) -> None:
        self.journal.append(rows)
        self.report(rows, self.transport.limit.slots)


async def run(
    transport: Transport,
    items: Sequence[Item],
    journal: Journal,
    places: Places,
    *,
    size: int,
    patience: float = PATIENCE,
    report: Report = lambda rows, slots: None,
) -> None:
    """Score what the journal does not hold yet.

    Args:
        transport: what judges; a client behind it must not retry by itself.
        items: the files, in order.
        journal: takes a row for every file, judged or with its error.
        places: where pictures go.
        size: files in one call, at most.
        patience: seconds without any answered call after which the run ends.
        report: called with each group of durable rows and the calls allowed at once.

    Raises the error that ended the run; what was scored stays in the journal.
    """
    todo = [item for item in items if not journal.has(item.name, item.stamp())]
    chunks = deque(Chunk(todo[start : start + size]) for start in range(0, len(todo), size))
    state = _Run(transport, journal, places, patience, report, chunks)
    try:
        await state.go()
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the rest is its consequence."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
