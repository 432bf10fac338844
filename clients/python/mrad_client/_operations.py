"""Every call of the API, built here once for both clients."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from mrad_client._call import Call
from mrad_client.errors import CalibrationError, UnreadableFileError
from mrad_client.images import ImageInput, Upload, upload
from mrad_client.types import (
    Bank,
    Calibration,
    Entry,
    EntryPage,
    MapFormat,
    Model,
    Removed,
    Result,
    Scores,
)

Label = Literal["normal", "anomalous"]
M = TypeVar("M", bound=Model)


class ScoreOptions(TypedDict, total=False):
    """What may be said about a scoring request."""

    threshold: float | None
    """Raw score from which an image is anomalous."""
    target_fpr: float | None
    """Instead of `threshold`: share of good parts that may be stopped (needs a calibration)."""
    map: MapFormat
    """How maps come back: none, png16, npy, overlay, rle or polygons."""
    evidence: int
    """Number of nearest memory regions to name, for each level."""
    fields: Sequence[str] | None
    """Ask for these parts of a result only; warnings come in any case."""
    roi: Mapping[str, Any] | None
    """Region of interest: `size` [width, height] and `box` or `polygons` (and `holes`)."""
    object: str | None
    """Product: judged by what the memory holds of it alone; by all of it by default."""
    parts: Mapping[str, Any] | None
    """Named parts, each with a score and verdict of its own: `size` and `parts`, name -> `box` or
    `polygons`, as in `parts.json`; `align` true: images are aligned with the bank's reference first."""
    tile_closely: float | None
    """Where the bank cuts images: look at all of one coarsely, then closely at this share of its tiles."""
    full_map: bool
    """Maps of images above 32 megapixels at full size, instead of scaled down to that."""
    bit_depth: int | None
    """Bits that count in images that do not state their depth, as 12 of a 16-bit PNG or array."""
    strict_input: bool | None
    """Refuse images with warnings instead of judging them."""


class EntryOptions(TypedDict, total=False):
    """What may be said about a new entry of the memory."""

    mask: ImageInput | None
    """Marks the defect, at the image's size."""
    mask_orientation: Literal["auto", "upright", "stored"]
    """How the mask lies where the image has an orientation tag."""
    source: str
    """Where the image came from, for people; its file name when not given."""
    object_name: str
    defect: str
    tags: Sequence[str]
    idempotency_key: str
    """The same key never adds twice. Without one, a new key protects the retries of this call."""


def score(images: Iterable[ImageInput], options: ScoreOptions) -> Call[Scores]:
    """`POST /v1/score`."""
    if isinstance(images, str | bytes):
        raise TypeError("score takes a list of images; for one image use score_image")
    files: list[Upload] = []
    unreadable: dict[int, Result] = {}
    for index, image in enumerate(images):
        try:
            files.append(upload(image, f"image-{index}.png"))
        except UnreadableFileError as error:
            name = Path(image).name if isinstance(image, str | Path) else ""
            unreadable[index] = Result.unreadable(index, name, error)
    if not files and not unreadable:
        raise ValueError("no image to score")

    def whole(judged: Scores) -> Scores:
        """The results of what was sent, and of what could not be, in the caller's order."""
        if len(judged) != len(files):
            raise ValueError(f"images sent: {len(files)}, results that came: {len(judged)}")
        if not unreadable:
            return judged
        sent = iter(judged.results)
        results = [
            unreadable.get(index) or next(sent).model_copy(update={"index": index})
            for index in range(len(files) + len(unreadable))
        ]
        return judged.model_copy(update={"results": results})

    fields = options.get("fields")
    roi, parts = options.get("roi"), options.get("parts")
    given = {
        **options,
        "fields": ",".join(fields) if fields else None,
        "roi": json.dumps(roi) if roi else None,
        "parts": json.dumps(parts) if parts else None,
    }
    return Call(
        "POST",
        "/v1/score",
        lambda response: whole(Scores.model_validate(response.json())),
        data={name: _plain(value) for name, value in given.items() if value is not None},
        files=[("images", file) for file in files],
        settled=None if files else whole(Scores(results=[])),
    )


