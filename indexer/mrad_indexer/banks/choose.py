"""Which entries of a memory are meant: by product, tag, or where they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from operator import eq
from typing import Any

import numpy as np
import numpy.typing as npt

from mrad.errors import DataError
from mrad.memory.bank import MemoryBank

SHOWN = 8


@dataclass(frozen=True)
class Selection:
    """Entries that fit one of each kind that is given."""

    objects: Sequence[str] = ()
    tags: Sequence[str] = ()
    sources: Sequence[str] = ()
    """Patterns as `line-2/*`; a folder's name alone stands for all below it."""

    def rows(self, bank: MemoryBank) -> npt.NDArray[np.bool_]:
        """bool [entries]. Raises `DataError` where nothing is asked, or a word fits no entry."""
        if not (self.objects or self.tags or self.sources):
            raise DataError("say which images: --object, --tag or --source, each may be repeated")
        chosen = np.ones(len(bank.entries), dtype=bool)
        for what, wanted, held, fits in (
            ("has the object", self.objects, [(e.object_name,) for e in bank.entries], eq),
            ("has the tag", self.tags, [e.tags for e in bank.entries], eq),
            ("came from", self.sources, [(e.source,) for e in bank.entries], _fits),
        ):
            for word in wanted:
                if not any(fits(own, word) for names in held for own in names):
                    raise DataError(f"no image {what} {word!r}; there are {_listed(held)}")
            if wanted:
                found = [any(fits(own, w) for own in names for w in wanted) for names in held]
                chosen &= np.array(found)
        if not chosen.any():
            raise DataError("no image fits all that was said")
        return chosen

    def as_json(self) -> dict[str, Any]:
        """For the bank's metadata."""
        named = {"objects": self.objects, "tags": self.tags, "sources": self.sources}
        return {name: list(words) for name, words in named.items() if words}


def _fits(source: str, pattern: str) -> bool:
    folder = pattern.rstrip("/") + "/"
    return source == pattern or source.startswith(folder) or fnmatchcase(source, pattern)


def _listed(held: Sequence[tuple[str, ...]]) -> str:
    counts = Counter(word for own in held for word in own if word).most_common()
    shown = ", ".join(word for word, _ in counts[:SHOWN])
    return (shown + (", .." if len(counts) > SHOWN else "")) or "none"


def part_of(
    bank: MemoryBank, rows: npt.NDArray[np.bool_], name: str, said: dict[str, Any]
) -> MemoryBank:
    """The memory of some entries, with what is known of the build of all.

    Args:
        rows: bool [entries], those that stay.
        name: of the whole, for people.
        said: how they were chosen, kept.
    """
    chosen = bank.select(rows)
    build = dict(bank.metadata.get("build") or {})
    origin = build.get("origin")
    sources = {entry.source for entry in chosen.entries}
    for name_of_whole in ("fingerprint", "joined"):  # it is not what such a build would make
        build.pop(name_of_whole, None)
    build |= {
        "origin": None if origin is None else {**origin, "held": True},
        "part_of": {
            "bank": name,
            "digest": bank.digest,
            "entries": len(bank.entries),
            "chosen": said,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        },
        "too_small": [item for item in build.get("too_small", []) if item in sources],
        "doubtful": [item for item in build.get("doubtful", []) if item.get("source") in sources],
        "skipped": [],
    }
    return replace(chosen, metadata={**chosen.metadata, "build": build})
