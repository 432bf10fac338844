"""The paper's checkpoints -> this project's: FT and CLIP.

A torch file with the entries `image_proj`, `patch_proj` and, for CLIP, `prompt_learner` and
`prompt_proj`, each a state dict. Nothing is ever unpickled beyond tensors and containers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mrad.errors import CheckpointError
from mrad.files import read_tensors, sha256_file
from mrad.heads import head_class
from mrad.heads.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder

PROJECTIONS = ("image_proj", "patch_proj")
PROMPTS = ("prompt_proj", "prompt_learner")
BUFFERS = ("prompt_learner.token_prefix", "prompt_learner.token_suffix", "prompt_learner.tokenized")
"""What the release saves besides parameters: CLIP's own token embeddings, rebuilt here."""


def convert_checkpoint(
    source: Path, target: Path, encoder: Encoder, head: str | None = None
) -> str:
    """Write the released checkpoint `source` as this project's `target`. Returns the head's name.

    `head`: `ft` or `clip`; None: `clip` where the file has prompts. A clip checkpoint holds an FT
    one. Raises `CheckpointError` naming the entry that is missing or of a wrong shape.
    """
    content = read_tensors(source, CheckpointError)
    entries = [name for name in PROJECTIONS + PROMPTS if name in content]
    head = head or ("clip" if set(PROMPTS) <= set(entries) else "ft")
    if head not in ("ft", "clip"):
        raise CheckpointError(f"the paper has no checkpoints of a head {head!r}; choose ft or clip")
    tensors: dict[str, Tensor] = {}
    for entry in PROJECTIONS + (PROMPTS if head == "clip" else ()):
        if entry not in content:
            raise CheckpointError(
                f"{source} has no entry {entry!r}, which {head} needs; it has: "
                f"{', '.join(map(str, content)) or 'nothing'}"
            )
        tensors |= _flat(entry, content[entry], source)
    cls = head_class(head)
    config = cls.Config()
    cls(encoder, config, tensors)  # every shape checked, each error naming its entry
    origin = {"origin": {"file": source.name, "sha256": sha256_file(source)}}
    save_checkpoint(target, head, tensors, config.model_dump(), encoder.identity, None, origin)
    return head


def _flat(entry: str, state: Any, source: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source}: {entry} is no state dict but {type(state).__name__}")
    flat = {}
    for name, value in state.items():
        full = f"{entry}.{str(name).removeprefix('module.')}"
        if full.startswith(BUFFERS):
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {full} is no tensor but {type(value).__name__}")
        flat[full] = value.float()
    return flat
