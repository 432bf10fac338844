"""Judging files through a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio.to_thread

from mrad_client._operations import ScoreOptions
from mrad_client._pictures import open_picture
from mrad_client.async_client import AsyncClient
from mrad_client.batch.pace import Pace
from mrad_client.batch.pictures import Draw, jpeg, mark_strongest, overlay
from mrad_client.batch.runner import Judged
from mrad_client.errors import InputError, UnreadableFileError
from mrad_client.images import upload
from mrad_client.types import Map, Result


@dataclass
class HTTPTransport:
    """A server, asked for scores, and for maps where pictures are wanted."""

    client: AsyncClient
    """One that does not retry by itself: the run does."""
    threshold: float | None = None
    target_fpr: float | None = None
    product: str | None = None
    """Judged by what the memory holds of it alone."""
    pictures: bool = False
    colours: tuple[float, float] | None = None
    """Map values of the coldest and the hottest colour; None: each map's own."""
    limit: Pace = field(default_factory=Pace)

    async def score(self, paths: Sequence[Path]) -> Sequence[Judged]:
        """See `Transport`."""
        read = await anyio.to_thread.run_sync(lambda: [_read(path) for path in paths])
        files = [data for data in read if isinstance(data, bytes)]
        options: ScoreOptions = {
            "threshold": self.threshold,
            "target_fpr": self.target_fpr,
            "object": self.product,
            "map": "png16" if self.pictures else "none",
        }
        results = iter(await self.client.score(files, **options) if files else ())
        return [
            self._judged(data, next(results)) if isinstance(data, bytes) else data for data in read
        ]

    def _judged(self, data: bytes, result: Result) -> Judged:
        if result.error is not None:
            problem = result.problem or {}
            return Judged.failed(result.error.code, problem.get("detail") or str(result.error))
        columns = {
            "status": "ok",
            "score": result.score,
            "warnings": list(result.warnings) or None,
            "calibrated_score": result.calibrated_score,
            "class_score": result.class_score,
            "verdict": result.verdict,
            "threshold": result.threshold,
            "probability": result.probability,
            "p_value": result.p_value,
        }
        if result.peak_box is not None:
            columns["peak_box"] = json.dumps(result.peak_box)
        if result.recognised is not None:
            columns["recognised"] = result.recognised.model_dump_json()
        if result.parts:
            parts = {p.name: {"score": p.score, "verdict": p.verdict} for p in result.parts}
            columns["parts"] = json.dumps(parts)
        pictures: dict[str, Draw] = {}
        if result.map is not None:
            pictures["map"] = partial(_map, result.map)
            pictures["overlay"] = partial(self._overlay, data, result)
        return Judged(columns, pictures)

    def _overlay(self, data: bytes, result: Result) -> tuple[bytes, str]:
        try:
            picture = overlay(open_picture(data), result.anomaly_map, self.colours)
        except (OSError, ValueError, SyntaxError) as error:  # the server may read more than Pillow
            raise InputError(f"no overlay: this side cannot read the image ({error})") from error
        if result.verdict == "anomalous" and result.peak_box and not result.regions:
            mark_strongest(picture, result.peak_box, picture.width)
        return jpeg(picture), ".jpg"


def _read(path: Path) -> bytes | Judged:
    try:
        return upload(path)[1]
    except UnreadableFileError as error:
        return Judged.failed(error.code, str(error), final=False)


def _map(found: Map) -> tuple[bytes, str]:
    return found.bytes(), ".png"
