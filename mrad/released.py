"""The paper's own files -> this project's: checkpoints and memory caches (METHOD.md, Training).

Checkpoint: a torch file with the entries `image_proj`, `patch_proj` and, for CLIP, `prompt_learner`
and `prompt_proj`, each a state dict. Memory: two torch files, each `{"keys", "values"}`, with
one-hot values (normal, anomalous). Nothing is ever unpickled beyond tensors and containers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mrad.errors import BankError, CheckpointError, DimensionError, MRADError, NonFiniteError
from mrad.files import sha256_file
from mrad.heads import head_class
from mrad.heads.checkpoint import save_checkpoint
from mrad.memory import Entry, Key, MemoryBank, new_entry_id, unit
from mrad.types import ANOMALOUS, Level

if TYPE_CHECKING:
    from mrad.encoder import Encoder

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
    content = _read(source, CheckpointError)
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


@dataclass(frozen=True)
class _Cache:
    """One of the two memory files."""

    level: Level
    keys: Tensor
    """[n, d] float32."""
    labels: Tensor
    """int64 [n]."""


def convert_memory(image: Path, patch: Path, encoder: Encoder) -> MemoryBank:
    """The released memory caches (`cache_model_*.pt`, `cache_patch_model_*.pt`) as a bank.

    Nothing in them says which keys belong to one image, so each key becomes an entry of its own
    and no provenance is invented. Raises `BankError`, `DimensionError`, `NonFiniteError` naming the
    file and the entry.
    """
    entries: list[Entry] = []
    keys: list[Key] = []
    for level, path, width in (
        ("image", image, encoder.embed_dim),
        ("patch", patch, encoder.width),
    ):
        cache = _read_cache(path, "image" if level == "image" else "patch", width)
        for row in range(len(cache.keys)):
            entry, key = _one(cache, row, path.name)
            entries.append(entry)
            keys.append(key)
    files = {path.name: sha256_file(path) for path in (image, patch)}
    return MemoryBank.from_keys(
        encoder.identity,
        entries,
        keys,
        dims=(encoder.embed_dim, encoder.width),
        metadata={"imported": files},
    )


def _one(cache: _Cache, row: int, name: str) -> tuple[Entry, Key]:
    label = int(cache.labels[row])
    entry = Entry(new_entry_id(), label, source=f"{name}#{row}", added_by="import")
    part = "anomalous" if label == ANOMALOUS else "normal"
    region = "image" if cache.level == "image" else part
    vector = unit(cache.keys[row].numpy())
    return entry, Key(cache.level, label, entry.entry_id, region, 0, vector)


def _read_cache(path: Path, level: Level, width: int) -> _Cache:
    content = _read(path, BankError)
    for name in ("keys", "values"):
        if not isinstance(content.get(name), Tensor):
            raise BankError(f"{path} has no tensor {name!r}; is it a memory cache of the paper?")
    keys, values = content["keys"].float(), content["values"].float()
    if keys.ndim != 2 or keys.shape[1] != width:
        raise DimensionError(
            f"{path}: keys is {list(keys.shape)}; the encoder's {level} level needs [n, {width}]"
        )
    if values.shape != (len(keys), 2):
        raise DimensionError(f"{path}: values is {list(values.shape)}, not [{len(keys)}, 2]")
    if not torch.isfinite(keys).all():
        raise NonFiniteError(f"{path}: keys holds NaN or infinity")
    one_hot = ((values == 0) | (values == 1)).all() and (values.sum(dim=1) == 1).all()
    if not one_hot:
        raise BankError(f"{path}: values is not one-hot (normal, anomalous)")
    return _Cache(level, keys, values.argmax(dim=1))


def _read(path: Path, error: type[MRADError]) -> Mapping[str, Any]:
    if not path.is_file():
        raise error(f"no file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as cause:
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise error(
            f"{path} is no torch file that holds only tensors, and nothing else is read: {reason}"
        ) from cause
    if not isinstance(content, Mapping):
        raise error(f"{path} holds {type(content).__name__}, not a dict of entries")
    return content
