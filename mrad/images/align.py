"""Parts that move: features of a picture are matched with those of a reference picture.

A picture is brought into the reference's frame before anything is cut from it, so that regions, tiles and
places are where they were drawn and what they show is upright; what was found goes back into the
picture's own pixels.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from mrad.errors import DataError, LayoutError
from mrad.images.masks import Mask
from mrad.types import BoolArray, Box, FloatArray, Prediction

Size = tuple[int, int]
SIDE = 512
"""Longer side of the copies that are compared, pixels."""
KEYPOINTS = 500
TOLERANCE = 2.0
"""Pixels of the copy by which a pair of features may miss the movement that the others show."""
AGREE = 12
"""Pairs that must show the same movement."""
SHARE = 0.25
"""So many of all pairs, too: of a repeated pattern some always agree by chance."""
LARGEST = 1.25
"""A picture may be larger or smaller than the reference by this factor: the camera stands where it stood."""
DESCRIPTOR = 32
"""Bytes of a feature."""


@dataclass(frozen=True)
class Move:
    """How a picture of `size` lies to the reference: shifted, turned, a little larger or smaller."""

    matrix: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: a point x, y of the reference's frame is at ax + by + c, dx + ey + f."""
    size: Size

    @cached_property
    def _inverse(self) -> tuple[float, ...]:
        a, b, c, d, e, f = self.matrix
        whole = np.linalg.inv(np.array([[a, b, c], [d, e, f], [0, 0, 1]]))
        return tuple(float(value) for value in whole[:2].ravel())

    def upright(self, image: Image.Image) -> Image.Image:
        """A picture in the reference's frame; what it does not show there has its mean colour."""
        mean = tuple(np.asarray(image.resize((1, 1), Image.Resampling.BOX)).flatten().tolist())
        return _warped(image, self.matrix, Image.Resampling.BICUBIC, mean)

    def upright_mask(self, mask: Mask) -> Mask:
        """Its mask in the reference's frame."""
        found = (_warped(Image.fromarray(m), self.matrix) for m in (mask.anomalous, mask.ignore))
        anomalous, ignore = (np.asarray(image) for image in found)
        return replace(mask, anomalous=anomalous, ignore=ignore)

    def back(self, values: FloatArray) -> FloatArray:
        """A map [h, w] in the picture's own frame; 0 where the reference's shows nothing."""
        scale = values.shape[1] / self.size[0], values.shape[0] / self.size[1]
        a, b, c, d, e, f = self._inverse
        x, y = scale
        there = (a, b * x / y, c * x, d * y / x, e, f * y)
        return np.asarray(_warped(Image.fromarray(values), there, Image.Resampling.BILINEAR))

    def box(self, box: Box) -> Box:
        """What bounds a box of the reference's frame in the picture; a pixel at least."""
        a, b, c, d, e, f = self.matrix
        corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
        xs, ys = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
        left = min(max(0, int(np.floor(min(xs) + 1e-6))), self.size[0] - 1)
        top = min(max(0, int(np.floor(min(ys) + 1e-6))), self.size[1] - 1)
        right = min(max(left + 1, int(np.ceil(max(xs) - 1e-6))), self.size[0])
        bottom = min(max(top + 1, int(np.ceil(max(ys) - 1e-6))), self.size[1])
        return left, top, right, bottom

    def prediction(self, found: Prediction) -> Prediction:
        """What was found in the reference's frame, in the picture's own pixels."""
        values, peak = found.anomaly_map, found.peak_box
        return replace(
            found,
            anomaly_map=None if values is None else self.back(values),
            peak_box=None if peak is None else self.box(peak),
            parts=tuple(replace(part, box=self.box(part.box)) for part in found.parts),
            tiles=tuple(replace(tile, box=self.box(tile.box)) for tile in found.tiles),
            evidence=tuple(
                replace(one, query_box=self.box(one.query_box)) if one.query_box else one
                for one in found.evidence
            ),
        )

    def region(self, box: Box, inside: BoolArray | None) -> tuple[Box, BoolArray]:
        """A region of the reference's frame as it lies in the picture: what bounds it, and its mask there."""
        there = np.zeros(self.size[::-1], dtype=bool)
        left, top, right, bottom = box
        there[top:bottom, left:right] = True if inside is None else inside
        moved = np.asarray(_warped(Image.fromarray(there), self._inverse))
        left, top, right, bottom = found = self.box(box)
        return found, moved[top:bottom, left:right]


def _warped(
    image: Image.Image,
    matrix: tuple[float, ...],
    resample: Image.Resampling = Image.Resampling.NEAREST,
    fill: Any = 0,
) -> Image.Image:
    how = Image.Transform.AFFINE
    return image.transform(image.size, how, matrix, resample=resample, fillcolor=fill)


