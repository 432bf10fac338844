"""CLIPs shipped inside the package: an open_clip config and half-precision weights for each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def register() -> None:
    """Make the shipped configs known to open_clip, so that `open_clip.create_model` finds them."""
    import open_clip

    from mrad.models import architecture  # noqa: F401  timm learns of its towers

    configs = {path.stem for path in FOLDER.glob("*.json") if "." not in path.stem}
    if not configs <= set(open_clip.list_models()):
        open_clip.add_model_config(FOLDER)


def shipped() -> dict[str, Path]:
    """Name -> weights of every CLIP inside the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def path_of(name: str) -> Path:
    """The weights of a shipped CLIP, for `open_clip.create_model(name, pretrained=...)`, which knows
    the name from now on.
    """
    register()
    return FOLDER / f"{name}.safetensors"
