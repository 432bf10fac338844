"""`mrad train ft|clip`: heads trained over features that are computed once."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from platformdirs import user_cache_path
from pydantic import BaseModel, ValidationError

from mrad.errors import HeadError
from mrad.words import counted
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import MRADGroup, errors, listing, progress, say, warn

if TYPE_CHECKING:
    from mrad_indexer.training.compare import Comparison

app = typer.Typer(cls=MRADGroup)
Recipe = TypeVar("Recipe", bound=BaseModel)


class TrainedHead(StrEnum):
    """Heads that are trained."""

    ft = "ft"
    clip = "clip"


@app.command(no_args_is_help=True)
def train_command(
    head: Annotated[TrainedHead, typer.Argument(help="which head")],
    data: Annotated[
        Path, typer.Argument(help="a dataset in any layout that `mrad data check` knows")
    ],
    out: Annotated[Path, typer.Option("--out", help="the checkpoint, NAME.safetensors")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", help="FT's values: paper, few-images, or auto: by the number of images"
        ),
    ] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="a value of the recipe, NAME=VALUE; again for more"),
    ] = None,
    settings_ft: Annotated[
        list[str] | None,
        typer.Option("--set-ft", help="a value of the FT stage's recipe, NAME=VALUE"),
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="an FT checkpoint; else FT is trained first")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, test, or all that there is")] = None,
    layout: options.Layout = "auto",
    bank: Annotated[
        Path | None, typer.Option("--bank", help="retrieve from this memory, not from these images")
    ] = None,
    save_bank: Annotated[
        Path | None, typer.Option("--save-bank", help="keep the memory built of these images here")
    ] = None,
    encoder_name: Annotated[str, typer.Option("--encoder", help=options.ENCODER)] = "mrad-mini",
    pretrained: options.Pretrained = None,
    image_size: Annotated[int | None, typer.Option(help="side of the encoder's input")] = None,
    device: options.Device = "auto",
    cache: Annotated[
        Path | None, typer.Option("--cache", help="where features are kept between runs")
    ] = None,
    aside: Annotated[
        float,
        typer.Option(
            "--keep-aside",
            help="share of the images to compare the head with tf on, not to train on",
            min=0,
            max=0.5,
        ),
    ] = 0.2,
) -> None:
    """Train a head on labelled images.

    Writes OUT, its loss curves .csv and .png.

    ft learns projections of queries and keys, clip learns prompts on top of it. At the end the head
    is compared with those that need no training, on images kept aside.
    """
    from mrad import Encoder, MemoryBank
    from mrad.encoder.identity import EncoderName
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.training.compare import keep_aside
    from mrad_indexer.training.recipe import CLIPRecipe, check_steps, ft_recipe, recipe_for
    from mrad_indexer.training.run import train

    clip = None
    if head is TrainedHead.clip:
        clip, settings = recipe_of(CLIPRecipe(), settings), settings_ft
    elif settings_ft or start_from:
        raise typer.BadParameter("is for clip", param_hint="--set-ft, --start-from")
    records = read_dataset(data, split=split, layout=layout).records
    images = len(keep_aside(records, aside)[0])
    chosen = recipe_for(images, head.value) if recipe == "auto" else recipe
    ft = recipe_of(ft_recipe(chosen, head.value), settings)
    if start_from is None:
        check_steps(ft, images)
        say(f"{counted(images, 'image')} to train on: recipe {chosen}", style="dim", to=errors)
    encoder = Encoder.load(encoder_name, pretrained, image_size=image_size, device=device)
    if head is TrainedHead.clip:
        EncoderName.parse(encoder.name).check_text()
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, of: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=of, note="")
            bar.update(tasks[stage], completed=done, note=note)

        result = train(
            head.value,
            encoder,
            records,
            out,
            cache or user_cache_path("mrad") / "features",
            bank=None if bank is None else MemoryBank.load(bank, encoder=encoder),
            bank_path=save_bank,
            metadata={"pretrained": pretrained} if pretrained else {},
            encoding=lambda done, of: show("encode", done, of),
            progress=lambda stage, done, of, loss: show(stage, done, of, f"loss {loss:.3f}"),
            aside=aside,
            ft=ft,
            clip=clip,
            start_from=start_from,
        )
    typer.echo(f"{out} ({counted(len(records), 'image')}, {result.encoded} encoded now)")
    for stage, seconds in result.history.seconds.items():
        epochs = result.history.epochs[stage]
        last = result.history.epoch_mean(stage, epochs)
        typer.echo(f"{stage}: {epochs} epochs in {seconds:.1f} s, last mean loss {last:.4f}")
    if result.history.epochs:
        typer.echo(
            f"an epoch took {result.epoch_seconds():.2f} s over cached features; encoding again "
            f"would add {result.encode_seconds:.1f} s to each ({result.speedup():.0f} times slower)"
        )

    show_comparison(result.comparison, len(records) - images)


def show_comparison(found: Comparison | None, kept: int) -> None:
    """The trained head beside those that need no training, and what to make of it."""
    if found is None:
        say(
            "not compared with tf: too few images to keep any aside (--keep-aside); judge others "
            "with mrad eval"
        )
        return
    say(f"on {counted(kept, 'image')} kept aside, in percent:")
    rows = []
    for item in found.evaluation.candidates:
        figures = (("image", "auroc"), ("pixel", "auroc"), ("pixel", "aupro"))
        values = (item.mean(*figure) for figure in figures)
        rows.append((*("–" if v is None else f"{100 * v:.1f}" for v in values), item.name))
    listing(("image AUROC", "pixel AUROC", "AUPRO", "head"), rows)
    for name, why in found.left_out.items():
        say(f"{name} was not compared: {why}")
    trained = found.evaluation.candidates[0].name
    if found.best != trained:
        warn(
            f"{found.best} orders these images better than {trained} does: stay with it, or train "
            "on more images"
        )


def recipe_of(base: Recipe, settings: list[str] | None) -> Recipe:
    """A recipe with `NAME=VALUE` texts put over it. Raises `HeadError` naming what is wrong."""
    values: dict[str, Any] = base.model_dump()
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise HeadError(f"{text!r} is not NAME=VALUE")
        values[name.strip()] = _value(value.strip())
    try:
        return type(base).model_validate(values)
    except ValidationError as error:
        known = ", ".join(type(base).model_fields)
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise HeadError(f"{wrong} (the recipe has: {known})") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
