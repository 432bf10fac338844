"""Features of a frozen encoder, computed once and kept on disk.

root/<encoder>/<shard>/ holds `class.npy` float32 [n, E], `patch.npy` float16 [n, N, W] and
`shard.json` with the SHA-256 of every image's file. An image is found by its content, so that a
cut-off run resumes with what is missing and datasets that share images share their features. Shards
are written whole or not at all, and read memory-mapped.

Half precision for patches: their cosines move by less than 1e-3 of their range, and training masks
and losses do not notice; class features, of which there is one an image, stay float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import DataError, NonFiniteError
from mrad.files import atomic_folder, sha256_file
from mrad.images.reader import load_image

SHARD = 64
MANIFEST = "shard.json"
FORMAT_VERSION = 1
HALF_LIMIT = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Shard:
    folder: Path
    digests: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seconds: float


@dataclass(frozen=True)
class CachedFeatures:
    """Features of n images in the order asked for; patches stay on disk until they are read."""

    class_feature: Tensor
    """float32 [n, E], not normalised."""
    patches: tuple[np.ndarray, ...]
    """The memory-mapped shards."""
    place: np.ndarray
    """int64 [n, 2]: shard and row of each image."""
    sizes: tuple[tuple[int, int], ...]
    """Width, height of each upright image."""
    encode_seconds: float
    """What encoding these images takes, as measured when each was encoded."""
    encoded: int
    """How many were encoded now; the others lay on disk."""

    def __len__(self) -> int:
        return len(self.place)

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Features:
        """Features of some images, float32."""
        patch = np.stack([self.patches[shard][row] for shard, row in self.place[list(rows)]])
        return Features(
            self.class_feature[list(rows)].to(device),
            torch.from_numpy(patch).to(device).float(),
        )


class FeatureCache:
    """The features of one encoder in one precision under `root`."""

    def __init__(self, root: Path, encoder: Encoder, *, shard: int = SHARD) -> None:
        """`shard`: images a file; what a cut-off run can lose."""
        self.encoder, self.shard = encoder, shard
        identity = encoder.identity
        scale = encoder.preprocess.mean, encoder.preprocess.std
        spec = f"{identity.digest}:{identity.image_size}:{encoder.dtype}:{scale}"
        self.folder = root / hashlib.sha256(spec.encode()).hexdigest()[:16]

    def features(
        self,
        images: Sequence[Path],
        *,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> CachedFeatures:
        """Features of `images`, encoding those that are not on disk yet.

        `progress(done, of)` counts images encoded now. Raises `ImageError`, `NonFiniteError`.
        """
        if not images:
            raise DataError("there is no image to encode")
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(sha256_file, images))
        known = {digest for shard in self._shards() for digest in shard.digests}
        missing = list({d: p for d, p in zip(digests, images) if d not in known}.items())
        for start in range(0, len(missing), self.shard):

            def report(done: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, len(missing))

            self._write(missing[start : start + self.shard], batch_size, report)
        return self._open(digests, len(missing))

    def _shards(self) -> list[_Shard]:
        found = []
        for manifest in sorted(self.folder.glob(f"*/{MANIFEST}")):
            if manifest.parent.name.startswith("."):
                continue  # a run that was cut off
            content = json.loads(manifest.read_text())
            if content["format_version"] == FORMAT_VERSION:
                sizes = tuple((width, height) for width, height in content["sizes"])
                digests = tuple(content["digests"])
                found.append(_Shard(manifest.parent, digests, sizes, content["seconds"]))
        return found

    def _write(
        self,
        items: Sequence[tuple[str, Path]],
        batch_size: int,
        progress: Callable[[int], None],
    ) -> None:
        digests = [digest for digest, _ in items]
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        started = time.perf_counter()
        with atomic_folder(self.folder / name, replace=True) as folder:
            sizes = self._fill(folder, [path for _, path in items], batch_size, progress)
            content = {
                "format_version": FORMAT_VERSION,
                "encoder": str(self.encoder.identity),
                "digests": digests,
                "sizes": sizes,
                "seconds": time.perf_counter() - started,
            }
            (folder / MANIFEST).write_text(json.dumps(content))

    def _fill(
        self,
        folder: Path,
        images: Sequence[Path],
        batch_size: int,
        progress: Callable[[int], None],
    ) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        cells, encoder = self.encoder.grid**2, self.encoder
        patch = np.lib.format.open_memmap(
            folder / "patch.npy", "w+", np.float16, (len(images), cells, encoder.width)
        )
        classes = np.empty((len(images), encoder.embed_dim), np.float32)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for start in range(0, len(images), batch_size):
                part = slice(start, start + batch_size)
                decoded = list(pool.map(self._decode, images[part]))
                sizes.extend(size for _, size in decoded)
                features = encoder.encode_prepared([pixels for pixels, _ in decoded])
                if float(features.patch.abs().max()) > HALF_LIMIT:
                    raise NonFiniteError(
                        f"patch features of {encoder.identity} exceed half precision"
                    )
                patch[part] = features.patch.cpu().numpy().astype(np.float16)
                classes[part] = features.class_feature.cpu().numpy()
                progress(min(start + batch_size, len(images)))
        patch.flush()
        np.save(folder / "class.npy", classes)
        return sizes

    def _decode(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        image = load_image(path)
        return self.encoder.prepare(image), image.size

    def _open(self, digests: Iterable[str], encoded: int) -> CachedFeatures:
        shards = self._shards()
        where = {d: (s, r) for s, shard in enumerate(shards) for r, d in enumerate(shard.digests)}
        place = np.array([where[digest] for digest in digests], dtype=np.int64)
        used = sorted(set(place[:, 0].tolist()))
        classes = {s: np.load(shards[s].folder / "class.npy", allow_pickle=False) for s in used}
        patches = [
            np.load(shards[s].folder / "patch.npy", mmap_mode="r", allow_pickle=False) for s in used
        ]
        rate = {s: shards[s].seconds / len(shards[s].digests) for s in used}
        class_feature = np.stack([classes[s][r] for s, r in place.tolist()])
        seconds = sum(rate[s] for s in place[:, 0].tolist())
        sizes = tuple(shards[s].sizes[r] for s, r in place.tolist())
        place[:, 0] = np.searchsorted(used, place[:, 0])
        return CachedFeatures(
            torch.from_numpy(class_feature), tuple(patches), place, sizes, seconds, encoded
        )
