"""`mrad data`: what a dataset is recognised as, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from mrad.words import counted
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import MRADGroup, console, say

app = typer.Typer(cls=MRADGroup, help="Datasets: recognise, count, check.", no_args_is_help=True)


@app.command("layouts")
def layouts_command() -> None:
    """The layouts that are recognised, in the order they are tried."""
    from mrad_indexer.datasets import READERS

    shown = Table("layout", "what", box=box.SIMPLE_HEAD)
    for reader in READERS:
        shown.add_row(reader.name, reader.about)
    console.print(shown)


@app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="a dataset's folder, a .csv or .jsonl list")],
    layout: Annotated[str, typer.Option(help="see mrad data layouts")] = "auto",
    bit_depth: options.BitDepth = None,
    mask_orientation: options.MaskOrientation = "auto",
    strict: Annotated[bool, typer.Option(help="exit with 1 when anything is wrong")] = False,
    show: Annotated[int, typer.Option(help="how many findings of each kind to list")] = 5,
) -> None:
    """Say what was recognised; open every image and mask and list what is missing or odd."""
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.datasets.check import check

    dataset = read_dataset(path, layout=layout, mask_orientation=mask_orientation)
    with console.status(counted(len(dataset), "image")):
        findings = check(dataset, options.reading(bit_depth))
    say(
        (dataset.name, "bold"),
        f" layout, {counted(len(dataset), 'image')} in {path}"
        + (", all taken as good parts" if dataset.name == "flat" else ""),
    )
    shown = Table(box=box.SIMPLE_HEAD)
    for name in ("object", "split", "good", "defective", "masks", "defects"):
        shown.add_column(
            name, justify="right" if name in ("good", "defective", "masks") else "left"
        )
    for name in dataset.objects:
        part = dataset.select(object_name=name)
        for split in sorted({record.split for record in part.records}):
            chosen = part.select(split=split)
            counts, kinds = chosen.counts, Counter(r.defect for r in chosen.records if r.anomalous)
            kinds_text = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(6))
            figures = [str(counts[key]) for key in ("normal", "anomalous", "masks")]
            shown.add_row(name, split or "–", *figures, kinds_text)
    console.print(shown)
    sizes = ", ".join(f"{w} x {h} ({count})" for (w, h), count in findings.sizes.most_common(4))
    say(f"sizes: {sizes}" + (" and others" if len(findings.sizes) > 4 else ""))
    for problem, sources in findings.problems.items():
        say(f"{problem}: {len(sources):,}", style="yellow")
        for source in sources[:show]:
            say(f"  {source}")
    if not findings.problems:
        say("nothing wrong", style="green")
    elif strict:
        raise typer.Exit(1)


@app.command("convert")
def convert_command(
    source: Annotated[
        Path,
        typer.Argument(help="a folder of labelme, VOC, YOLO or COCO, or COCO's .json"),
    ],
    out: Annotated[Path, typer.Option(help="folder for masks/ and list.csv")],
    kind: Annotated[
        str, typer.Option("--from", metavar="auto|labelme|coco|voc|yolo", help="what drew them")
    ] = "auto",
    show: Annotated[int, typer.Option(help="how many files that are left out to list")] = 5,
) -> None:
    """Turn annotations into masks and a list: `mrad build OUT/list.csv` reads it.

    What has no drawing counts as good. What cannot be taken is listed.
    """
    from mrad_indexer.datasets.convert import READERS, convert

    if kind not in ("auto", *READERS):
        raise typer.BadParameter(f"choose auto, {', '.join(READERS)}", param_hint="--from")
    made = convert(source, out, kind)
    say(f"{made.list}: {made.good} good and {counted(made.defective, 'defective image')}")
    counts = {
        "boxes, which mark more than the defect does": made.boxes,
        "lines and points, which mark less than the defect does": made.thin,
        "shapes of a class that is no defect by its name; they mark nothing": made.good_shapes,
        "defective images without a mask": made.without_mask,
    }
    for text, count in counts.items():
        if count:
            say(f"{text}: {count:,}", style="yellow")
    if made.left_out:
        say(f"left out: {len(made.left_out):,}", style="yellow")
    for text in made.left_out[:show]:
        say(f"  {text}")
