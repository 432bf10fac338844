"""`mrad build`: labelled images -> a memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrad.errors import MRADError, NoGoodPartsError
from mrad.words import counted
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.advice import heads_of, next_step, worth
from mrad_indexer.cli.common.console import errors, progress, say, say_some, warn

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder
    from mrad_indexer.build.build import Built, Engine
    from mrad_indexer.build.encode import Skipped
    from mrad_indexer.datasets import Dataset

SHOWN = 10


def build_command(
    data: Annotated[Path, typer.Argument(help="a dataset's folder, a .csv or .jsonl list")],
    out: Annotated[Path, typer.Option(help="the bank's folder, to be written")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="a bank to add the images to, as that of another product: OUT holds both, BASE stays"
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help=f"{options.ENCODER}  [the base's, mrad-mini]"),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            "--weights",
            help="tag or file of the encoder's weights  [shipped ones; of timm the published ones]",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="side of the encoder's input  [the paper's, or native]")
    ] = None,
    layout: Annotated[str, typer.Option(help="of the data; see mrad data layouts")] = "auto",
    split: Annotated[str, typer.Option(help="train, test, all")] = "all",
    only: Annotated[
        list[str] | None, typer.Option("--only", "--objects", help="only this object; repeat")
    ] = None,
    patch_keys: Annotated[
        str,
        typer.Option(
            metavar="regions|all|N",
            help="what the good and the defective part of an image each add to the memory: their "
            "mean (regions, as the paper), every patch (all), or the N patches that cover the rest",
        ),
    ] = "regions",
    coreset: Annotated[
        int | None,
        typer.Option(min=2, help="then keep only so many patch keys, which cover all  [every one]"),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="cut pictures into square tiles of N pixels; auto: as the sizes of pictures and "
            "defects ask for. Kept in the bank, and done to every query  [no tiles]",
        ),
    ] = None,
    tile_overlap: Annotated[
        float, typer.Option(help="share of a tile that its neighbour shows too", min=0, max=0.9)
    ] = 0.25,
    tile_closely: Annotated[
        float,
        typer.Option(
            help="look at all of a query coarsely, then closely at this share of its tiles, the most "
            "anomalous ones: faster, and what the first look misses is missed",
            min=0.01,
            max=1,
        ),
    ] = 1.0,
    roi: options.ROI = None,
    parts: options.Parts = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16|auto",
            help="of the encoder; auto: bf16 where a sample of these images shows that it is faster "
            "here and keeps their maps and scores. Queries follow the memory  [fp32, or the base's]",
        ),
    ] = None,
    bit_depth: options.BitDepth = None,
    strict_input: options.StrictInput = False,
    allow_truncated: options.Truncated = False,
    max_pixels: options.MaxPixels = None,
    mask_orientation: options.MaskOrientation = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="stop at an image that cannot be used")
    ] = False,
    thumbnails: Annotated[bool, typer.Option(help="keep small copies, shown as evidence")] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="take the place of the bank at OUT")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="forget an earlier run's progress")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: the cluster of RAY_ADDRESS, else all CPUs here")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes on ray  [one a GPU, else one a CPU]")
    ] = None,
) -> None:
    """Build a memory from labelled images, with masks of the defects where there are any.

    Stop it, kill it, run the same command again: it goes on, and the keys are the same to the last
    bit. Images that cannot be used are skipped and listed.

    Every patch as a key finds a defect like one seen before by its own patch, at hundreds of times
    the memory: numbers between, as --patch-keys 16, are often enough. --coreset compares every key
    with each that is kept, so it suits up to some thousands kept of some hundred thousand.
    """
    from mrad.encoder.encoder import Encoder, precision_for
    from mrad.memory.bank import MemoryBank
    from mrad.memory.entry import REGIONS
    from mrad.memory.keys import parse_patch_keys
    from mrad_indexer.banks.base import build_on
    from mrad_indexer.banks.merge import Part
    from mrad_indexer.build.build import BuildOptions, build
    from mrad_indexer.build.plan import SHARD, Plan
    from mrad_indexer.build.precision import AUTO, choose_precision
    from mrad_indexer.cli.bank.change import say_merged, show_shares
    from mrad_indexer.cli.common.tiles import say_layout, shard_size
    from mrad_indexer.cutting import layout_of
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.loading import choose, encoder_of

    try:
        kept = parse_patch_keys(patch_keys)
    except MRADError as error:
        raise typer.BadParameter(f"--patch-keys: {error}") from error
    dataset = read_dataset(data, layout=layout, mask_orientation=mask_orientation)
    dataset = choose(dataset, split, only)
    say_what_is_missing(dataset)
    if not dataset.counts["normal"] and base is None:
        raise NoGoodPartsError(
            f"{dataset.root} has no good image, and no head can judge by defects alone: add good images "
            "beside them, in a folder good/, or build on a memory that has some (--base); ten are a good "
            "beginning"
        )
    load: Callable[..., Encoder] = partial(
        Encoder.load, encoder or "mrad-mini", pretrained, image_size=image_size, device=device
    )
    below = None
    if base is not None:
        below = Part(str(base), MemoryBank.load(base))
        precision = precision_for(precision or AUTO, below.bank.precision, device)
        if encoder is None:
            load = partial(encoder_of, below.bank, pretrained=pretrained, device=device)
        kept = below.bank.patch_keys if patch_keys == REGIONS else kept
    loaded = load(precision="fp32" if precision in (None, AUTO) else precision)
    say(
        f"{counted(len(dataset), 'image')}, {loaded.identity} on {loaded.device}",
        style="dim",
        to=errors,
    )
    looked_at, extent = layout_of(
        dataset,
        loaded,
        tile=tile,
        overlap=tile_overlap,
        closely=tile_closely,
        roi=roi,
        parts=parts,
    )
    if below is not None and tile is None and roi is None and parts is None:
        looked_at = below.bank.layout
    say_layout(looked_at, extent, loaded, tile)
    reading = options.reading(bit_depth, strict_input, allow_truncated, max_pixels)
    trial = None
    if precision == AUTO:
        loaded, trial = choose_precision(
            lambda kind: loaded if kind == "fp32" else load(precision=kind),
            dataset, out, layout=looked_at, reading=reading, batch_size=batch_size,
        )  # fmt: skip
        say(f"precision {trial.chosen}: {trial.why}", to=errors)
    chosen = BuildOptions(
        batch_size,
        thumbnails,
        strict,
        pretrained,
        added_by="mrad build",
        origin={
            "path": str(data.absolute()),
            "layout": layout,
            "split": split,
            "objects": only or [],
            "mask_orientation": mask_orientation,
        },
        patch_keys=kept,
        coreset=coreset,
        layout=looked_at,
        reading=reading,
        trial=None if trial is None else asdict(trial),
        shard=SHARD if looked_at.plain else shard_size(looked_at, extent),
    )
    with progress() as bar:
        task = bar.add_task("images", total=len(dataset), note="")
        skipped = resumed = 0

        def report(done: int, left_out: int, old: bool) -> None:
            nonlocal skipped, resumed
            skipped, resumed = skipped + left_out, resumed + done * old
            if old:  # the rate is of images encoded now
                bar.reset(task, completed=resumed, total=len(dataset))
            else:
                bar.advance(task, done)
            bar.update(task, note=f"{skipped} skipped" if skipped else "")

        write = partial(
            build,
            loaded,
            dataset,
            options=chosen,
            restart=restart,
            progress=report,
            engine=engine_of(engine, partial(load, precision=loaded.precision), workers),
        )
        merged = None
        if below is None:
            built = write(out=out, replace=replace)
        else:
            name = Plan.of(loaded, dataset, chosen).fingerprint
            built, merged = build_on(
                below, name, out, lambda own: write(out=own), replace_out=replace
            )
        bar.update(task, completed=len(dataset))
    if merged is not None and below is not None:
        show_shares({below.name: below.bank, str(out): built.bank})
        say_merged(merged)
    summarise(built, dataset, loaded, out)


def engine_of(name: str, load: Callable[[], Encoder], workers: int | None) -> Engine | None:
    """What encodes: None for this process. `load` makes the encoder of a worker elsewhere."""
    if name == "local" and workers is None:
        return None
    if name != "ray":
        raise typer.BadParameter("--engine is local or ray; --workers goes with ray")
    from mrad_indexer.build.ray import RayEngine

    return RayEngine(load, workers)


def say_what_is_missing(dataset: Dataset) -> None:
    """Before an hour of encoding, not after it."""
    from mrad_indexer.datasets.check import under_both_labels

    counts = dataset.counts
    if dataset.name == "flat":
        say(
            f"took {counted(len(dataset), 'image')} of {dataset.root.name} as good parts: it has no folders, and "
            "nothing labels them"
        )
    if counts["anomalous"] and not counts["masks"]:
        warn("no defective image has a mask, so no patch of the memory will be anomalous")
    both = under_both_labels(dataset.records)
    if both:
        good, bad = both[0]
        warn(
            f"{counted(len(both), 'picture')} as good and as defective, so the memory contradicts itself: "
            f"{good.source} = {bad.source}{' and others' if len(both) > 1 else ''}: remove the wrong one"
        )
    say_left_out(dataset)


def say_left_out(dataset: Dataset) -> None:
    """Pictures that are there and were not taken, by folder: none goes unnoticed."""
    if not dataset.left_out:
        return
    by_folder: dict[tuple[str, str], list[str]] = {}
    for item in dataset.left_out:
        folder = item.path.parent.relative_to(dataset.root).as_posix()
        by_folder.setdefault((folder, item.why), []).append(item.path.name)
    warn(f"not taken: {counted(len(dataset.left_out), 'file')} in {dataset.root}")
    lines = []
    for (folder, why), names in by_folder.items():
        shown = ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
        lines.append(f"{folder}/: {len(names)} ({shown}): {why}")
    say_some(lines, SHOWN, counted(len(lines) - SHOWN, "other folder"), errors)


def summarise(built: Built, dataset: Dataset, encoder: Encoder, out: Path) -> None:
    """What the memory holds, what was left out, and whether it can be used."""
    bank = built.bank
    if built.already:
        say(f"{out} stands already, from the same images and settings")
    elif built.resumed:
        say(f"encoded before: {counted(built.resumed, 'image')}, now: {built.encoded:,}")
    labels = Counter(entry.label for entry in bank.entries)
    say(
        (str(out), "bold"),
        f": {labels[0]} good and {counted(labels[1], 'defective image')}, "
        f"{counted(len(bank.image), 'image key')}, {counted(len(bank.patch), 'patch key')} "
        f"({int(bank.patch.labels.sum())} anomalous)",
    )
    list_skipped(built.skipped)
    list_doubtful(built.doubtful)
    unmasked = dataset.counts["unmasked"]
    if unmasked:
        fed = "the image level only"
        if bank.layout.tiling is not None:
            fed += ", or nothing where they have several tiles: nobody knows which one is defective"
        say(f"without a mask: {counted(unmasked, 'defective image')}, fed to {fed}")
    empty = {item.source for item in built.doubtful if item.code == "mask_empty"}
    small = bank.metadata.get("build", {}).get("too_small", [])
    warn_of_small([source for source in small if source not in empty], encoder)
    heads = heads_of(bank)
    try:
        bank.check(encoder)
    except MRADError as error:
        warn(f"this memory cannot score yet: {error}")
        return
    if heads["default"] is None:
        warn(f"this memory cannot score yet: {heads['why']}")
        return
    say("head ", (heads["default"], "bold"), f" answers by default: {heads['why']}")
    say(worth(bank, heads["default"]))
    say("next: ", (next_step(bank, out), "bold"))


def warn_of_small(sources: list[str], encoder: Encoder) -> None:
    """Defects that are marked and yet say nothing to the heat maps."""
    if not sources:
        return
    side, grid = encoder.image_size, encoder.grid
    warn(
        f"{counted(len(sources), 'defect')} with a mask that fills no patch (an image is {side} x {side} px "
        f"here, a patch {side // grid}): no anomalous patch key comes of that, and heat maps learn "
        "nothing: cut pictures into (smaller) tiles with --tile, or take a larger --image-size"
    )
    say_some(sources, SHOWN, "others: mrad bank inspect --json lists all", errors)


def list_doubtful(doubtful: tuple[Skipped, ...]) -> None:
    """What was read with a warning: how often each, and the first."""
    for code, count in Counter(item.code for item in doubtful).most_common():
        say(f"{counted(count, 'image')} warned of: {code}", style="yellow")
        first = next(item for item in doubtful if item.code == code)
        say(f"  {first.source}: {first.reason}")


def list_skipped(skipped: tuple[Skipped, ...]) -> None:
    """The images left out, the first few by name."""
    if not skipped:
        return
    say(f"{counted(len(skipped), 'image')} skipped", style="yellow")
    lines = [f"{item.source}: {item.reason}" for item in skipped]
    say_some(lines, SHOWN, "others: mrad bank inspect lists all")
