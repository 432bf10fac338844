"""A bank's folder and a head's name -> a detector, on the encoder that the bank names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrad.detector import Detector
from mrad.encoder.encoder import Encoder, precision_for
from mrad.encoder.named import weights_named
from mrad.errors import DataError
from mrad.heads.choose import AUTO, default_head, problem
from mrad.memory.bank import MemoryBank
from mrad_indexer.datasets import Dataset, read_dataset


@dataclass(frozen=True)
class HeadChoice:
    """`auto`, `nn`, `combined`, `tf`, or `ft:path/to/ft.safetensors`."""

    name: str
    checkpoint: Path | None = None

    @classmethod
    def parse(cls, text: str) -> HeadChoice:
        """From the command line."""
        name, _, checkpoint = text.partition(":")
        return cls(name, Path(checkpoint) if checkpoint else None)

    def of(self, bank: MemoryBank, part: MemoryBank | None = None) -> HeadChoice:
        """With the head that suits the memory in the place of `auto`.

        `part`: what it holds of one product, where that is asked alone; another head where the whole
        memory's cannot serve it.
        """
        if self.name != AUTO:
            return self
        name = default_head(bank, self.checkpoint).head
        if part is not None and problem(part, name) is not None:
            name = default_head(part, self.checkpoint).head
        return replace(self, name=name)


def encoder_of(
    bank: MemoryBank,
    *,
    pretrained: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Encoder:
    """The encoder that built a bank. Raises `WeightsNotFoundError`, `EncoderMismatchError`.

    Args:
        bank: names it.
        pretrained: tag or file of its weights; None: what the bank's metadata says, else the default.
        device: where it runs.
        precision: `fp32`, `bf16`, or `auto`: what the bank was built in, where the device has it.
    """
    identity = bank.identity
    encoder = Encoder.load(
        identity.architecture,
        pretrained or weights_named(identity, bank.metadata.get("pretrained")),
        image_size=identity.image_size,
        device=device,
        precision=precision_for(precision, bank.precision, device),
    )
    bank.check(encoder)
    return encoder


def own_images(bank: MemoryBank) -> Dataset:
    """The images that a bank was built of, from where they were. Raises `DataError`."""
    origin = (bank.metadata.get("build") or {}).get("origin")
    if not origin:
        raise DataError("the bank does not say which images it was built of; give their folder")
    try:
        found = _of_origin(origin)
    except DataError as error:
        raise DataError(
            f"the images that the bank was built of cannot be read any more ({error}); give their "
            "folder"
        ) from error
    if not (origin.get("held") or "merged" in origin or bank.changes is not None):
        return found
    held = {(entry.object_name, entry.source) for entry in bank.entries}
    kept = tuple(r for r in found.records if (r.object_name, r.source) in held)
    if not kept:
        raise DataError("none of the images that the bank holds is where it was; give their folder")
    return replace(found, records=kept)


def _of_origin(origin: dict[str, Any]) -> Dataset:
    """Of one build, or of all whose memories were joined."""
    if "merged" in origin:
        parts = [_of_origin(part) for part in origin["merged"]]
        return replace(parts[0], records=tuple(r for part in parts for r in part.records))
    dataset = read_dataset(
        origin["path"],
        layout=origin["layout"],
        mask_orientation=origin.get("mask_orientation", "auto"),
    )
    return choose(dataset, origin["split"], origin["objects"])


def detector_of(encoder: Encoder, bank: MemoryBank, head: HeadChoice, **options: Any) -> Detector:
    """A detector; `options` are `Detector`'s."""
    return Detector(encoder, bank, head.name, checkpoint=head.checkpoint, **options)


def choose(dataset: Dataset, split: str = "auto", objects: Sequence[str] | None = None) -> Dataset:
    """One split and some objects. `auto`: `test` where there is one, else everything.

    Raises `DataError` when nothing is left.
    """
    if split == "auto":
        split = "test" if any(r.split == "test" for r in dataset.records) else "all"
    chosen = dataset if split == "all" else dataset.select(split=split)
    if not objects:
        return chosen
    unknown = sorted(set(objects) - set(chosen.objects))
    if unknown:
        raise DataError(f"{dataset.root} has no object {unknown}; it has {list(chosen.objects)}")
    return replace(chosen, records=tuple(r for r in chosen.records if r.object_name in objects))


def of_product(dataset: Dataset, name: str) -> Dataset:
    """A product's images in a dataset: those that bear its name, or all where there is one name only.

    Raises `DataError` where the dataset names several others.
    """
    if name in dataset.objects or len(dataset.objects) > 1:
        return choose(dataset, "all", [name])
    return dataset
