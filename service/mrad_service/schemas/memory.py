"""What `/v1/memory` answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mrad.memory.entry import Entry
from mrad.types import ANOMALOUS

Label = Literal["normal", "anomalous"]


class MemoryEntry(BaseModel):
    """One labelled image of the memory."""

    entry_id: str = Field(examples=["01990e5c-7d1e-7c3a-9a56-0f6f0a3b2c1d"])
    label: Label
    source: str
    object_name: str
    defect: str
    tags: list[str]
    width: int
    height: int
    added_at: str = Field(examples=["2026-01-02T03:04:05Z"])
    added_by: str
    thumbnail: str | None = Field(description="where its thumbnail can be had, null without one")

    @classmethod
    def of(cls, entry: Entry, thumbnail: str | None) -> MemoryEntry:
        """`thumbnail`: the address of the JPEG."""
        return cls(
            entry_id=entry.entry_id,
            label=label_name(entry.label),
            source=entry.source,
            object_name=entry.object_name,
            defect=entry.defect,
            tags=list(entry.tags),
            width=entry.width,
            height=entry.height,
            added_at=entry.added_at,
            added_by=entry.added_by,
            thumbnail=thumbnail,
        )


class MemoryAdded(BaseModel):
    """The answer to an addition. It is given once the entry is on disk."""

    entry: MemoryEntry
    repeated: bool = Field(description="true when this idempotency key had added it before")
    entries: int = Field(description="in the memory now")
    note: str | None = Field(description="what the image could not teach; null where all is well")
    warnings: list[str] = Field(
        default=[], description="`code: text` for what was assumed or is odd about image or mask"
    )


class MemoryPage(BaseModel):
    """A page of entries, newest first."""

    entries: list[MemoryEntry]
    next_cursor: str | None = Field(
        description="pass as `cursor` for the next page; null at the end"
    )
    total: int


def label_name(label: int) -> Label:
    """0, 1 -> its name."""
    return "anomalous" if label == ANOMALOUS else "normal"
