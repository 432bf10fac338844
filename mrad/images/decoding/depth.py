"""Samples of any kind -> levels 0..255: what the file states is honoured, what it does not is said.

A 16-bit container often holds 10, 12 or 14 bits of a camera. Where the file says nothing, the depth
is that of the caller, else that of the memory's own images, else the smallest usual one that holds
the largest value; then a warning names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mrad.errors import ImageError
from mrad.images.options import ReadOptions

LADDER = (8, 10, 12, 14, 16, 24, 32)
"""Usual depths, bits."""
UNIT = 0
"""The depth of floats whose white is 1."""
HOW = "set it with --bit-depth, MRAD_BIT_DEPTH or the field bit_depth, and for the memory at its build"
Samples = npt.NDArray[Any]
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Assumed:
    """What was taken for granted about samples whose file does not say it."""

    kind: str
    """`integer` or `float`."""
    bits: int
    """White is 2 ** bits - 1; `UNIT`: 1."""


@dataclass(frozen=True)
class Stated:
    """What the file says of its samples."""

    low: float | None = None
    high: float | None = None
    """The value of white; None: not said."""
    inverted: bool = False
    """WhiteIsZero."""
    hints: tuple[str, ...] = field(default=())
    """Warnings of the reader about what the file says."""


def white_of(bits: int) -> float:
    """The value of white at a depth."""
    return 1.0 if bits == UNIT else float(2**bits - 1)


def scale(
    samples: Samples,
    stated: Stated,
    options: ReadOptions,
) -> tuple[Levels, list[str], Assumed | None]:
    """Samples of any shape -> uint8 of the same shape, warnings, and what was assumed; what the file states wins.

    Raises `ImageError` for values that nothing explains.
    """
    samples, notes = _unsigned(samples, stated, options.name)
    warnings, assumed = [*stated.hints, *notes], None
    low, high = stated.low or 0.0, stated.high
    if high is None:
        kind = "float" if samples.dtype.kind == "f" else "integer"
        high, assumed, notes = _white(samples, kind, options.bit_depth, options.assume.get(kind))
        warnings += notes
    top = float(samples.max()) if samples.size else 0.0
    if top > high:
        share = float((samples > high).mean())
        warnings.append(
            f"values_clipped: {share:.1%} of the values lie above {high:g}, which the file or the "
            "setting names as white"
        )
    return _levels(samples, low, high, stated.inverted), warnings, assumed


def _white(
    samples: Samples, kind: str, bit_depth: int | None, memory: int | None
) -> tuple[float, Assumed, list[str]]:
    top = float(samples.max()) if samples.size else 0.0
    found, container = smallest(top, samples.dtype), _container(samples.dtype)
    full = container if samples.dtype.kind == "u" else None
    bits, notes = found, list[str]()
    if bit_depth is not None:
        bits = found if top > white_of(bit_depth) else bit_depth
        if bits != bit_depth:
            text = f"values up to {top:g} do not fit the {bit_depth} bits that are set"
            notes = [_differs(text, bits)]
    elif memory is not None and top > white_of(memory):
        text = f"values up to {top:g}, but the memory's images hold {_said(memory)}"
        notes = [_differs(text, found)]
    elif memory is not None:
        bits = memory
        if memory not in (full, UNIT):
            notes = [_told(memory, container, "as the memory's images")]
    elif found != full and (found != UNIT or top < 0.25):
        notes = [_told(found, container, f"the largest value is {top:g}")]
    return white_of(bits), Assumed(kind, bits), notes


def _told(bits: int, container: int, why: str) -> str:
    return (
        f"bit_depth_assumed: the file does not say its depth; {_said(bits)} assumed, in "
        f"{container or 'float'}{' bits' if container else ''} ({why}); {HOW}"
    )


def _differs(text: str, bits: int) -> str:
    return f"bit_depth_differs: {text}; read as {_said(bits)}. {HOW[0].upper()}{HOW[1:]}"


def _said(bits: int) -> str:
    return "white at 1" if bits == UNIT else f"{bits} bits"


def smallest(top: float, dtype: np.dtype[Any]) -> int:
    """The smallest usual depth that holds `top`, at most the container's."""
    container = _container(dtype)
    if dtype.kind == "f" and top <= 1:
        return UNIT
    limit = container or max(LADDER)
    fitting = (bits for bits in LADDER if bits <= limit and top <= white_of(bits))
    return next(fitting, limit)


def _container(dtype: np.dtype[Any]) -> int:
    """Bits of the largest value; 0 for floats."""
    if dtype.kind == "u":
        return dtype.itemsize * 8
    return dtype.itemsize * 8 - 1 if dtype.kind == "i" else 0


def _unsigned(samples: Samples, stated: Stated, name: str) -> tuple[Samples, list[str]]:
    """Without negative values: offset binary for 8 and 16 bit; others are refused."""
    if samples.dtype == np.bool_:
        return samples.astype(np.uint8) * np.uint8(255), []
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise ImageError(
                f"{name} has values that are not finite; a float image must be finite and within "
                "[0, 1], or say its range"
            )
        if stated.low is None and samples.size and samples.min() < 0:
            raise ImageError(
                f"{name} has float values below 0; a float image must be finite and within [0, 1]: "
                "scale it first"
            )
        if stated.high is None and samples.size and samples.max() > white_of(16):
            raise ImageError(
                f"{name} has float values up to {float(samples.max()):g}; a float image must be "
                "finite and within [0, 1]: scale it first"
            )
        return samples, []
    if samples.dtype.kind == "i" and samples.size and samples.min() < 0 and stated.low is None:
        if samples.dtype.itemsize > 2:
            raise ImageError(
                f"{name} has negative 32-bit values, and nothing says where black is: scale the "
                "image to 16 bit first"
            )
        bits = samples.dtype.itemsize * 8
        wide = (samples.astype(np.int32) + (1 << (bits - 1))).astype(f"u{bits // 8}")
        note = (
            f"signed_assumed: the values are signed ({int(samples.min())} to {int(samples.max())}); "
            f"black is taken as {-(1 << (bits - 1))}, white as {(1 << (bits - 1)) - 1}"
        )
        return wide, [note]
    return samples, []


def _levels(samples: Samples, low: float, high: float, inverted: bool) -> Levels:
    if samples.dtype == np.uint8 and low == 0 and high == 255:
        return 255 - samples if inverted else samples
    if samples.dtype in (np.uint8, np.uint16):  # a table: exact, and fast
        every = np.arange(2 ** (8 * samples.dtype.itemsize), dtype=np.float64)
        return np.asarray(_rounded(every, low, high, inverted)[samples])
    return _rounded(samples.astype(np.float64), low, high, inverted)


def _rounded(values: Samples, low: float, high: float, inverted: bool) -> Levels:
    unit = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(np.round((1 - unit if inverted else unit) * 255), dtype=np.uint8)
