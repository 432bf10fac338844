"""The nouns that travel between the parts: what goes in, what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
ImageInput = Image.Image | npt.NDArray[np.generic] | bytes | str | Path
Level = Literal["image", "patch", "local"]
Box = tuple[int, int, int, int]
"""[x_min, y_min, x_max, y_max), pixels of the upright image, origin top left."""

Place = tuple[float, float, float, float]
"""A box as shares of the picture's width and height: the same part of a product in any picture of it."""
WHOLE: Place = (0.0, 0.0, 1.0, 1.0)

NORMAL, ANOMALOUS = 0, 1
"""Labels, everywhere."""


@dataclass(frozen=True)
class Sample:
    """One labelled image for the memory.

    `mask` marks the anomalous pixels (> 0), at the image's own size. An anomalous sample without
    a mask feeds the image level only: nobody knows which of its patches are defective.
    """

    image: ImageInput
    anomalous: bool
    mask: ImageInput | None = None
    source: str = ""
    """Where the image came from, for people: a path relative to the dataset's root."""
    object_name: str = ""
    defect: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """One retrieved key: why the image was judged as it was."""

    level: Level
    similarity: float
    """Cosine; 1 - similarity is the distance that head `nn` measures."""
    label: int
    entry_id: str
    source: str
    region: str
    """`image`, `normal` or `anomalous`: what of the source image the key describes."""
    defect: str = ""
    query_cell: tuple[int, int] | None = None
    """Row and column of the querying patch on its tile's grid; None at image level."""
    query_box: Box | None = None
    """What of the judged image asked, pixels: the patch, or at image level the tile; None: all of it."""
    tile: Box | None = None
    """Where in the source image the key's tile lies, pixels; None where it is the whole image."""
    box: Box | None = None
    """Where in the source image the patch lies, pixels; None where the key is no single patch."""
    size: tuple[int, int] | None = None
    """Width, height of the source image; None where nobody knows."""


@dataclass(frozen=True)
class PartScore:
    """The judgement of one named part of an image; see `Prediction`."""

    name: str
    box: Box
    score: float
    class_score: float
    top_score: float


@dataclass(frozen=True)
class TileScore:
    """What one tile of an image showed: its image probability, its largest patch probability."""

    box: Box
    class_score: float
    peak: float
    closely: bool = True
    """False: it was only looked at coarsely, and both are 0 (`mrad.images.tiles.Tiling`)."""


@dataclass(frozen=True)
class Recognised:
    """A picture that the memory was taught, shown again: its label decides the verdict
    (`mrad.thresholds.taught.as_taught`)."""

    entry_id: str
    label: int
    """NORMAL or ANOMALOUS."""
    source: str
    similarity: float
    """Mean cosine of patches at the same place."""
    marked: tuple[Box, ...] = ()
    """Patches that were marked as defective, pixels of the judged image."""
    contradicts: tuple[str, ...] = ()
    """Entries that show the same picture with the other label, and were taught before."""

    @property
    def text(self) -> str:
        """In words, with a code, as warnings are."""
        others = f", against {', '.join(self.contradicts)}" if self.contradicts else ""
        label = self.to_json()["label"]
        return f"recognised: this picture was taught as {label} (entry {self.entry_id}{others})"

    def to_json(self) -> dict[str, object]:
        """As answers and journals say it."""
        return {
            "entry_id": self.entry_id,
            "label": "anomalous" if self.label else "normal",
            "source": self.source,
            "similarity": self.similarity,
            "contradicts": list(self.contradicts),
        }


@dataclass(frozen=True)
class Prediction:
    """The judgement of one image. Scores and map values are raw probabilities in [0, 1]."""

    score: float
    """Fused: (1 - fusion) * mean of the largest map values + fusion * class_score."""
    class_score: float
    """Image-level retrieval alone."""
    top_score: float
    """Mean of the largest 1 % of map pixels."""
    size: tuple[int, int]
    """Width, height of the input image, after EXIF orientation, pixels."""
    anomaly_map: FloatArray | None = None
    """float32 [height, width] at the size of the input image; scaled down where that is beyond what
    was asked for (`Detector.predict`, `map_pixels`). 0 outside the region of interest."""
    evidence: tuple[Evidence, ...] = field(default=())
    peak_box: Box | None = None
    """Where it is most anomalous: the pixels of the patch of largest probability."""
    parts: tuple[PartScore, ...] = field(default=())
    """Of a layout with named parts; `score` and its two terms are those of the strongest."""
    tiles: tuple[TileScore, ...] = field(default=())
    """Where the image was cut into several."""
    recognised: Recognised | None = None
    """The picture that was taught and is shown again. `score` and map are what the head says of it."""
    warnings: tuple[str, ...] = ()
    """`code: text` for whatever was assumed or is odd about the input (docs/images.md)."""

    def warned(self, warnings: tuple[str, ...]) -> Prediction:
        """The same with what there is to say about its input."""
        return replace(self, warnings=(*warnings, *self.warnings)) if warnings else self

    def unseen(self, shape: tuple[int, ...]) -> BoolArray | None:
        """Pixels [h, w] of a map of `shape` that were not looked at closely; None where all were."""
        if all(tile.closely for tile in self.tiles):
            return None
        found = np.zeros(shape, dtype=bool)
        for tile in sorted(self.tiles, key=lambda tile: tile.closely):
            x, y = shape[1] / self.size[0], shape[0] / self.size[1]
            left, top, right, bottom = tile.box
            rows = slice(round(top * y), round(bottom * y))
            found[rows, round(left * x) : round(right * x)] = not tile.closely
        return found
