"""The client for ordinary code. `async_client` is its twin; what they share stands elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Self, TypeVar, Unpack

import httpx

from mrad_client import _operations as operations
from mrad_client._call import Call
from mrad_client._operations import EntryOptions, Label, ScoreOptions
from mrad_client._settings import http_arguments
from mrad_client.images import ImageInput
from mrad_client.retry import Attempts, Retry
from mrad_client.types import Bank, Calibration, Entry, EntryPage, Removed, Result, Scores

T = TypeVar("T")


class Client:
    """A server, from here. Keep one for the life of a program: it reuses connections.

    Safe to share between threads. Use as a context manager, or `close()` it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        retry: Retry | None = None,
        max_connections: int = 32,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`base_url` and `api_key` default to MRAD_URL and MRAD_API_KEY; timeout in seconds."""
        arguments = http_arguments(base_url, api_key, timeout, max_connections)
        self._http = httpx.Client(**arguments, transport=transport)
        self._retry = retry or Retry()
        self._sleep = sleep

    def score(self, images: Iterable[ImageInput], **options: Unpack[ScoreOptions]) -> Scores:
        """Judge images; one result for each, in order. A bad image, or a path that cannot be
        read, spoils its own result only.

        Options: `threshold` (a raw score) or `target_fpr` (share of good parts that may be
        stopped) for the verdict; `map` for how maps come back; `evidence` for the number of nearest
        memory regions named at each level; `fields` to ask for less.
        """
        return self._send(operations.score(images, options))

    def score_image(self, image: ImageInput, **options: Unpack[ScoreOptions]) -> Result:
        """Judge one image; raises what is wrong with it. Options as for `score`."""
        return operations.only(self.score([image], **options))

    def bank(self, object: str | None = None) -> Bank:
        """The memory in use; `object`: what it holds of one product, and its thresholds."""
        return self._send(operations.bank(object))

    def activate_bank(self, name: str) -> Bank:
        """Switch to another bank of the server; requests in flight finish on the old one."""
        return self._send(operations.activate_bank(name))

    def calibrate_bank(
        self,
        name: str,
        *,
        rule: Literal["f1", "fpr"] | None = None,
        target_fpr: float | None = None,
        progress: Callable[[Calibration], None] = lambda job: None,
    ) -> Calibration:
        """Choose a bank's thresholds again on the images that its memory holds, each left out.

        Args:
            name: the bank, loaded.
            rule: `f1`, or `fpr` for a rate of false alarms; None: `fpr` with a rate, else by the memory.
            target_fpr: that rate; the server's default for None.
            progress: called now and then with the job: `done` of `images`.

        Raises `CalibrationError` where the memory does not allow it; nothing was changed then.
        """
        job = self._send(operations.calibrate_bank(name, rule, target_fpr))
        while job.state in ("waiting", "running"):
            progress(job)
            self._sleep(0.2)
            job = self._send(operations.calibrating(name))
        return operations.calibrated(job)

    def add_entry(self, image: ImageInput, label: Label, **options: Unpack[EntryOptions]) -> Entry:
        """Teach the memory one labelled image; durable and in force when this returns.

        Options: `mask` marks the defect (> 0), at the image's size; `source`, `object_name`,
        `defect`, `tags` are for people. Retries reuse the idempotency key, so nothing is added
        twice; give `idempotency_key` to be safe across restarts of your program too.
        """
        return self._send(operations.add_entry(image, label, options))

    def remove_entry(self, entry_id: str) -> Removed:
        """Take an entry out of the memory; says what that changed."""
        return self._send(operations.remove_entry(entry_id))

    def entry_page(self, cursor: str | None = None, limit: int = 100) -> EntryPage:
        """One page of the memory's entries."""
        return self._send(operations.entries(cursor, limit))

    def entries(self, page_size: int = 100) -> Iterator[Entry]:
        """All entries of the memory, fetched page by page."""
        page = self.entry_page(limit=page_size)
        yield from page.entries
        while page.next_cursor:
            page = self.entry_page(page.next_cursor, page_size)
            yield from page.entries

    def ready(self) -> bool:
        """Whether the server takes work. Raises when there is no server at all."""
        call = operations.ready()
        outcome = self._try(call)
        not_yet = isinstance(outcome, httpx.Response) and outcome.status_code == 503
        return False if not_yet else call.conclude(outcome, tries=1)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        if call.settled is not None:
            return call.settled
        attempts = Attempts(self._retry)
        while True:
            outcome = self._try(call)
            wait = attempts.wait(outcome)
            if wait is None:
                return call.conclude(outcome, attempts.made)
            self._sleep(wait)

    def _try(self, call: Call[T]) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(**call.arguments())
        except httpx.TransportError as error:
            return error
