"""Options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bank = Annotated[Path, typer.Option(help="the memory's folder")]
Head = Annotated[str, typer.Option(help="tf, or NAME:CHECKPOINT")]
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

Layout = Annotated[str, typer.Option(help="of the data; see mrad data layouts")]
Only = Annotated[list[str] | None, typer.Option(help="only this object; repeat")]

Fusion = Annotated[float, typer.Option(help="weight of the image probability", min=0, max=1)]
Sigma = Annotated[float, typer.Option(help="of the map's Gaussian, pixels", min=0)]
Retrieval = Annotated[str, typer.Option(help="exact, approximate, auto")]

Pretrained = Annotated[str | None, typer.Option(help="tag or file of the encoder's weights")]
BatchSize = Annotated[int, typer.Option(help="images encoded at once", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")]
Precision = Annotated[
    str, typer.Option(help="fp32, or bf16: faster, not measured with large towers")
]
