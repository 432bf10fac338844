"""Judging files through a server."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio.to_thread
from PIL import Image

from mrad_client._operations import ScoreOptions
from mrad_client.async_client import AsyncClient
from mrad_client.batch.pace import Pace
from mrad_client.batch.pictures import Draw, jpeg, overlay
from mrad_client.batch.runner import Judged
from mrad_client.errors import InputError
from mrad_client.types import Result


@dataclass
class HTTPTransport:
    """A server, asked for scores, and for maps where pictures are wanted."""

    client: AsyncClient
    """One that does not retry by itself: the run does."""
    threshold: float | None = None
    target_fpr: float | None = None
    pictures: bool = False
    limit: Pace = field(default_factory=Pace)

    async def score(self, paths: Sequence[Path]) -> Sequence[Judged]:
        """See `Transport`."""
        read = await anyio.to_thread.run_sync(lambda: [_read(path) for path in paths])
        files = [data for data in read if isinstance(data, bytes)]
        options: ScoreOptions = {
            "threshold": self.threshold,
            "target_fpr": self.target_fpr,
            "map": "png16" if self.pictures else "none",
        }
        results = iter(await self.client.score(files, **options) if files else ())
        return [_judged(data, next(results)) if isinstance(data, bytes) else data for data in read]


def _read(path: Path) -> bytes | Judged:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return Judged.failed("unreadable_file", f"{path} cannot be read: {reason}")


def _judged(data: bytes, result: Result) -> Judged:
    if result.error is not None:
        return Judged.failed(result.error.code, result.error.detail)
    columns = {
        "status": "ok",
        "score": result.score,
        "class_score": result.class_score,
        "verdict": result.verdict,
        "threshold": result.threshold,
        "probability": result.probability,
    }
    pictures: dict[str, Draw] = {}
    if result.map is not None:
        pictures["map"] = lambda: (result.map.bytes(), ".png")
        pictures["overlay"] = partial(_overlay, data, result)
    return Judged(columns, pictures)


def _overlay(data: bytes, result: Result) -> tuple[bytes, str]:
    try:
        image = Image.open(io.BytesIO(data))
        return jpeg(overlay(image, result.anomaly_map)), ".jpg"
    except (OSError, ValueError, SyntaxError) as error:  # the server may read more than Pillow
        raise InputError(f"no overlay: this side cannot read the image ({error})") from error
