"""The transport that judges files in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import Any, Self

import anyio.to_thread
from mrad_client.batch.pictures import Draw, jpeg
from mrad_client.batch.runner import Judged, Steady

from mrad.detector import Decoded
from mrad.errors import ImageError
from mrad.types import Prediction
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import MapFormat, draw, encode_map


class LocalTransport:
    """A judge as a transport. While one call is encoded, the next decodes and the last is drawn."""

    def __init__(self, judge: Judge, maps: MapFormat = "none", batch_size: int = 8) -> None:
        """
        Args:
            judge: what decides scores and verdicts.
            maps: the format of raw maps, where places for them are given.
            batch_size: images, or tiles of them, encoded at once.
        """
        self.judge, self.maps, self.batch_size = judge, maps, batch_size
        self._notes = [judge.note] if judge.note else []
        cut = judge.detector.layout.tiling is not None  # then images are large: fewer at once
        self.size = 1 if cut else batch_size
        """Files worth giving to one call; of an image that is cut, the tiles fill batches."""
        self.limit = Steady(2 if cut else 3)
        self._decoders = ThreadPoolExecutor(min(8, cpu_count() or 1))
        # One thread for all batches: torch keeps a pool of workers for each thread that computes.
        self._encoder = ThreadPoolExecutor(1)

    async def score(self, paths: Sequence[Path]) -> Sequence[Judged]:
        """See `Transport`."""
        return await anyio.to_thread.run_sync(self.judge_files, paths)

    def judge_files(self, paths: Sequence[Path]) -> list[Judged]:
        """The same for code without an event loop. Raises `MRADError` for what no file is guilty of."""
        opened = list(self._decoders.map(self._open, paths))
        decoded = [item for item in opened if isinstance(item, Decoded)]
        found = iter(self._encoder.submit(self._predict, decoded).result() if decoded else ())
        return [
            item if isinstance(item, Judged) else self._judged(item, next(found)) for item in opened
        ]

    def _predict(self, decoded: Sequence[Decoded]) -> list[Prediction]:
        return list(self.judge.detector.judge(decoded, batch_size=self.batch_size))

    def _open(self, path: Path) -> Decoded | Judged:
        try:
            return self.judge.detector.decode(path)
        except ImageError as error:
            cause = error.__cause__
            unread = (
                isinstance(cause, OSError) and cause.errno is not None
            )  # the disk's, the network's
            return Judged.failed(error.code, str(error), final=not unread)

    def _judged(self, decoded: Decoded, prediction: Prediction) -> Judged:
        prediction = self.judge.as_taught(prediction)
        score, values, taught = prediction.score, prediction.anomaly_map, prediction.recognised
        columns: dict[str, Any] = {
            "status": "ok",
            "score": score,
            "calibrated_score": self.judge.calibrated(score),
            "class_score": prediction.class_score,
            "verdict": self.judge.verdict(score),
            "threshold": self.judge.threshold,
            "probability": self.judge.probability(score),
            "p_value": self.judge.p_value(score),
            "warnings": [*prediction.warnings, *self._notes] or None,
        }
        if prediction.peak_box is not None:
            columns["peak_box"] = json.dumps(prediction.peak_box)
        if taught is not None:
            columns["recognised"] = json.dumps(taught.to_json())
        if prediction.parts:
            columns["parts"] = json.dumps(self.judge.parts(prediction))
        pictures: dict[str, Draw] = {}
        if values is not None:
            pictures["map"] = partial(encode_map, values, self.maps)
            pictures["overlay"] = partial(self._overlay, decoded, prediction)
        return Judged(columns, pictures)

    def _overlay(self, decoded: Decoded, prediction: Prediction) -> tuple[bytes, str]:
        return jpeg(draw(decoded.image, prediction, self.judge)), ".jpg"

    def close(self) -> None:
        """End the threads."""
        for pool in (self._decoders, self._encoder):
            pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
