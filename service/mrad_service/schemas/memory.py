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


class Flip(BaseModel):
    """An image of the memory that is judged otherwise since the lesson, left out itself."""

    entry_id: str
    label: Label = Field(description="what it was taught as")
    source: str
    before: Label = Field(description="its verdict before the lesson")
    after: Label = Field(description="its verdict now")
    thumbnail: str | None = Field(description="where its thumbnail can be had, null without one")


class LessonEffect(BaseModel):
    """What a lesson did to the bank's thresholds, and to verdicts of the memory's own images."""

    thresholds: Literal["follow", "stay", "pending"] = Field(
        description="`follow`: renewed with the lesson, in force and on disk; `stay`: see `why`; "
        "`pending`: not done within 10 seconds, they come into force by themselves"
    )
    why: str = Field(
        description="why the thresholds stay as they are, or keep less than was asked for; else empty"
    )
    threshold_before: float | None
    threshold: float | None = Field(description="of the raw score, now")
    pixel_threshold: float | None = Field(description="of map values, now")
    false_alarms: float | None = Field(
        description="the share of good images to come that are expected at or above the threshold"
    )
    false_alarms_range: tuple[float, float] | None = Field(description="its 95 % interval")
    judged: int = Field(description="images of the memory that were judged again, each left out")
    flipped: int = Field(description="how many of those are judged otherwise than before")
    flips: list[Flip] = Field(description="the first 50 of them")


class MemoryAdded(BaseModel):
    """The answer to an addition. It is given once the entry is on disk."""

    entry: MemoryEntry
    repeated: bool = Field(description="true when this idempotency key had added it before")
    entries: int = Field(description="in the memory now")
    note: str | None = Field(description="what the image could not teach; null where all is well")
    warnings: list[str] = Field(
        default=[], description="`code: text` for what was assumed or is odd about image or mask"
    )
    effect: LessonEffect | None = Field(
        description="what it changed; null for a repeat, which changes nothing"
    )


class MemoryRemoved(BaseModel):
    """The answer once an entry is forgotten, on disk too."""

    entry_id: str
    entries: int = Field(description="in the memory now")
    effect: LessonEffect | None = Field(description="what it changed")


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