@dataclass(frozen=True)
class Reference:
    """What other pictures are aligned with: the features of one, not its pixels."""

    size: Size
    features: str
    """Base64: for each x, y in sixteenths of a pixel of the copy (int16), then its descriptor's bits."""

    @classmethod
    def of(cls, image: Image.Image) -> Reference:
        """Of an upright picture. Raises `DataError` for one without enough to hold on to."""
        points, bits = _features(image)
        if len(points) < 2 * AGREE:
            raise DataError(
                f"the reference picture has {len(points)} features, too few to align others with: name "
                "one with more edges and corners, or do without alignment"
            )
        packed = np.packbits(bits, axis=1)
        data = np.round(points * 16).astype("<i2").tobytes() + packed.tobytes()
        return cls(image.size, base64.b64encode(data).decode("ascii"))

    @cached_property
    def _known(self) -> tuple[FloatArray, BoolArray]:
        data = base64.b64decode(self.features, validate=True)
        count, rest = divmod(len(data), 4 + DESCRIPTOR)
        if rest or not count:
            raise DataError("the features of the reference picture cannot be read")
        steps = np.frombuffer(data[: 4 * count], "<i2").reshape(count, 2)
        points = np.asarray(steps / 16, dtype=np.float32)
        bits = np.frombuffer(data[4 * count :], np.uint8).reshape(count, DESCRIPTOR)
        return points, np.unpackbits(bits, axis=1).astype(bool)

    def find(self, image: Image.Image) -> Move:
        """How a picture lies to this one. Raises `LayoutError` where that cannot be told."""
        from skimage.feature import match_descriptors
        from skimage.measure import ransac
        from skimage.transform import SimilarityTransform

        points, bits = _features(image)
        known, wanted = self._known
        pairs = np.zeros((0, 2), dtype=int)
        if len(points):
            pairs = match_descriptors(wanted, bits, cross_check=True, max_ratio=0.9)
        if len(pairs) < AGREE:
            raise LayoutError(_failed(f"{len(pairs)} features are alike, {AGREE} are needed"))
        own, copy = _copy_scale(image.size), _copy_scale(self.size)
        # The reference's frame is scaled to the picture's size, as regions are.
        there = known[pairs[:, 0]] / copy * (np.array(image.size) / self.size)
        here = points[pairs[:, 1]] / own
        model, inliers = ransac(
            (there, here), SimilarityTransform, min_samples=2, residual_threshold=TOLERANCE / own,
            max_trials=1000, rng=0,
        )  # fmt: skip
        agree = 0 if inliers is None else int(inliers.sum())
        if agree < max(AGREE, SHARE * len(pairs)):
            raise LayoutError(_failed(f"of {len(pairs)} features that are alike {agree} agree"))
        if not 1 / LARGEST <= model.scale <= LARGEST:
            raise LayoutError(_failed(f"it would be {model.scale:.2f} times as large"))
        (a, b, c), (d, e, f) = model.params[:2].tolist()
        return Move((a, b, c, d, e, f), image.size)

    def to_json(self) -> dict[str, Any]:
        """As a bank keeps it."""
        return {"size": list(self.size), "features": self.features}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Reference:
        """Inverse of `to_json`. Raises what broken facts raise."""
        width, height = facts["size"]
        return cls((int(width), int(height)), str(facts["features"]))


def _failed(why: str) -> str:
    return f"the picture could not be aligned with the reference picture: {why}"


def _copy_scale(size: Size) -> float:
    return min(1.0, SIDE / max(size))


def _features(image: Image.Image) -> tuple[FloatArray, BoolArray]:
    """Points x, y in pixels of the small copy, counted from its edge, and their descriptors."""
    from skimage.feature import ORB

    scale = _copy_scale(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    grey = np.asarray(small, dtype=np.float32) / 255
    orb = ORB(n_keypoints=KEYPOINTS, n_scales=4, fast_threshold=0.05)
    try:
        orb.detect_and_extract(grey)
    except (RuntimeError, ValueError, IndexError):  # what it raises where it finds none
        return np.zeros((0, 2), np.float32), np.zeros((0, 8 * DESCRIPTOR), bool)
    if orb.descriptors is None or not len(orb.descriptors):
        return np.zeros((0, 2), np.float32), np.zeros((0, 8 * DESCRIPTOR), bool)
    points = np.asarray(orb.keypoints, np.float32)[:, ::-1] + 0.5
    return points, np.asarray(orb.descriptors, bool)
