"""The memory's own images as they are judged, each left out: from what the memory holds of them.

No picture is read and nothing is encoded, and heads that follow lessons measure only what changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from mrad.calibration import Calibration, OwnScore
from mrad.detector import Detector
from mrad.errors import CalibrationError, LayoutError
from mrad.heads import HeadOutput
from mrad.heads.good_parts.sums import stored_features
from mrad.heads.nn import NNHead
from mrad.heads.tf import TFHead
from mrad.maps import anomaly_map, at_shape, fuse, top_mean
from mrad.memory.bank import MemoryBank
from mrad.retrieval.good_patches import Views
from mrad.thresholds.calibrate import PIXELS_KEPT, Scored
from mrad.thresholds.near_duplicates import sketches

BATCH = 16
"""Images looked at together."""
MOST = 300_000_000
"""Products of patches and keys up to which a head that measures everything again is asked."""
MAP_PIXELS = 250_000
"""Of a picture that is cut, to find its largest map value in."""
Progress = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


@torch.inference_mode()
def score_own(
    detector: Detector, *, thorough: bool = False, seed: int = 0, progress: Progress | None = None
) -> Scored:
    """Score every image of which the memory holds the patches, as `mrad calibrate` does.

    Args:
        detector: its memory and its head.
        thorough: sample map values too, and find the nearest patch keys: what a calibration needs, and
            following a lesson does not.
        seed: of what is sampled.
        progress: see `Progress`.

    Raises `CalibrationError` where the memory holds no patches, or too many for its head.
    """
    bank, grid = detector.bank, detector.encoder.grid
    if not len(bank.local):
        raise CalibrationError(
            "the memory does not hold the patches of its images, as banks built before 0.2.0 and "
            "imported ones do not, so they cannot be judged again; calibrate with images: mrad "
            "calibrate BANK IMAGES"
        )
    views = Views.of(bank.local, grid**2)
    output = _output(detector, views)
    whole: dict[int, list[int]] = {}
    for view, row in enumerate(views.rows.tolist()):
        whole.setdefault(row, []).append(view)
    scored = Scored()
    if bank.layout.plain:
        _score_whole(
            detector, views, output, scored, np.random.default_rng(seed), thorough, progress
        )
    else:
        whole = _score_cut(detector, whole, views, output, scored, progress)
    if not scored.score:
        raise CalibrationError(
            "the memory holds every tile of none of its images, so none can be judged again; calibrate "
            "with images: mrad calibrate BANK IMAGES"
        )
    scored.source = [bank.entries[row].source for row in scored.own_row]
    first = [places[0] for places in whole.values()]
    _find_similar(detector, views, output, first, scored, thorough)
    return scored


def own_scores(bank: MemoryBank, scored: Scored) -> dict[str, OwnScore]:
    """By entry, for a calibration to keep."""
    return {
        bank.entries[row].entry_id: OwnScore(int(bad), score, 0.0 if peak is None else peak)
        for row, bad, score, peak in zip(
            scored.own_row, scored.anomalous, scored.score, scored.peak
        )
    }


def memory_of(bank: MemoryBank) -> str:
    """Names what a memory holds: the same entries give the same name."""
    digest = hashlib.sha256()
    for entry_id in sorted(entry.entry_id for entry in bank.entries):
        digest.update(entry_id.encode() + b"\n")
    return digest.hexdigest()[:16]


def anchored(calibration: Calibration, bank: MemoryBank, scored: Scored) -> Calibration:
    """The calibration with the scores of the memory's own images beside it, for lessons to follow."""
    kept = {"own": own_scores(bank, scored), "follows": memory_of(bank)}
    return calibration.model_copy(update=kept)


def _output(detector: Detector, views: Views) -> HeadOutput:
    head, bank = detector.head, detector.bank
    if isinstance(head, (TFHead, NNHead)):
        found: HeadOutput = head.left_out_output(views)
        return HeadOutput(found.patch.cpu(), found.image.cpu())
    cells = views.normal.shape[1]
    if len(views) * cells * len(bank.patch) > MOST:
        raise CalibrationError(
            f"head {head.name!r} would measure all {len(views)} images of this memory again after each "
            "lesson, which takes too long; its thresholds stay until the bank is calibrated: mrad "
            "calibrate BANK"
        )
    stored = stored_features(bank, views, detector.encoder.device)
    patch, image = [], []
    for start in range(0, len(views), BATCH):
        chosen = range(start, min(start + BATCH, len(views)))
        output = head(stored(chosen), views.rows[start : start + BATCH])
        patch.append(output.patch.cpu())
        image.append(output.image.cpu())
    return HeadOutput(torch.cat(patch), torch.cat(image))


