"""Encoded images and tiles -> predictions, in halves where a device fails; what is out is told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mrad.encoder.encoder import Features
from mrad.errors import MRADError
from mrad.tiled import FULL
from mrad.types import Prediction
from mrad_service.errors import InternalError
from mrad_service.scheduler.batch import Group
from mrad_service.scheduler.queue import BLANK, Item, Outcome
from mrad_service.scheduler.retry import in_halves
from mrad_service.scheduler.tiles import TileItem


def finish_images(
    group: Group, alive: Sequence[int], evidence: int
) -> Iterator[tuple[Sequence[Item], list[Prediction] | MRADError]]:
    """Predictions of those of a group's images that are `alive` (rows), part by part."""
    items = [group.items[row] for row in alive]
    features = _chosen(group, alive)
    rows = {id(item): row for row, item in enumerate(items)}
    detector, maps = items[0].job.model.detectors[group.device], items[0].job.wanted.maps

    def run(part: Sequence[Item]) -> list[Prediction]:
        start = rows[id(part[0])]
        sizes = [item.decoded.size for item in part if item.decoded]
        own = features[start : start + len(part)]
        return list(detector.finish(own, sizes, maps=maps, evidence=evidence))

    yield from in_halves(items, run, detector.encoder.device)


def draw_tiles(
    group: Group, alive: Sequence[int]
) -> Iterator[tuple[Sequence[TileItem], MRADError | None]]:
    """Draw those of a group's tiles that are `alive` (rows), each onto its canvas; what failed is told.

    A tile that is drawn twice, for a batch failed and ran again in halves, is drawn over.
    """
    items = [item for row in alive if isinstance(item := group.items[row], TileItem)]
    features = _chosen(group, alive)
    rows = {id(item): row for row, item in enumerate(items)}
    detector = items[0].job.model.detectors[group.device]

    def run(part: Sequence[TileItem]) -> None:
        start = rows[id(part[0])]
        own = features[start : start + len(part)]
        detector.draw([(item.canvas, item.tile) for item in part], own)

    yield from in_halves(items, run, detector.encoder.device)


def conclude(item: TileItem, device: int, evidence: int) -> Prediction | MRADError:
    """The prediction of the image whose last tile this is."""
    wanted, detector = item.job.wanted, item.job.model.detectors[device]
    most = None if wanted.full_map else FULL

    def run(_: Sequence[TileItem]) -> Prediction:
        return detector.conclude(item.canvas, wanted.maps, evidence, map_pixels=most)

    ((_, result),) = in_halves([item], run, detector.encoder.device)
    return result


def outcome_of(item: Item, prediction: object) -> Outcome:
    """What the job makes of an image's prediction; whatever fails there is an outcome too."""
    try:
        image = item.decoded.image if item.decoded else BLANK
        if item.decoded and isinstance(prediction, Prediction):
            prediction = item.decoded.finished(prediction)
        return item.job.finish(item.index, prediction, image)  # type: ignore[arg-type]
    except MRADError as error:
        return error
    except Exception as error:
        failed = InternalError(f"the result could not be written: {error!r}")
        failed.__cause__ = error
        return failed


def _chosen(group: Group, rows: Sequence[int]) -> Features:
    if len(rows) == len(group.items):
        return group.features
    return Features.cat([group.features[row : row + 1] for row in rows])