def _as(kind: type[M]) -> Callable[[httpx.Response], M]:
    """Reads an answer's JSON."""
    return lambda response: kind.model_validate(response.json())


def _plain(value: object) -> object:
    """As a form field says it."""
    return str(value).lower() if isinstance(value, bool) else value


def only(scores: Scores) -> Result:
    """The one result of a request with one image; raises its error."""
    return scores[0].raise_for_error()


def bank(product: str | None = None) -> Call[Bank]:
    """`GET /v1/bank`."""
    return Call(
        "GET",
        "/v1/bank",
        _as(Bank),
        params={} if product is None else {"object": product},
    )


def activate_bank(name: str) -> Call[Bank]:
    """`POST /v1/banks/{name}/activate`."""
    return Call("POST", f"/v1/banks/{_segment(name)}/activate", _as(Bank))


def add_entry(image: ImageInput, label: Label, options: EntryOptions) -> Call[Entry]:
    """`POST /v1/memory/entries`."""
    if label not in ("normal", "anomalous"):
        raise ValueError(f"label is 'normal' or 'anomalous', not {label!r}")
    file = upload(image)
    files = [("image", file)]
    mask = options.get("mask")
    if mask is not None:
        files.append(("mask", upload(mask, "mask.png")))
    data = {
        "label": label,
        "source": options.get("source", file[0]),
        "object_name": options.get("object_name"),
        "defect": options.get("defect"),
        "mask_orientation": options.get("mask_orientation"),
        "tags": list(options.get("tags", ())),
    }
    return Call(
        "POST",
        "/v1/memory/entries",
        _added,
        data={name: value for name, value in data.items() if value},
        files=files,
        headers={"Idempotency-Key": options.get("idempotency_key") or str(uuid.uuid4())},
    )


def _added(response: httpx.Response) -> Entry:
    answer = response.json()
    about = {
        name: answer[name]
        for name in ("note", "warnings", "effect")
        if answer.get(name) is not None
    }
    return Entry.model_validate({**answer["entry"], **about})


def remove_entry(entry_id: str) -> Call[Removed]:
    """`DELETE /v1/memory/entries/{id}`."""
    gone = Removed(entry_id=entry_id)
    return Call(
        "DELETE",
        f"/v1/memory/entries/{_segment(entry_id)}",
        lambda response: Removed.model_validate(response.json()) if response.content else gone,
        missing=gone,
    )


def calibrate_bank(name: str, rule: str | None, target_fpr: float | None) -> Call[Calibration]:
    """`POST /v1/banks/{name}/calibrate`."""
    asked = {"rule": rule, "target_fpr": target_fpr}
    return Call(
        "POST",
        f"/v1/banks/{_segment(name)}/calibrate",
        _as(Calibration),
        params={key: value for key, value in asked.items() if value is not None},
    )


def calibrating(name: str) -> Call[Calibration]:
    """`GET /v1/banks/{name}/calibrate`."""
    return Call("GET", f"/v1/banks/{_segment(name)}/calibrate", _as(Calibration))


def calibrated(job: Calibration) -> Calibration:
    """Itself once it is done. Raises `CalibrationError`."""
    if job.state == "failed":
        raise CalibrationError(409, "calibration", job.why)
    return job


def entries(cursor: str | None = None, limit: int = 100) -> Call[EntryPage]:
    """`GET /v1/memory/entries`, one page."""
    return Call(
        "GET",
        "/v1/memory/entries",
        _as(EntryPage),
        params={"limit": limit} | ({"cursor": cursor} if cursor else {}),
    )


def ready() -> Call[bool]:
    """`GET /health/ready`, asked once: a 503 is the answer, not a fault."""
    return Call("GET", "/health/ready", lambda response: True)


def _segment(name: str) -> str:
    """A name as one path segment, whatever stands in it."""
    if not name:
        raise ValueError("an empty name")
    return quote(name, safe="")
