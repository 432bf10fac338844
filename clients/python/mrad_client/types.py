"""What comes back: typed, immutable, open to fields that newer servers add."""

from __future__ import annotations

import base64
import io
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from PIL import Image

from mrad_client._pictures import open_picture
from mrad_client.errors import (
    APIError,
    UnexpectedResponseError,
    UnreadableFileError,
    api_error,
)

FloatArray = npt.NDArray[np.float32]
MapFormat = Literal["none", "png16", "npy", "overlay", "rle", "polygons"]


class Model(pydantic.BaseModel):
    """Base of all: fields that this client does not know are kept, not refused."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Region(Model):
    """A connected part of the map above the threshold; pixels of the input image."""

    box: tuple[int, int, int, int]
    """[x_min, y_min, x_max, y_max)."""
    area: int
    peak: float
    polygon: list[tuple[float, float]] = []


class Evidence(Model):
    """A remembered region that the image resembles: why it was judged so."""

    level: Literal["image", "patch"]
    similarity: float
    label: int | str
    entry_id: str
    source: str = ""
    region: str = ""
    defect: str = ""
    query_box: tuple[int, int, int, int] | None = None
    """What of the image asked; pixels."""
    tile: tuple[int, int, int, int] | None = None
    """Where in the source image the remembered tile lies, pixels; None where it is all of it."""
    box: tuple[int, int, int, int] | None = None
    """Where in the source image the remembered patch lies, pixels; None where it is no single patch."""
    size: tuple[int, int] | None = None
    """Width, height of the source image, which `tile` and `box` refer to."""
    thumbnail: str | None = None
    """JPEG, base64."""

    def image(self) -> Image.Image | None:
        """The thumbnail, decoded; None when the server sent none."""
        return None if self.thumbnail is None else _image(base64.b64decode(self.thumbnail))


class Recognised(Model):
    """A picture that the memory was taught, shown again: its label decides the verdict."""

    entry_id: str
    label: Literal["normal", "anomalous"]
    source: str = ""
    similarity: float
    """Mean cosine of patches at the same place."""
    contradicts: list[str] = []
    """Entries that show the same picture with the other label, and were taught before."""


class Part(Model):
    """A named part of the image, judged by itself."""

    name: str
    box: tuple[int, int, int, int]
    score: float
    class_score: float
    calibrated_score: float | None = None
    """0 to 100, the threshold in force at 50."""
    verdict: str | None = None
    probability: float | None = None


class Tile(Model):
    """A tile of an image that was cut."""

    box: tuple[int, int, int, int]
    class_score: float
    peak: float
    """Its largest patch probability."""
    closely: bool = True
    """False: it was looked at coarsely only; its numbers are 0."""


class Map(Model):
    """An anomaly map as it travelled; decoded when asked for."""

    format: MapFormat
    data: Any = None
    size: tuple[int, int] | None = None
    """Width, height; less than the image's only above 32 megapixels, unless `full_map`."""

    def bytes(self) -> bytes:
        """The file behind png16, npy and overlay."""
        try:
            return base64.b64decode(self.data, validate=True)
        except (TypeError, ValueError) as error:
            raise UnexpectedResponseError(f"the {self.format} map is not base64") from error

    def array(self) -> FloatArray:
        """Raw probabilities, float32 [height, width]; from png16 (steps of 1/65535) and npy."""
        if self.format == "npy":
            values = np.load(io.BytesIO(self.bytes()), allow_pickle=False)
            return np.asarray(values, dtype=np.float32)
        if self.format == "png16":
            steps = np.asarray(_image(self.bytes()), dtype=np.float32)
            return np.divide(steps, np.float32(65535), dtype=np.float32)
        raise ValueError(f"a map asked for as {self.format} holds no values; ask for png16 or npy")


