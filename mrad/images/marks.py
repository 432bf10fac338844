"""Which pixels the samples of a mask mark: by labels, by a cut, by colour, or by transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrad.errors import ImageError
from mrad.images.decoding.raster import Raster
from mrad.types import BoolArray

Values = npt.NDArray[Any]
Marked = tuple[BoolArray, BoolArray, list[str]]
"""Anomalous, ignored, warnings."""
IGNORE = (255, 65535)
"""Beside labels 1, 2, ..: a border that belongs to neither class (VOC, Cityscapes)."""
FAINT = 16
"""Largest value of a lossy file below which its rounding moves the edges."""
TINT = 24
"""Levels by which a lossy file tints what was grey."""
VOC_BORDER = (224, 224, 192)
FEW = 16
"""Values or colours up to which they may be labels."""
DARK = 32
"""Levels up to which a colour of a lossy file is black."""


def of(raster: Raster, name: str) -> Marked:
    """Raises `ImageError` where it cannot be told."""
    if isinstance(raster.samples, Image.Image):
        values: Values = np.asarray(raster.samples)
    else:
        values = raster.samples
    if raster.alpha is not None and raster.alpha.min() != raster.alpha.max():
        return _by_alpha(values, raster.alpha, name)
    if raster.colours is not None:
        return _by_index(values, raster.colours, name)
    if raster.stated.inverted:
        values = ~values if values.dtype == np.bool_ else _inverted(values)
    if values.ndim == 3:
        wide = values.astype(np.int64) if values.dtype.kind in "bi" else values
        tint = wide.max(axis=2) - wide.min(axis=2)
        if tint.max() <= (TINT if raster.lossy and values.dtype == np.uint8 else 0):
            values = values[..., 1]
        else:
            return _by_colour(values, raster.lossy, name)
    return _by_value(values, raster.lossy, name)


def _inverted(values: Values) -> Values:
    if values.dtype.kind == "f":
        return np.asarray(values.max() - values)
    return np.asarray(np.iinfo(values.dtype).max - values)


def _marked(marked: BoolArray, *warnings: str) -> Marked:
    return marked, np.zeros_like(marked), list(warnings)


def _by_alpha(values: Values, alpha: Values, name: str) -> Marked:
    """Paint on a transparent ground, or a ground with transparency cut or painted in."""
    pixels = values.reshape(*values.shape[:2], -1)
    painted = pixels[alpha >= 128]
    if len(painted) and (painted == painted[0]).all():
        return _cut(alpha)
    found = np.unique(painted, axis=0) if len(painted) < 4_000_000 else painted[: FEW + 1]
    if len(found) > FEW or (pixels == pixels[..., :1]).all():
        raise ImageError(
            f"{name}: both colours and transparency differ from pixel to pixel, so it cannot be "
            "told which of them marks the defects: save the mask without transparency, 0 and 255"
        )
    marked, ignore, notes = _cut(alpha)
    note = f"mask_values: {len(found)} colours on a transparent ground; all are taken as defective"
    return marked, ignore, [*notes, note]


def _by_index(index: Values, colours: Values, name: str) -> Marked:
    """A palette's numbers are the labels; its colours are for people."""
    used = np.unique(index)
    shades = colours[..., :3]
    grey = bool((shades == shades[..., :1]).all())
    if grey and len(used) > 2:
        return _by_value(shades[..., 0], False, name)
    if used[0] != 0 and len(used) > 1:
        return _by_colour(shades, False, name) if not grey else _by_value(
            shades[..., 0], False, name
        )  # fmt: skip
    border = (shades == VOC_BORDER).all(axis=2) & (index != 0)
    if border.any() and not border.all():
        marked, ignore, notes = _by_index(np.where(border, 0, index), np.where(
            border[..., None], 0, colours
        ), name)  # fmt: skip
        return (
            marked & ~border,
            ignore | border,
            [*notes, _ignored("the colour (224, 224, 192)", border)],
        )
    notes = []
    black = [bool((shades[index == value] == 0).all()) for value in used]
    if not grey and any(black[1:]) and not black[0]:
        notes = [
            f"mask_palette: number {int(used[0])} of the palette is no black and another is; by its "
            f"numbers, {int(used[0])} is good and the rest is defective"
        ]
    if grey and len(used) == 2:
        first, second = (int(shades[..., 0][index == value][0]) for value in used)
        if second < first:
            notes = [
                "mask_palette: the palette's colours and its numbers disagree; by its numbers, "
                f"{int(used[1])} (level {second}) is defective and {int(used[0])} (level {first}) "
                "is good"
            ]
    marked, ignore, more = _by_value(index, False, name)
    return marked, ignore, [*notes, *more]


