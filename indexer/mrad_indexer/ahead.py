"""Work done in threads ahead of whoever consumes it, in order and bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Generator[Result, None, None]:
    """`map(work, items)`, up to `depth` results ahead. Decoders release the GIL, so threads help.

    Whoever may stop before the end closes it (`contextlib.closing`): left to Python's collector, which may
    come by in a thread that is only just starting, it would wait there for its own threads, for ever.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