class Result(Model):
    """The judgement of one image, or why there is none."""

    index: int
    """Position in the request."""
    name: str = ""
    status: Literal["ok", "error"]
    score: float | None = None
    """Raw: its order counts."""
    calibrated_score: float | None = None
    """0 to 100, the threshold in force at 50; None without a calibration."""
    class_score: float | None = None
    verdict: str | None = None
    """`normal` or `anomalous` at the threshold in force; None where there is none."""
    threshold: float | None = None
    probability: float | None = None
    """Of a defect; None without a calibration, or where it knew good images alone."""
    p_value: float | None = None
    """Share of good parts that look as unusual, or more; no probability of a defect."""
    map: Map | None = None
    regions: list[Region] | None = None
    evidence: list[Evidence] | None = None
    peak_box: tuple[int, int, int, int] | None = None
    """The patch that is most anomalous; pixels of the input image."""
    recognised: Recognised | None = None
    """The taught picture that this one is; None where it is none."""
    parts: list[Part] | None = None
    """Where the request or the bank names parts."""
    tiles: list[Tile] | None = None
    """Of an image that was cut, where `fields` asks for them."""
    warnings: list[str] = []
    """`code: text` for what was assumed or is odd about the image: look before you trust it."""
    problem: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the image was judged."""
        return self.status == "ok"

    @classmethod
    def unreadable(cls, index: int, name: str, error: UnreadableFileError) -> Result:
        """Of a file that this side cannot read; it is not sent."""
        problem = {"code": error.code, "detail": str(error)}
        return cls(index=index, name=name, status="error", problem=problem)

    @property
    def error(self) -> APIError | UnreadableFileError | None:
        """The exception that this image's problem stands for; None when it was judged."""
        if self.ok:
            return None
        problem = self.problem or {"code": "unknown"}
        if problem.get("code") == UnreadableFileError.code:
            return UnreadableFileError(problem["detail"])
        return api_error(problem)

    def raise_for_error(self) -> Result:
        """Itself when judged; raises `error` otherwise."""
        if self.error is not None:
            raise self.error
        return self

    @cached_property
    def anomaly_map(self) -> FloatArray:
        """float32 [height, width], at the size of the input image (above 32 megapixels: scaled down,
        unless `full_map`); decoded once, on first use.

        Raises `ValueError` when no png16 or npy map was asked for.
        """
        if self.map is None:
            raise ValueError('this result has no map: ask for one with score(..., map="png16")')
        return self.map.array()

    @cached_property
    def overlay(self) -> Image.Image:
        """The heat map over the image, from `map="overlay"`."""
        if self.map is None or self.map.format != "overlay":
            raise ValueError(
                'this result has no overlay: ask for it with score(..., map="overlay")'
            )
        return _image(self.map.bytes())


class Scores(Model):
    """The answer to one request: a result for each image, in the order sent."""

    results: list[Result]
    bank: str = ""
    """The memory that judged."""

    def __iter__(self) -> Any:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> Result:
        return self.results[index]


class Flip(Model):
    """An image of the memory that is judged otherwise since a lesson."""

    entry_id: str
    label: Literal["normal", "anomalous"]
    source: str = ""
    before: Literal["normal", "anomalous"]
    after: Literal["normal", "anomalous"]
    thumbnail: str | None = None


class LessonEffect(Model):
    """What a lesson did to thresholds, and to verdicts of the memory's own images."""

    thresholds: Literal["follow", "stay", "pending"]
    """`follow`: in force and on disk; `stay`: `why` says why; `pending`: they come by themselves."""
    why: str = ""
    threshold_before: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    false_alarms: float | None = None
    """Share of good images to come that are expected at or above the threshold."""
    false_alarms_range: tuple[float, float] | None = None
    """Its 95 % interval."""
    judged: int = 0
    """Images of the memory that were judged again, each left out."""
    flipped: int = 0
    flips: list[Flip] = []
    """The first 50 of them."""


class Removed(Model):
    """What forgetting an entry changed."""

    entry_id: str
    entries: int | None = None
    effect: LessonEffect | None = None


class Entry(Model):
    """One labelled image of the memory."""

    entry_id: str
    label: Literal["normal", "anomalous"]
    source: str = ""
    object_name: str = ""
    defect: str = ""
    tags: list[str] = []
    width: int | None = None
    height: int | None = None
    added_at: datetime | None = None
    added_by: str = ""
    thumbnail: str | None = None
    """Where its thumbnail can be had, on the server."""
    note: str | None = None
    """Of `add_entry`'s answer: what the image could not teach."""
    warnings: list[str] = []
    """Of `add_entry`'s answer: what was assumed or is odd about image or mask."""
    effect: LessonEffect | None = None
    """Of `add_entry`'s answer: what the lesson changed; None for a repeat."""


class EntryPage(Model):
    """Part of the listing; `next_cursor` leads to the following part."""

    entries: list[Entry]
    next_cursor: str | None = None
    total: int | None = None


class Bank(Model):
    """The memory in use."""

    name: str = ""
    digest: str | None = None
    objects: list[str] = []
    """Products, by name; what a request may name as `object`."""
    threshold: float | None = None
    """Raw score from which an image is anomalous; None without a calibration."""
    pixel_threshold: float | None = None
    """Map value from which a pixel is."""
    map_range: tuple[float, float] | None = None
    """Map values of the coldest and the hottest colour, for every image alike."""


class Calibration(Model):
    """A calibration on the memory's own images."""

    bank: str
    state: Literal["none", "waiting", "running", "done", "failed"]
    done: int = 0
    images: int = 0
    """Of the memory, judged so far and in all; 0 before that is known."""
    why: str = ""
    threshold: float | None = None
    pixel_threshold: float | None = None


def _image(data: bytes) -> Image.Image:
    try:
        image = open_picture(data)
        image.load()
    except (OSError, SyntaxError) as error:
        raise UnexpectedResponseError(f"the server's picture cannot be decoded: {error}") from error
    return image
