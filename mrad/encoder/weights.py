"""Where CLIP's weights come from: shipped, on disk, or a hub; and how to bring them by hand."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import nn

from mrad import models
from mrad.encoder.converted import ConvertedTower, cache_path, read, shipped, write
from mrad.encoder.identity import TIMM, EncoderIdentity
from mrad.encoder.torchscript import is_torchscript, read_torchscript
from mrad.encoder.tower import TowerParts
from mrad.errors import EncoderError, WeightsNotFoundError
from mrad.files import sha256_file
from mrad.images.preprocess import Preprocess

logger = logging.getLogger(__name__)
PAPER_ENCODER = "ViT-L-14-336"
PAPER_IMAGE_SIZE = 518
QUICK = "-quickgelu"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights found on this machine."""

    name: str
    pretrained: str
    path: Path
    size: int
    shipped: bool = False


def search_paths() -> list[Path]:
    """Folders looked through for `<name>/<tag>.<suffix>`, first match wins."""
    configured = os.environ.get("MRAD_WEIGHTS", "")
    folders = [Path(part).expanduser() for part in configured.split(os.pathsep) if part]
    return [*folders, user_cache_path("mrad") / "weights"]


def locate(name: str, pretrained: str) -> Path | None:
    """The file of `name` with tag `pretrained` in the search paths, or None."""
    for folder in search_paths():
        for suffix in SUFFIXES:
            path = folder / _safe(name) / f"{_safe(pretrained)}{suffix}"
            if path.is_file():
                return path
    return None


def list_weights() -> list[WeightsFile]:
    """Every file of weights that can be used now: shipped ones and those in the search paths."""
    found = [
        WeightsFile(name, "shipped", path, path.stat().st_size, shipped=True)
        for name, path in models.shipped().items()
    ]
    for folder in search_paths():
        for path in sorted(folder.glob("*/*")):
            if path.suffix in SUFFIXES:
                name = path.parent.name.replace(_safe(TIMM), TIMM, 1)
                found.append(WeightsFile(name, path.stem, path, path.stat().st_size))
    return found


def fetch(name: str, pretrained: str) -> Path:
    """Download weights from open_clip's or timm's hub into the last search path.

    Raises `WeightsNotFoundError` that says what was tried and how to bring the file by hand.
    """
    target = search_paths()[-1] / _safe(name)
    target.mkdir(parents=True, exist_ok=True)
    config = {} if name.startswith(TIMM) else _pretrained_config(name, pretrained)
    try:
        if name.startswith(TIMM):
            from mrad.encoder.plain.of_timm import TimmName, download

            source = download(TimmName(name.removeprefix(TIMM), pretrained), target / "download")
        else:
            import open_clip

            source = Path(open_clip.download_pretrained(config, cache_dir=str(target / "download")))
    except WeightsNotFoundError:
        raise
    except Exception as error:  # whatever a hub client raises without a network
        raise WeightsNotFoundError(_not_found(name, pretrained, error)) from error
    suffix = source.suffix if source.suffix in SUFFIXES else ".pt"
    path = target / f"{_safe(pretrained)}{suffix}"
    if path.exists():
        return path
    path.hardlink_to(source.resolve())
    return path


def published(name: str, tag: str | None) -> tuple[str, str]:
    """An encoder's name and the tag of its published weights, as `locate` and `fetch` take them.

    timm's tag may belong to the name; without one it is timm's own choice. open_clip's is `openai`.
    """
    if not name.startswith(TIMM):
        return name, tag or "openai"
    from mrad.encoder.plain.of_timm import TimmName

    found = TimmName.of(name.removeprefix(TIMM))
    return f"{TIMM}{found.architecture}", tag or found.tag


def verify(path: Path) -> dict[str, Any]:
    """Read a file of weights without unpickling; report its digest, tensors and parameters.

    Raises `EncoderError` when it is not a readable state dict.
    """
    state = read_state(path)
    return {
        "path": str(path),
        "sha256": sha256_file(path),
        "tensors": len(state),
        "parameters": sum(value.numel() for value in state.values()),
        "torchscript": is_torchscript(path),
    }


