"""Pillow's one switch for files that end early holds for the whole process; here it holds for one file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ImageFile


class Switch:
    """Many may decode strictly at once; whoever takes damaged files decodes alone."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._strict = 0
        self._lenient = False

    @contextmanager
    def strict(self) -> Iterator[None]:
        """Pillow refuses what ends early."""
        with self._free:
            self._free.wait_for(lambda: not self._lenient)
            self._strict += 1
        try:
            yield
        finally:
            with self._free:
                self._strict -= 1
                self._free.notify_all()

    @contextmanager
    def lenient(self) -> Iterator[None]:
        """Within `strict`: Pillow takes what there is, while no other thread decodes."""
        with self._free:
            self._strict -= 1
            self._free.notify_all()
            self._free.wait_for(lambda: not self._lenient and not self._strict)
            self._lenient = True
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            with self._free:
                self._lenient = False
                self._strict += 1
                self._free.notify_all()


SWITCH = Switch()
