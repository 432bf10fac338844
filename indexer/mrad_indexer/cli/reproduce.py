"""`mrad reproduce`: the paper's experiment on whatever of its sets is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mrad.errors import MRADError
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import console, errors, note, say

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mrad_indexer.reproduction.page import Line
    from mrad_indexer.reproduction.paper import Figures
    from mrad_indexer.reproduction.run import Outcome
    from mrad_indexer.reproduction.steps import Step

PAPERS = "ViT-L-14-336"


def reproduce_command(
    data: Annotated[
        Path, typer.Argument(help="a folder that holds the paper's sets, a folder each")
    ],
    out: Annotated[
        Path, typer.Option(help="memories, heads, results and report; a later run goes on there")
    ] = Path("reproduction"),
    only: Annotated[
        list[str] | None, typer.Option("--set", help="evaluate only this set; repeat  [all]")
    ] = None,
    head: Annotated[list[str] | None, typer.Option(help="tf, ft or clip; repeat  [all]")] = None,
    paper: Annotated[
        Path | None,
        typer.Option(help="CSV of the paper's figures: set,head,metric,value; metrics in percent"),
    ] = None,
    encoder: Annotated[str, typer.Option(help="an open_clip name, or mrad-mini")] = PAPERS,
    pretrained: Annotated[
        str | None, typer.Option(help=f"tag or file of its weights  [openai for {PAPERS}]")
    ] = None,
    fusion: options.Fusion = 0.7,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16")] = "fp32",
) -> None:
    """The paper's experiment: VisA's memory judges all sets, MVTec's judges VisA.

    Builds both memories, trains FT and CLIP by the paper's recipe, evaluates every set that is
    there, and writes report.html and report.json. What is done is kept: run it again after a stop.
    """
    from mrad.encoder.encoder import Encoder
    from mrad_indexer.reproduction.page import lines_of, notes_of
    from mrad_indexer.reproduction.paper import HEADS, KNOWN, read_figures
    from mrad_indexer.reproduction.run import Settings, reproduce
    from mrad_indexer.reproduction.sets import SETS, find
    from mrad_indexer.reproduction.steps import Steps

    chosen = _known("set", only, [item.key for item in SETS])
    heads = _known("head", head, list(HEADS))
    figures = KNOWN if paper is None else read_figures(paper)
    found, missing = find(data)
    if not found:
        raise MRADError(f"none of the paper's sets is in {data}: {next(iter(missing.values()))}")
    say(f"found: {', '.join(item.set.name for item in found.values())}", to=errors)
    if pretrained is None and encoder == PAPERS:
        pretrained = "openai"
    loaded = Encoder.load(encoder, pretrained, device=device, precision=precision)
    settings = Settings(tuple(heads), fusion, batch_size=batch_size, pretrained=pretrained)
    with Bars() as bars:
        outcome = reproduce(
            loaded, found, missing, out, Steps(out / "steps", bars), settings, chosen
        )
    notes = notes_of(outcome, figures, paper is not None)
    if encoder != PAPERS:
        notes.append(f"The paper's figures are of {PAPERS}; these are of {encoder}.")
    show(lines_of(outcome, figures))
    for text in notes:
        note(text)
    about = {
        "encoder": str(loaded.identity),
        "device": str(loaded.device),
        "precision": precision,
        "fusion": fusion,
        "batch size": batch_size,
        "data": str(data),
    }
    _write(out, outcome, figures, about, notes)
    if outcome.failed:
        raise typer.Exit(1)


def _known(kind: str, asked: list[str] | None, known: list[str]) -> list[str]:
    for one in asked or []:
        if one not in known:
            raise MRADError(f"there is no {kind} {one!r}; there are: {', '.join(known)}")
    return [one for one in known if not asked or one in asked]


class Bars:
    """A bar for the step under way, and a line for each that ended."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=errors, transient=True)
        self._task: TaskID | None = None
        self._step = ""

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, step: str, total: int | None) -> None:
        """See `mrad_indexer.reproduction.steps.Watcher`."""
        self._step, self._task = step, self._bars.add_task(step, total=total)

    def advance(self, done: int, total: int | None = None, note: str = "") -> None:
        """See `mrad_indexer.reproduction.steps.Watcher`."""
        if self._task is not None:
            text = f"{self._step}: {note}" if note else self._step
            self._bars.update(self._task, completed=done, description=text)
            if total is not None:
                self._bars.update(self._task, total=total)

    def end(self, step: Step) -> None:
        """See `mrad_indexer.reproduction.steps.Watcher`."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        if step.error:
            say(f"{step.name} failed: {step.error}", style="red", to=errors)
        else:
            how = "stands already" if step.resumed else f"{step.seconds:.1f} s"
            say(f"{step.name}: {how}", style="dim", to=errors)


def show(lines: list[Line]) -> None:
    """The table on screen: ours, and the paper's in brackets where it is known."""
    from mrad_indexer.reproduction.page import HEADINGS, NONE
    from mrad_indexer.reproduction.paper import METRICS

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("set", "head"):
        table.add_column(name, overflow="fold")
    table.add_column("good\n+ bad", justify="right", no_wrap=True)
    for metric in METRICS:
        table.add_column(HEADINGS[metric].replace(" ", "\n"), justify="right", no_wrap=True)
    last = ""
    for line in lines:
        if last and line.name != last:
            table.add_section()
        cells = [here if paper in (NONE, "") else f"{here} [{paper}]" for here, paper in line.cells]
        first, last = line.name != last, line.name
        table.add_row(line.name if first else "", line.head, line.images.replace(" ", ""), *cells)
    console.print(table)
    say("percent; in square brackets the paper's; in round ones how many sets", style="dim")


def _write(
    out: Path, outcome: Outcome, figures: Figures, about: dict[str, str | float], notes: list[str]
) -> None:
    from mrad.files import atomic_write_bytes
    from mrad_indexer.reproduction.page import render, to_json

    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(to_json(outcome, figures, about, notes), indent=1)
    atomic_write_bytes(out / "report.json", content.encode())
    page = render(outcome, figures, about, notes)
    atomic_write_bytes(out / "report.html", page.encode("utf-8", "backslashreplace"))
    say(f"{out / 'report.html'}, {out / 'report.json'}")
