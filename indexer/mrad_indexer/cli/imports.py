"""`mrad import checkpoint|memory`: the paper's own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrad_indexer.cli.common.console import MRADGroup

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder

app = typer.Typer(
    cls=MRADGroup, help="Bring the paper's checkpoints and memories.", no_args_is_help=True
)

Out = Annotated[Path, typer.Option("--out", help="where to write")]
EncoderName = Annotated[str, typer.Option("--encoder", help="the encoder they were made with")]
Pretrained = Annotated[
    str | None,
    typer.Option("--pretrained", "--weights", help="tag or file of the encoder's weights"),
]
ImageSize = Annotated[int | None, typer.Option(help="side of the encoder's input")]


@app.command("checkpoint")
def checkpoint_command(
    source: Annotated[Path, typer.Argument(help="the release's torch file")],
    out: Out,
    head: Annotated[str | None, typer.Option(help="ft or clip; by itself: what it holds")] = None,
    encoder: EncoderName = "ViT-L-14-336",
    pretrained: Pretrained = "openai",
    image_size: ImageSize = None,
) -> None:
    """Convert a head that the paper's code trained: its torch file -> OUT.safetensors."""
    from mrad.released.checkpoint import convert_checkpoint

    loaded = papers_encoder(encoder, pretrained, image_size)
    done = convert_checkpoint(source, out, loaded, head)
    typer.echo(f"{out}: head {done.head} for {loaded.identity}")
    if done.unused:
        layers = sorted({".".join(name.split(".")[:2]) for name in done.unused})
        typer.echo(
            f"left out: {len(done.unused)} entries that the release saves and never uses "
            f"({', '.join(layers)})"
        )


@app.command("memory")
def memory_command(
    image: Annotated[Path, typer.Argument(help="cache_model_DATA.pt")],
    patch: Annotated[Path, typer.Argument(help="cache_patch_model_DATA.pt")],
    out: Out,
    encoder: EncoderName = "ViT-L-14-336",
    pretrained: Pretrained = "openai",
    image_size: ImageSize = None,
) -> None:
    """Convert a memory of the paper's code: its two cache files -> a bank's folder."""
    from mrad.encoder.named import name_in_bank
    from mrad.released.memory import convert_memory

    loaded = papers_encoder(encoder, pretrained, image_size)
    bank = convert_memory(image, patch, loaded)
    bank.check(loaded)
    replace(bank, metadata=bank.metadata | {"pretrained": name_in_bank(pretrained)}).save(out)
    typer.echo(f"{out}: {len(bank.image)} image keys, {len(bank.patch)} patch keys")


def papers_encoder(name: str, pretrained: str | None, image_size: int | None) -> Encoder:
    """The encoder that the paper's files were made with. Raises `UnsupportedEncoderError` for plain tokens."""
    from mrad.encoder.encoder import Encoder
    from mrad.encoder.identity import EncoderName
    from mrad.errors import UnsupportedEncoderError

    if EncoderName.parse(name).plain:
        raise UnsupportedEncoderError(
            f"{name} gives plain patch tokens, and the paper's files hold its own features: name the CLIP "
            "that they were made with"
        )
    return Encoder.load(name, pretrained, image_size=image_size)
