"""Options that several commands share, each said once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mrad.images.options import ReadOptions

Bank = Annotated[Path, typer.Option(help="the memory's folder")]
Head = Annotated[
    str, typer.Option(help="auto: what suits the memory; nn, combined, tf, or NAME:CHECKPOINT")
]
Product = Annotated[
    str | None,
    typer.Option(
        "--object",
        help="product: judge by what the memory holds of it alone, by its own threshold  [all]",
    ),
]
Threshold = Annotated[
    float | None, typer.Option(help="score from which an image is anomalous  [calibrated]")
]
TargetFPR = Annotated[
    float | None, typer.Option(help="instead: share of good images that may be flagged")
]
Overlays = Annotated[bool, typer.Option(help="heat maps as files")]

ROI = Annotated[
    Path | None,
    typer.Option(
        help="region of interest: a mask (white counts), or JSON with polygons or a box; "
        "outside nothing is judged"
    ),
]

Parts = Annotated[
    Path | None,
    typer.Option(
        help="parts.json: named boxes or polygons, each judged by itself in every picture"
    ),
]

Closely = Annotated[
    float | None,
    typer.Option(
        "--tile-closely",
        help="look at all of a picture coarsely, then closely at this share of its tiles, the most "
        "anomalous ones: faster, and what the first look misses is missed  [as the memory was built]",
        min=0.01,
        max=1,
    ),
]

BitDepth = Annotated[
    int | None,
    typer.Option(
        help="bits that count in images that do not state it, as 12 of a 16-bit PNG  [the memory's]",
        min=1,
        max=32,
    ),
]
StrictInput = Annotated[
    bool, typer.Option("--strict-input", help="refuse images and masks that are warned of")
]
Truncated = Annotated[
    bool, typer.Option("--allow-truncated", help="take files that end early, with a warning")
]
MaxPixels = Annotated[int | None, typer.Option(help="of one image  [100 million]", min=1)]
MaskOrientation = Annotated[
    str,
    typer.Option(
        metavar="auto|upright|stored",
        callback=lambda value: orientation(value),
        help="how masks lie on images that an orientation tag turns: as people see them, or as the "
        "pixels are stored",
    ),
]

Layout = Annotated[str, typer.Option(help="of the data; see mrad data layouts")]
Only = Annotated[list[str] | None, typer.Option(help="only this object; repeat")]

Fusion = Annotated[float, typer.Option(help="weight of the image probability", min=0, max=1)]
Sigma = Annotated[float, typer.Option(help="of the map's Gaussian, pixels", min=0)]
Retrieval = Annotated[str, typer.Option(help="exact, approximate, auto")]

Pretrained = Annotated[
    str | None,
    typer.Option("--pretrained", "--weights", help="tag or file of the encoder's weights"),
]
ENCODER = (
    "mrad-mini, an open_clip name as ViT-L-14-336, either with :plain behind it for its plain patch "
    "tokens, or timm:NAME, as timm:vit_small_patch14_dinov2.lvd142m"
)
BatchSize = Annotated[int, typer.Option(help="images encoded at once", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")]
Precision = Annotated[
    str,
    typer.Option(help="auto: what the memory was built in; fp32, bf16", metavar="auto|fp32|bf16"),
]


def reading(
    bit_depth: int | None = None,
    strict_input: bool = False,
    allow_truncated: bool = False,
    max_pixels: int | None = None,
) -> ReadOptions:
    """How images are read, from what was said on the command line."""
    from mrad.images.options import ReadOptions

    options = ReadOptions(bit_depth=bit_depth, strict=strict_input, allow_truncated=allow_truncated)
    if max_pixels is None:
        return options
    return replace(options, max_pixels=max_pixels, max_tiled_pixels=max_pixels)


def orientation(text: str) -> str:
    """Of masks. Raises `typer.BadParameter`."""
    from mrad.images.masks import ORIENTATIONS

    if text not in ORIENTATIONS:
        raise typer.BadParameter(f"choose {', '.join(ORIENTATIONS)}")
    return text
