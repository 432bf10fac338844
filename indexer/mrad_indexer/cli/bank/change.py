"""`mrad bank merge`, `split`, `remove`: memories joined and parted, each written again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrad.errors import DataError
from mrad.words import counted
from mrad_indexer.cli.common.advice import heads_of, next_step
from mrad_indexer.cli.common.console import console, say, say_some, table, warn

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank
    from mrad_indexer.banks.merge import Double, Merged

SHOWN = 10
Out = Annotated[Path, typer.Option(help="the new bank's folder")]
Replace = Annotated[bool, typer.Option("--replace", help="take the place of the bank at OUT")]
Object = Annotated[list[str] | None, typer.Option("--object", help="of this product; repeat")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="with this tag; repeat")]
Source = Annotated[
    list[str] | None,
    typer.Option("--source", help="from here: a folder, a file, a quoted pattern; repeat"),
]


def merge_command(
    banks: Annotated[list[Path], typer.Argument(help="folders of two banks or more")],
    out: Out,
    replace: Replace = False,
) -> None:
    """Join memories that one encoder built; every image keeps its product, source and date.

    What each learned since it was built comes along. Thresholds do not: calibrate the new one.
    """
    from mrad.memory.bank import MemoryBank
    from mrad_indexer.banks.merge import Part, merge

    if len(banks) < 2:
        raise typer.BadParameter("name two banks or more", param_hint="BANKS")
    if len({path.resolve() for path in banks}) < len(banks):
        raise DataError("a bank is named twice: name each once")
    parts = [Part(str(path), MemoryBank.load(path)) for path in banks]
    merged = merge(parts)
    saved = merged.bank.save(out, replace=replace)
    show_shares({part.name: part.bank for part in parts} | {str(out): saved})
    say_merged(merged)
    say_what_it_serves(saved, out, calibrated=any(part.bank.calibration for part in parts))


def split_command(
    bank: Annotated[Path, typer.Argument(help="the bank's folder; it stays as it is")],
    out: Out,
    objects: Object = None,
    tags: Tag = None,
    sources: Source = None,
    replace: Replace = False,
) -> None:
    """Write the images of a product, with a tag, or from a source as a memory of their own."""
    _part(bank, out, (objects, tags, sources), replace, leave=False)


def remove_command(
    bank: Annotated[Path, typer.Argument(help="the bank's folder; it stays as it is")],
    out: Out,
    objects: Object = None,
    tags: Tag = None,
    sources: Source = None,
    replace: Replace = False,
) -> None:
    """Write the memory without the images of a product, with a tag, or from a source.

    To forget single images of a memory that is served, see DELETE /v1/memory/entries.
    """
    _part(bank, out, (objects, tags, sources), replace, leave=True)


def _part(
    path: Path, out: Path, words: tuple[list[str] | None, ...], replace: bool, *, leave: bool
) -> None:
    from mrad.memory.bank import MemoryBank
    from mrad_indexer.banks.choose import Selection, part_of

    if out.resolve() == path.resolve():
        raise DataError(f"{path} stays as it is; give another --out")
    bank = MemoryBank.load(path)
    selection = Selection(*(word or () for word in words))
    rows = selection.rows(bank)
    if leave:
        rows = ~rows
        if not rows.any():
            raise DataError("that is every image of the memory; nothing would be left")
    said: dict[str, Any] = {"without" if leave else "only": selection.as_json()}
    saved = part_of(bank, rows, str(path), said).save(out, replace=replace)
    show_shares({str(path): bank, str(out): saved})
    say_what_it_serves(saved, out, calibrated=bool(bank.calibration))


def show_shares(banks: dict[str, MemoryBank]) -> None:
    """Images and the share of defects at each level: at temperature 1 it is what TF leans to."""
    shares = table("memory", "good", "defective", "image keys", "patch keys", "products")
    for name, bank in banks.items():
        bad = sum(entry.label for entry in bank.entries)
        cells = [str(len(bank.entries) - bad), str(bad)]
        for level in (bank.image, bank.patch):
            share = 100 * level.counts[1] / max(len(level), 1)
            cells.append(f"{len(level):,}, {share:.0f} % anomalous")
        shares.add_row(name, *cells, ", ".join(bank.objects) or "–")
    console.print(shares)


def say_merged(merged: Merged) -> None:
    """What people would not expect."""
    if merged.repeated:
        say(f"in more than one of them, and kept once: {counted(merged.repeated, 'image')}")
    if merged.shared:
        warn(
            f"more than one of them holds images of {', '.join(merged.shared)}: they are one product from "
            "now on. Where they are not, build each from a folder of another name"
        )
    if merged.without_patches:
        warn(
            f"{', '.join(merged.without_patches)} kept no patches of good images (built before 0.2.0, or "
            "imported), so heads nn and combined do not compare with them: build them again"
        )
    _list(
        [pair for pair in merged.doubles if pair.contradict],
        "good in one place and defective in another: remove the wrong one",
    )
    _list(
        [pair for pair in merged.doubles if not pair.contradict],
        "there twice: counted as one where a head leaves images out, and as two elsewhere",
    )


def _list(pairs: list[Double], what: str) -> None:
    if not pairs:
        return
    warn(f"{counted(len(pairs), 'picture')} {what}")
    say_some([f"{pair.one} = {pair.other}" for pair in pairs], SHOWN)


def say_what_it_serves(bank: MemoryBank, out: Path, *, calibrated: bool) -> None:
    """The head that the new memory is asked by, and what comes next."""
    heads = heads_of(bank)
    if heads["default"] is None:
        warn(f"{out} cannot score yet: {heads['why']}")
        return
    say("head ", (heads["default"], "bold"), f" answers by default: {heads['why']}")
    if len(bank.objects) > 1 and heads["default"] in ("nn", "combined"):
        say("--object NAME, or `object` in a request, judges by one product's images alone")
    if calibrated:
        say("thresholds do not carry over")
    say("next: ", (next_step(bank, out), "bold"))