def _by_colour(values: Values, lossy: bool, name: str) -> Marked:
    """Colours on black; without black, the commonest colour is the ground, and that is said."""
    if values.dtype != np.uint8:
        top = float(values.max()) or 1.0
        values = np.round(values.astype(np.float64) / top * 255).astype(np.uint8)
    strength = values.max(axis=2)
    codes = values[..., 0].astype(np.uint32)
    for channel in (1, 2):  # in place: masks may be large
        codes <<= np.uint32(8)
        codes |= values[..., channel]
    found, counts = np.unique(codes, return_counts=True)
    if len(found) > FEW:
        if (strength <= DARK).mean() < 0.02 or not (lossy or _one_hue(values, strength)):
            raise ImageError(
                f"{name} looks like a picture, not like a mask: {len(found)} colours"
                f"{'' if (strength <= DARK).any() else ', none of them black'}. Save the mask "
                "alone: 0 where good, 255 where defective"
            )
        return _cut(strength)
    colours = [((c >> 16) & 255, (c >> 8) & 255, c & 255) for c in found.tolist()]
    if 0 not in found:
        return _no_black(codes, found, counts, colours, name)
    ignore = codes == (VOC_BORDER[0] << 16 | VOC_BORDER[1] << 8 | VOC_BORDER[2])
    others = [colour for colour in colours if any(colour) and colour != VOC_BORDER]
    if not others:
        return _by_value(strength, lossy, name)
    shades = [colour for colour in others if len(set(colour)) == 1]
    if shades and len(shades) < len(others):
        raise ImageError(
            f"{name} has black, {_list(shades)} and {_list([c for c in others if c not in shades])}: "
            "that looks like a picture with paint on it, so it cannot be told what is marked. Save "
            "the mask alone: 0 where good, 255 where defective"
        )
    notes = [] if len(others) == 1 else [_many(f"{len(others)} colours beside black")]
    if ignore.any():
        notes.append(_ignored("the colour (224, 224, 192)", ignore))
    return (codes != 0) & ~ignore, ignore, notes


def _no_black(
    codes: Values, found: Values, counts: Values, colours: list[tuple[int, int, int]], name: str
) -> Marked:
    ground = int(counts.argmax())
    corners = codes[[0, 0, -1, -1], [0, -1, 0, -1]]
    if len(found) > 2 or counts[ground] * 2 <= codes.size or (corners == found[ground]).sum() < 3:
        raise ImageError(
            f"{name} has the colours {_list(colours)} and no black, so it cannot be told which is the "
            "good part: save it as 0 where good, 255 where defective"
        )
    marked = codes != found[ground]
    return _marked(
        marked,
        f"mask_colours: no black in the mask; {colours[ground]}, the commonest colour, is taken as "
        f"good and the rest, {marked.mean():.1%} of the image, as defective",
    )


def _one_hue(values: Values, strength: Values) -> bool:
    """Whether every colour is a share of one: soft edges of one paint on black."""
    strong = values[strength == strength.max()][0].astype(np.float64)
    share = strength.astype(np.float64) / max(1.0, float(strength.max()))
    return bool(np.abs(values - share[..., None] * strong).max() <= 24)


def _by_value(values: Values, lossy: bool, name: str) -> Marked:
    marked, ignore, notes = _valued(values, lossy, name)
    if lossy and 0 < float(values.max()) < FAINT and not notes:
        notes = [
            f"mask_soft: a lossy file whose largest value is {values.max():g}: its edges are rough; "
            "save the mask as PNG"
        ]
    return marked, ignore, notes


