"""A trained head on disk: one safetensors file that knows which encoder and memory it belongs to.

The tensors bear the paper's names (`image_proj.mlp1.weight`, ...); everything else is one JSON
object under the metadata key `mrad`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mrad.encoder.encoder import Encoder
from mrad.encoder.identity import EncoderIdentity
from mrad.errors import CheckpointError
from mrad.files import atomic_write_bytes

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    head: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    identity: EncoderIdentity
    bank_digest: str | None = None
    """SHA-256 of the `bank.json` it was trained on, where that memory lay on disk."""
    training: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def check(self, name: str, encoder: Encoder) -> None:
        """Raise `CheckpointError` when this is another head's file or another encoder's."""
        where = f"checkpoint {self.path}" if self.path else "the checkpoint"
        if self.head != name:
            raise CheckpointError(f"{where} belongs to head {self.head!r}, not {name!r}")
        if self.identity != encoder.identity:
            raise CheckpointError(
                f"{where} was trained on {self.identity}, the encoder is {encoder.identity}; "
                "load that encoder, or train the head again"
            )


def save_checkpoint(
    path: Path,
    head: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    identity: EncoderIdentity,
    bank_digest: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write one file, whole or not at all. Raises `CheckpointError` when a tensor is not finite."""
    plain = {name: value.detach().cpu().float().contiguous() for name, value in tensors.items()}
    for name, value in plain.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} holds NaN or infinity; nothing was written")
    header = {
        "format_version": FORMAT_VERSION,
        "head": head,
        "config": dict(config),
        "encoder": asdict(identity),
        "bank_digest": bank_digest,
        "training": dict(training or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(plain, metadata={"mrad": json.dumps(header)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises `CheckpointError` when it is absent, damaged, foreign or too new."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["mrad"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError as error:
        raise CheckpointError(
            f"{path} is safetensors, but no head of this project; the paper's files are converted "
            "by `mrad import checkpoint`"
        ) from error
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is no readable checkpoint ({error}); the paper's files are converted by "
            "`mrad import checkpoint`"
        ) from error
    try:
        if header["format_version"] > FORMAT_VERSION:
            raise CheckpointError(f"{path} was written by a newer version; upgrade mrad")
        return Checkpoint(
            header["head"],
            tensors,
            header["config"],
            EncoderIdentity(**header["encoder"]),
            header.get("bank_digest"),
            header.get("training", {}),
            path,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error!r}") from error


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `module`. Raises `CheckpointError` naming the first entry that is missing,
    unknown, of a wrong shape or not finite.
    """
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise CheckpointError(f"the checkpoint lacks {name} {list(value.shape)}")
        found = state[name]
        if found.shape != value.shape:
            raise CheckpointError(
                f"{name} is {list(found.shape)} in the checkpoint, the encoder needs "
                f"{list(value.shape)}"
            )
        if not torch.isfinite(found).all():
            raise CheckpointError(f"{name} holds NaN or infinity")
    unknown = sorted(state.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(f"the checkpoint holds unknown entries: {', '.join(unknown[:3])}")
    module.load_state_dict({name: value.float() for name, value in state.items()})
