"""The whole: images -> predictions. The one place that wires encoder, memory, head and maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import MRADError
from mrad.heads import Head, HeadOutput, load_head
from mrad.images.preprocess import DEFAULT_MAX_PIXELS, load_image
from mrad.maps import anomaly_map, resize_map, top_mean
from mrad.memory.bank import MemoryBank
from mrad.retrieval.base import Retriever
from mrad.retrieval.choose import make_retriever
from mrad.retrieval.exact import ExactRetriever
from mrad.types import Evidence, ImageInput, Level, Prediction


@dataclass(frozen=True)
class Decoded:
    """An image on its way to the encoder."""

    pixels: Tensor
    """float32 [3, S, S], from `Encoder.prepare`."""
    size: tuple[int, int]
    """Width, height of the upright input."""
    image: Image.Image
    """The upright RGB input."""


class Detector:
    """Judges images by what they retrieve.

    `predict` does everything; `decode`, `encode` and `finish` are its stages, for a server that
    runs them in different threads.
    """

    def __init__(
        self,
        encoder: Encoder,
        bank: MemoryBank,
        head: str | Head = "tf",
        *,
        checkpoint: str | Path | None = None,
        fusion: float = 0.7,
        sigma: float = 4.0,
        top: float = 0.01,
        retrieval: str = "exact",
    ) -> None:
        """
        Args:
            head: `tf`, `ft`, `clip`, a plugin's name, or a built head.
            checkpoint: the head's safetensors, where it has one.
            fusion: weight of the image probability in the score; the paper uses 0.5 to 0.8.
            sigma: of the map's Gaussian, in pixels of the encoder's input.
            top: share of the map's pixels whose mean is the top score.
            retrieval: how the memory is asked (`mrad.retrieval.choose.make_retriever`).

        Raises what `MemoryBank.check` and `load_head` raise.
        """
        for name, value in (("fusion", fusion), ("top", top)):
            if not 0 <= value <= 1:
                raise MRADError(f"{name} must lie in [0, 1], not {value}")
        if not sigma >= 0:
            raise MRADError(f"sigma must not be negative, but is {sigma}")
        bank.check(encoder)
        self.encoder, self.bank = encoder, bank
        self.fusion, self.sigma, self.top, self.retrieval = fusion, sigma, top, retrieval
        self.head: Head = (
            load_head(head, encoder, checkpoint=checkpoint) if isinstance(head, str) else head
        )
        self.head.attach(bank, retrieval)
        self._evidence: dict[Level, Retriever] = {}

    def with_bank(self, bank: MemoryBank) -> Detector:
        """The same encoder and head on another memory; this detector goes on as it is."""
        bank.check(self.encoder)
        other = copy.copy(self)
        other.bank, other.head, other._evidence = bank, copy.copy(self.head), {}
        other.head.attach(bank, self.retrieval)
        return other

    def predict(
        self,
        images: Sequence[ImageInput],
        *,
        batch_size: int = 8,
        maps: bool = True,
        evidence: int = 0,
    ) -> list[Prediction]:
        """Judge images of any size; one prediction each, in order.

        `evidence`: how many nearest keys to give for each level. Raises `ImageError` for an image
        that cannot be read.
        """
        return list(
            self.predict_stream(images, batch_size=batch_size, maps=maps, evidence=evidence)
        )

    def predict_stream(
        self,
        images: Sequence[ImageInput],
        *,
        batch_size: int = 8,
        maps: bool = True,
        evidence: int = 0,
    ) -> Iterator[Prediction]:
        """As `predict`, one batch in memory at a time."""
        if batch_size < 1:
            raise MRADError(f"batch_size must be at least 1, not {batch_size}")
        for start in range(0, len(images), batch_size):
            decoded = [self.decode(image) for image in images[start : start + batch_size]]
            sizes = [item.size for item in decoded]
            yield from self.finish(self.encode(decoded), sizes, maps=maps, evidence=evidence)

    def decode(self, image: ImageInput, max_pixels: int = DEFAULT_MAX_PIXELS) -> Decoded:
        """Stage 1, any thread: decode and preprocess. Raises `ImageError`."""
        upright = load_image(image, max_pixels)
        return Decoded(self.encoder.prepare(upright), upright.size, upright)

    def encode(self, decoded: Sequence[Decoded]) -> Features:
        """Stage 2, the device's thread: encode one batch."""
        return self.encoder.encode_prepared([item.pixels for item in decoded])

    @torch.inference_mode()
    def finish(
        self,
        features: Features,
        sizes: Sequence[tuple[int, int]],
        *,
        maps: bool = True,
        evidence: int = 0,
        exclude: Tensor | None = None,
    ) -> list[Prediction]:
        """Stage 3: retrieve, score and map one batch.

        `sizes`: width, height of each input. `exclude` int64 [B]: the entry row that an image must
        not retrieve (its own, when the bank's own images are scored), -1 for none.
        """
        output = self.head(features, exclude)
        square = anomaly_map(output.patch, self.encoder.image_size, self.sigma)
        tops = top_mean(square, self.top)
        scores = fuse(tops, output.image, self.fusion)
        # One wait for the device instead of three for each image.
        numbers = torch.stack([scores, output.image, tops], dim=1).tolist()
        found = self._find_evidence(features, output, evidence, exclude)
        return [
            Prediction(
                score=score,
                class_score=class_score,
                top_score=top_score,
                size=sizes[i],
                anomaly_map=resize_map(square[i], sizes[i]) if maps else None,
                evidence=found[i],
            )
            for i, (score, class_score, top_score) in enumerate(numbers)
        ]

    def _find_evidence(
        self, features: Features, output: HeadOutput, k: int, exclude: Tensor | None
    ) -> list[tuple[Evidence, ...]]:
        """Nearest keys of the whole image, then of its most anomalous patch."""
        if k < 1:
            return [()] * len(features)
        peaks = output.patch.argmax(dim=1)
        patch = features.patch_query()[torch.arange(len(peaks)), peaks]
        image = self._nearest("image", features.class_query(), k, exclude, None)
        local = self._nearest("patch", patch, k, exclude, peaks)
        return [(*whole, *part) for whole, part in zip(image, local)]

    def _nearest(
        self, level: Level, queries: Tensor, k: int, exclude: Tensor | None, cells: Tensor | None
    ) -> list[list[Evidence]]:
        memory = self.bank.image if level == "image" else self.bank.patch
        similarity, rows = self._retriever(level).nearest(queries, k, exclude)
        grid = self.encoder.grid
        found = []
        for query, (values, keys) in enumerate(zip(similarity, rows)):
            cell = None if cells is None else divmod(int(cells[query]), grid)
            evidence = []
            for value, key in zip(values, keys):
                if key < 0:  # fewer than k are left once the own entry is excluded
                    continue
                entry = self.bank.entries[int(memory.entry[key])]
                evidence.append(
                    Evidence(
                        level=level,
                        similarity=float(value),
                        label=int(memory.labels[key]),
                        entry_id=entry.entry_id,
                        source=entry.source,
                        region=str(memory.region[key]),
                        defect=entry.defect if memory.labels[key] else "",
                        query_cell=cell,
                    )
                )
            found.append(evidence)
        return found

    def _retriever(self, level: Level) -> Retriever:
        """Evidence is cosine similarity on the bank's own keys, whatever the head projects."""
        own: Any = getattr(self.head, level, None)
        if isinstance(own, ExactRetriever) and self.head.name == "tf":
            return own
        if level not in self._evidence:
            memory = self.bank.image if level == "image" else self.bank.patch
            self._evidence[level] = make_retriever(
                memory, mode=self.retrieval, device=self.encoder.device
            )
        return self._evidence[level]


def fuse(top: Tensor, image: Tensor, fusion: float) -> Tensor:
    """Image score [B] = (1 - fusion) * top score + fusion * image probability (METHOD.md, Scores)."""
    return (1 - fusion) * top + fusion * image