def _score_whole(
    detector: Detector,
    views: Views,
    output: HeadOutput,
    scored: Scored,
    rng: np.random.Generator,
    thorough: bool,
    progress: Progress | None,
) -> None:
    """Pictures that are looked at whole: one view each."""
    side, count = detector.encoder.image_size, len(views)
    grid = detector.encoder.grid
    place = ((torch.arange(side) + 0.5) * grid / side).long()
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        maps = anomaly_map(output.patch[part], side, detector.sigma)
        tops = top_mean(maps, detector.top)
        scored.score += fuse(tops, output.image[part], detector.fusion).tolist()
        scored.whole += output.image[part].tolist()
        scored.top += tops.tolist()
        scored.peak += maps.flatten(1).amax(dim=1).tolist()
        scored.own_row += views.rows[part].tolist()
        scored.anomalous += (~views.good[part]).tolist()
        if thorough:
            for view, shown in enumerate(maps, start):
                for truth, cells in ((False, views.normal), (True, views.anomalous)):
                    known = cells[view].view(grid, grid)[place][:, place]
                    values = shown[known].numpy().astype(np.float64)
                    scored.sample(view, truth, values, rng, PIXELS_KEPT)
        if progress is not None:
            progress(part.stop, count)


def _score_cut(
    detector: Detector,
    whole: dict[int, list[int]],
    views: Views,
    output: HeadOutput,
    scored: Scored,
    progress: Progress | None,
) -> dict[int, list[int]]:
    """Pictures that are cut into tiles or parts; returns those of which every tile is held."""
    bank, found = detector.bank, {}
    nothing = torch.zeros(1), torch.zeros(output.patch.shape[1], 1)
    for done, (row, own) in enumerate(whole.items(), 1):
        entry = bank.entries[row]
        try:
            places = bank.layout.places((entry.width, entry.height))
        except LayoutError:
            continue
        held = {int(views.tiles[view]): view for view in own}
        if any(tile.number not in held for tile in places.tiles):
            continue
        canvas = detector.canvas(places)
        for tile in places.tiles:
            view = held[tile.number]
            level = detector.tile_level(places, tile, float(output.image[view]))
            canvas.add(tile, output.patch[view], level, nothing)
        shown, counted = canvas.map(MAP_PIXELS), places.counted()
        if counted is not None:
            shown = shown[at_shape(counted, shown.shape)]
        scored.score.append(max(part.score for part in canvas.parts()))
        scored.peak.append(float(shown.max()) if shown.size else 0.0)
        scored.own_row.append(row)
        scored.anomalous.append(bool(entry.label))
        found[row] = own
        if progress is not None:
            progress(done, len(whole))
    return found


def _find_similar(
    detector: Detector,
    views: Views,
    output: HeadOutput,
    first: list[int],
    scored: Scored,
    thorough: bool,
) -> None:
    """What tells doubles, and how near the nearest key of another entry is: what the service compares
    new images with."""
    stored = stored_features(detector.bank, views, detector.encoder.device)
    sketched = detector.bank.layout.plain and not isinstance(
        detector.head, NNHead
    )  # it knows doubles
    for start in range(0, len(first), BATCH):
        chosen = first[start : start + BATCH]
        own = views.rows[chosen]
        features = stored(chosen)
        scored.sketch += sketches(features) if sketched else [None] * len(chosen)
        near, _ = detector.retriever("image").nearest(features.class_query(), 1, own)
        scored.similarity_image += near[:, 0].tolist()
        if thorough:
            cells = output.patch[chosen].argmax(dim=1)
            asked = features.patch_query()[torch.arange(len(chosen)), cells]
            near, _ = detector.retriever("patch").nearest(asked, 1, own)
            scored.similarity_patch += near[:, 0].tolist()
