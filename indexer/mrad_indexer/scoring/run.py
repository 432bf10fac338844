"""Files in, journal rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mrad.detector import Decoded
from mrad.errors import ImageError
from mrad.types import Prediction
from mrad_indexer.ahead import ahead
from mrad_indexer.journal import Journal, Row
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import MapFormat, draw, encode_map, jpeg, place, write
from mrad_indexer.scoring.sources import Item


@dataclass(frozen=True)
class Outputs:
    """What is written for each image, below `folder`."""

    folder: Path
    overlays: bool = True
    maps: MapFormat = "none"
    tag: str = ""
    """Comes after each picture's name."""

    def asked(self) -> Row:
        """For the journal."""
        return {"overlays": self.overlays, "maps": self.maps}


@dataclass(frozen=True)
class Opened:
    """A file decoded, or the row of its error."""

    item: Item
    stamp: str
    decoded: Decoded | None
    error: Row | None = None


def score(
    judge: Judge,
    items: Sequence[Item],
    journal: Journal,
    outputs: Outputs,
    *,
    batch_size: int = 8,
    report: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> None:
    """Score the items that the journal does not have, a batch at a time.

    Files are decoded ahead in threads, pictures of one batch are written while the next is encoded,
    and rows are journalled once their pictures stand. `report` is called with the rows of a batch.
    """
    todo = [item for item in items if not journal.has(item.name, item.stamp())]
    opened = ahead(partial(open_item, judge), todo, depth=2 * batch_size)
    with ThreadPoolExecutor(2) as pool:
        before: list[Future[Row]] = []
        for batch in _batches(opened, batch_size):
            rows = judge_batch(judge, batch)
            now = [pool.submit(finish_row, judge, outputs, *row) for row in rows]
            _keep(journal, before, report)
            before = now
        _keep(journal, before, report)


def _keep(
    journal: Journal, futures: Iterable[Future[Row]], report: Callable[[Sequence[Row]], None]
) -> None:
    rows = [future.result() for future in futures]
    journal.append(rows)
    report(rows)


def open_item(judge: Judge, item: Item) -> Opened:
    """Decode in any thread. The stamp is taken first, so that a later change is seen."""
    stamp = item.stamp()
    try:
        return Opened(item, stamp, judge.detector.decode(item.path))
    except ImageError as error:
        return Opened(item, stamp, None, error_row(item, stamp, error.code, str(error)))


def judge_batch(
    judge: Judge, batch: Sequence[Opened]
) -> list[tuple[Row, Opened, Prediction | None]]:
    """Rows of a batch in order, without the places of their pictures yet."""
    decoded = [item.decoded for item in batch if item.decoded is not None]
    predictions: Iterator[Prediction] = iter(())
    if decoded:
        features = judge.detector.encode(decoded)
        predictions = iter(judge.detector.finish(features, [item.size for item in decoded]))
    rows: list[tuple[Row, Opened, Prediction | None]] = []
    for item in batch:
        if item.error is not None:
            rows.append((item.error, item, None))
            continue
        prediction = next(predictions)
        row = {
            "name": item.item.name,
            "stamp": item.stamp,
            "status": "ok",
            "score": prediction.score,
            "class_score": prediction.class_score,
            "verdict": judge.verdict(prediction.score),
            "threshold": judge.threshold,
            "probability": judge.probability(prediction.score),
        }
        rows.append((row, item, prediction))
    return rows


def finish_row(
    judge: Judge, outputs: Outputs, row: Row, opened: Opened, prediction: Prediction | None
) -> Row:
    """Write the pictures; the row with where they are, relative to the outputs' folder."""
    values = None if prediction is None else prediction.anomaly_map
    if values is None or opened.decoded is None:
        return row
    paths: dict[str, Any] = {}
    if outputs.maps != "none":
        data, suffix = encode_map(values, outputs.maps)
        paths["map"] = _save(outputs, "maps", row["name"], data, suffix)
    if outputs.overlays:
        data = jpeg(draw(opened.decoded.image, values, judge))
        paths["overlay"] = _save(outputs, "overlays", row["name"], data, ".jpg")
    return row | paths


def _save(outputs: Outputs, kind: str, name: str, data: bytes, suffix: str) -> str:
    path = place(outputs.folder / kind, name, outputs.tag + suffix)
    write(path, data)
    return path.relative_to(outputs.folder).as_posix()


def error_row(item: Item, stamp: str, code: str, text: str) -> Row:
    """The row of a file that could not be scored."""
    return {"name": item.name, "stamp": stamp, "status": "error", "code": code, "error": text}


def _batches(stream: Iterator[Opened], size: int) -> Iterator[list[Opened]]:
    while batch := list(islice(stream, size)):
        yield batch
