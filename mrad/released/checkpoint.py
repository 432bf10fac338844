"""The paper's checkpoints -> this project's: FT and CLIP.

A torch file with the entries `image_proj`, `patch_proj` and, for CLIP, `prompt_learner` and
`prompt_proj`, each a state dict. Nothing is ever unpickled beyond tensors and containers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mrad.encoder.encoder import Encoder
from mrad.errors import CheckpointError
from mrad.files import read_tensors, sha256_file
from mrad.heads import head_class
from mrad.heads.checkpoint import save_checkpoint

PROJECTIONS = ("image_proj", "patch_proj")
PROMPTS = ("prompt_proj", "prompt_learner")
REBUILT = tuple(
    f"prompt_learner.{name}_{kind}"
    for name in ("token_prefix", "token_suffix", "tokenized_prompts")
    for kind in ("pos", "neg")
)
"""Buffers that the release saves: CLIP's own tokens and their embeddings, made again here."""
UNUSED = ("prompt_learner.compound_prompt_projections.", "prompt_learner.mlp.")
"""Layers that the released prompt learner registers, saves and never calls."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """What became of a released checkpoint."""

    head: str
    """`ft` or `clip`."""
    unused: tuple[str, ...]
    """Entries that were left out, because the release never uses them."""


def convert_checkpoint(
    source: Path, target: Path, encoder: Encoder, head: str | None = None
) -> Converted:
    """Write the released checkpoint `source` as this project's `target`.

    `head`: `ft` or `clip`; None: `clip` where the file has prompts. A clip checkpoint holds an FT
    one. What the release saves and never uses (`UNUSED`) is left out, named in the result and in
    the file's own account. Raises `CheckpointError` naming an entry that is missing, unknown or of
    a wrong shape.
    """
    content = read_tensors(source, CheckpointError)
    entries = [name for name in PROJECTIONS + PROMPTS if name in content]
    head = head or ("clip" if set(PROMPTS) <= set(entries) else "ft")
    if head not in ("ft", "clip"):
        raise CheckpointError(f"the paper has no checkpoints of a head {head!r}; choose ft or clip")
    found: dict[str, Tensor] = {}
    for entry in PROJECTIONS + (PROMPTS if head == "clip" else ()):
        if entry not in content:
            raise CheckpointError(
                f"{source} has no entry {entry!r}, which {head} needs; it has: "
                f"{', '.join(map(str, content)) or 'nothing'}"
            )
        found |= _flat(entry, content[entry], source)
    unused = tuple(name for name in found if name.startswith(UNUSED))
    tensors = {name: value for name, value in found.items() if name not in unused}
    cls = head_class(head)
    config = cls.Config()
    cls(encoder, config, tensors)  # every shape checked, each error naming its entry
    origin = {"file": source.name, "sha256": sha256_file(source), "unused": list(unused)}
    save_checkpoint(
        target, head, tensors, config.model_dump(), encoder.identity, None, {"origin": origin}
    )
    if unused:
        logger.info("%s: left out what the release never uses: %s", source, ", ".join(unused))
    return Converted(head, unused)


def _flat(entry: str, state: Any, source: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source}: {entry} is no state dict but {type(state).__name__}")
    flat = {}
    for name, value in state.items():
        full = f"{entry}.{str(name).removeprefix('module.')}"
        if full in REBUILT:
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {full} is no tensor but {type(value).__name__}")
        flat[full] = value.float()
    return flat