@dataclass(frozen=True)
class LoadedCLIP:
    """A CLIP with its weights."""

    clip: nn.Module
    architecture: str
    """open_clip's name of exactly this model: OpenAI's weights make `NAME` a `NAME-quickgelu`."""
    image_size: int | None
    """The method's input size for it; None: the model's own."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Of the pixels that the weights were trained on; None: OpenAI's."""


def find_tower(name: str, pretrained: str | Path | None) -> ConvertedTower | None:
    """The image tower without open_clip and timm: shipped, or kept when it was loaded before; else None.

    `name` is that of the weights (`EncoderName.source`).
    """
    if pretrained is None and not name.startswith(TIMM):
        description = models.FOLDER / f"{name}.tower.json"
        return shipped(description, models.shipped()[name]) if description.exists() else None
    path = _cached(name, pretrained)
    return None if path is None else read(path)


def keep_tower(
    name: str,
    pretrained: str | Path | None,
    parts: TowerParts,
    identity: EncoderIdentity,
    preprocess: Preprocess,
) -> None:
    """Keep an image tower that was just loaded, so that it starts faster next time.

    Args:
        name: that of its weights (`EncoderName.source`).
        pretrained: as it was asked for.
        parts: of the tower.
        identity: of the tower, at the size that the method takes it at, without `:plain`.
        preprocess: its mean and deviation.

    Nothing is kept, and the log says why, where the cache cannot be written.
    """
    asked = pretrained is not None or name.startswith(TIMM)
    path = _cached(name, pretrained) if asked else None
    if path is None or path.exists():
        return
    tower = ConvertedTower(parts, identity, preprocess.mean, preprocess.std)
    try:
        write(tower, path)
    except OSError as error:
        logger.info("the tower is not kept at %s: %s", path, error)


def _cached(name: str, pretrained: str | Path | None) -> Path | None:
    """Where the tower of a file of weights is kept, whether it is there or not; None without a file."""
    local = None if pretrained is None else Path(pretrained).expanduser()
    if local is None:  # timm's, whose tag belongs to the name
        architecture, _, tag = name.partition(".")
        weights = locate(architecture, tag) if tag else None
    else:
        weights = local if local.is_file() else locate(name, str(pretrained))
    folder = user_cache_path("mrad") / "towers"
    return None if weights is None else cache_path(folder, name, weights)


def load_clip(name: str, pretrained: str | Path | None) -> LoadedCLIP:
    """Build the CLIP `name` with its weights. Raises `WeightsNotFoundError`, `EncoderError`."""
    from open_clip import factory, get_model_config

    models.register()
    path, config = _resolve(name, pretrained)
    quick = bool(config.get("quick_gelu", False))
    try:
        with _unalarmed():
            clip = factory.create_model(name, load_weights=False, force_quick_gelu=quick)
    except RuntimeError as error:
        raise EncoderError(
            f"open_clip knows no model {name!r}; see open_clip.list_models()"
        ) from error
    _load_state(clip, path)
    base, known = name.removesuffix(QUICK), get_model_config(name) or {}
    return LoadedCLIP(
        clip.eval(),
        f"{name}{QUICK}" if quick and not known.get("quick_gelu", False) else name,
        PAPER_IMAGE_SIZE if base == PAPER_ENCODER else None,
        config.get("mean"),
        config.get("std"),
    )


def load_timm(base: str, pretrained: str | Path | None) -> nn.Module:
    """Build timm's `base`, ARCHITECTURE.TAG, with weights of a local file, or of the hub where none is named.

    Raises `WeightsNotFoundError`, `EncoderError`.
    """
    from mrad.encoder.plain.of_timm import TimmName, build, fill

    name = TimmName.of(base)
    path = None if pretrained is None else Path(pretrained).expanduser()
    if path is not None and not path.is_file():
        raise WeightsNotFoundError(
            f"no checkpoint at {path}: of a timm model, weights are a file, or the published ones whose "
            f"tag belongs to the name, as {TIMM}{name}"
        )
    architecture = f"{TIMM}{name.architecture}"
    model = build(name)
    path = path or locate(architecture, name.tag) or fetch(architecture, name.tag)
    fill(model, read_state(path), path)
    return model