def _valued(values: Values, lossy: bool, name: str) -> Marked:
    if values.dtype == np.bool_:
        return _marked(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite: save it as 0 and 255")
    found = np.unique(values)
    if found[0] < 0:
        if values.dtype.kind != "i" or found[0] != -1 or len(found) < 3:
            raise ImageError(
                f"{name} has values below 0 ({found[0]:g}): save it as 0 where good, 255 where "
                "defective"
            )
        ignore = values == -1
        return values > 0, ignore, [_ignored("-1", ignore)]
    if len(found) <= 2:
        return _two(values, found)
    whole = values.dtype.kind in "iu" or bool((found == np.round(found)).all())
    labels = found[found > 0].astype(np.int64) if whole else found[:0]
    if not lossy and 1 < len(labels) <= FEW and labels[-1] in IGNORE and _count_up(labels[:-1]):
        ignore = values == labels[-1]  # however narrow: soft edges are other values too
        note = _ignored(f"{labels[-1]}, beside the labels {_span(labels)},", ignore)
        return (values > 0) & ~ignore, ignore, [note]
    if whole and not lossy and len(found) <= 256 and _are_blobs(values):
        if found[0] == 0 and _count_up(labels):
            return _marked(values > 0)
        if len(found) <= FEW:
            text = (
                f"the values {', '.join(f'{v:g}' for v in found)}, which are no count of instances"
            )
            return _marked(values > found[0], _many(text))
    return _cut(values)


def _two(values: Values, found: Values) -> Marked:
    """Good and defective, or one of them only."""
    if len(found) == 1:
        return _marked(np.full(values.shape, bool(found[0] > 0)))
    low, high = float(found[0]), float(found[1])
    marked = values > low
    if low <= 0.05 * high:
        return _marked(marked)
    return _marked(
        marked, f"mask_values: the mask holds {low:g} and {high:g}; {high:g} is taken as defective"
    )


def _cut(values: Values) -> Marked:
    """Soft values, of lossy files and soft edges: cut at half of the largest."""
    top = float(values.max())
    if top <= 0:
        return _marked(np.zeros(values.shape, bool))
    marked = values > top / 2
    between = (values > 0.1 * top) & ~marked
    doubt = between.sum() / max(1, marked.sum())
    if doubt <= 0.5:
        return _marked(marked)
    return _marked(
        marked,
        f"mask_soft: the mask is soft: {between.mean():.1%} of the image lie between good and "
        f"defective; it is cut at half of its largest value ({top:g}) and marks "
        f"{marked.mean():.1%}. If it is a map of probabilities or holds several levels, cut it "
        "yourself",
    )


def _are_blobs(values: Values) -> bool:
    """Labels lie in areas; the levels of soft edges and of JPEG's ringing do not."""
    inside = values[1:, 1:] > 0
    if not inside.any():
        return True
    same = (values[1:, 1:] == values[:-1, 1:]) & (values[1:, 1:] == values[1:, :-1])
    levels = np.unique(values[values > 0])
    if len(levels) > FEW:
        return bool(same[inside].mean() > 0.7)
    return all(
        same[values[1:, 1:] == level].mean() > 0.2 for level in levels
        if (values[1:, 1:] == level).any()
    )  # fmt: skip


def _count_up(labels: Values) -> bool:
    """1, 2, 3, ..: instances."""
    return len(labels) > 0 and bool((labels == np.arange(1, len(labels) + 1)).all())


def _span(labels: Values) -> str:
    return "1" if len(labels) == 2 else f"1 to {int(labels[-2])}"


def _many(what: str) -> str:
    return f"mask_values: the mask holds {what}; all but the ground are taken as defective"


def _ignored(what: str, ignore: BoolArray) -> str:
    return (
        f"mask_ignored: {what} is taken as a border that belongs to neither class "
        f"({ignore.mean():.1%} of the image)"
    )


def _list(colours: list[tuple[int, int, int]]) -> str:
    shown = ", ".join(str(colour) for colour in colours[:5])
    return shown + (" and others" if len(colours) > 5 else "")