@contextlib.contextmanager
def _unalarmed() -> Iterator[None]:
    """Without open_clip's warning that the model is random: its weights are loaded right after."""

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _resolve(name: str, pretrained: str | Path | None) -> tuple[Path, dict[str, Any]]:
    """Path of the weights, and what open_clip says of how they were trained."""
    if pretrained is None:
        shipped = models.shipped()
        if name not in shipped:
            raise WeightsNotFoundError(
                f"{name} is not shipped inside (shipped: {', '.join(shipped) or 'none'}): name a "
                "pretrained tag or the path of a checkpoint (--weights FILE; a model of timm is timm:NAME); "
                "docs/offline.md says where to get one"
            )
        return shipped[name], {}
    local = Path(pretrained).expanduser()
    if local.is_file():
        return local, _config_of_file(name, local)
    if isinstance(pretrained, Path) or local.suffix in SUFFIXES or os.sep in str(pretrained):
        raise WeightsNotFoundError(f"no checkpoint at {local}")
    config = _pretrained_config(name, str(pretrained))
    return locate(name, str(pretrained)) or fetch(name, str(pretrained)), config


def _config_of_file(name: str, path: Path) -> dict[str, Any]:
    """How a file's weights were trained, which no file of weights says.

    Only OpenAI published TorchScript archives. A file may be named after a published tag; otherwise
    what is said of all weights published for the model holds: for the paper's, QuickGELU.
    """
    import open_clip

    if is_torchscript(path):
        return {"quick_gelu": True}
    base = name.removesuffix(QUICK)
    published = {
        tag: open_clip.get_pretrained_cfg(base, tag)
        for tag in open_clip.list_pretrained_tags_by_model(base)
    }
    if path.stem in published:
        return dict(published[path.stem])
    quick = all(config.get("quick_gelu", False) for config in published.values())
    return {"quick_gelu": bool(published) and quick}


def _pretrained_config(name: str, pretrained: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise WeightsNotFoundError(
            f"open_clip has no tag {pretrained!r} for {name} (it has: {', '.join(tags) or 'none'}), "
            "and it is no path of a file"
        )
    return config


def _not_found(name: str, pretrained: str, error: Exception) -> str:
    places = "\n".join(
        f"  {folder / _safe(name) / _safe(pretrained)}{{{','.join(SUFFIXES)}}}"
        for folder in search_paths()
    )
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"weights {pretrained!r} of {name} are not on this machine, and the hub did not give them "
        f"({type(error).__name__}: {reason}).\nLooked for:\n{places}\nTo bring them by hand: on a "
        f"machine with a network run `mrad weights fetch {name} {pretrained}`, copy the file to one "
        "of these places (MRAD_WEIGHTS adds a folder), or pass its path as the pretrained argument."
    )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """State dict of safetensors, a torch file (`weights_only`) or OpenAI's TorchScript archive.

    Nothing in the file is ever run. Raises `EncoderError`.
    """
    try:
        state = _read_tensors(path)
    except (ImportError, MemoryError):  # this machine's, not the file's
        raise
    except Exception as error:  # whatever a broken file makes its reader raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EncoderError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"{path} holds no state dict")
    return {name: value.float() for name, value in state.items()}


def _read_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torchscript(path):
        state: Any = read_torchscript(path)
        for extra in ("input_resolution", "context_length", "vocab_size"):
            state.pop(extra, None)
        return state
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if isinstance(state, dict) and all(str(name).startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _load_state(clip: nn.Module, path: Path) -> None:
    from open_clip import factory

    state = read_state(path)
    convert = factory.convert_state_dict
    try:
        state = convert(clip, state)
        if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
            state = factory.convert_to_custom_text_state_dict(state)
        clip.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError) as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise EncoderError(f"{path} does not fit this model: {lines or error}") from error


def _safe(part: str) -> str:
    return part.replace("/", "-").replace(os.sep, "-").replace(":", "-")
