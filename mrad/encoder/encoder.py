"""Frozen CLIP image tower -> class, patch and joint patch features (docs/method.md)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mrad.encoder.cuda import Graphs, compile_blocks
from mrad.encoder.device import Owner, resolve_device
from mrad.encoder.identity import PLAIN, TIMM, EncoderIdentity, EncoderName
from mrad.encoder.kernels import all_finite, has_bf16
from mrad.encoder.plain.tower import PlainTower
from mrad.encoder.tower import Tower, TowerParts, neighbourhood_average, pack
from mrad.encoder.uploads import Uploads, gather
from mrad.errors import EncoderError, NonFiniteError, UnsupportedEncoderError
from mrad.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from mrad.images.reader import read_image
from mrad.types import ImageInput, Place

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Features:
    """The features of a batch of B images; N patches row by row; float32."""

    class_feature: Tensor
    """[B, E], not normalised."""
    patch: Tensor
    """[B, N, W], averaged over the neighbourhood, not normalised."""
    patch_raw: Tensor | None = None
    """[B, N, W] before the average; None where it was not wanted."""
    places: tuple[Place | None, ...] | None = None
    """Where each lies in its picture: tiles of one do; None: each is a whole picture."""
    pixels: tuple[Tensor, ...] | None = None
    """What was encoded, float32 [3, S, S] each, as prepared; None where nobody kept it."""

    def class_query(self) -> Tensor:
        """[B, E], L2-normalised."""
        return F.normalize(self.class_feature, dim=-1)

    def patch_query(self) -> Tensor:
        """[B, N, W], L2-normalised."""
        return F.normalize(self.patch, dim=-1)

    def local_raw(self) -> Tensor:
        """[B, N, W], before the average. Raises `EncoderError` where not asked for."""
        if self.patch_raw is None:
            raise EncoderError(
                "the features before the average were not kept: encode with raw=True"
            )
        return self.patch_raw

    def local_query(self) -> Tensor:
        """As `local_raw`, L2-normalised."""
        return F.normalize(self.local_raw(), dim=-1)

    def __len__(self) -> int:
        return int(self.class_feature.shape[0])

    def __getitem__(self, index: slice) -> Features:
        raw = None if self.patch_raw is None else self.patch_raw[index]
        places = None if self.places is None else self.places[index]
        pixels = None if self.pixels is None else self.pixels[index]
        return Features(self.class_feature[index], self.patch[index], raw, places, pixels)

    def to(self, device: torch.device | str) -> Features:
        """The same features on another device."""
        raw = None if self.patch_raw is None else self.patch_raw.to(device)
        return replace(
            self,
            class_feature=self.class_feature.to(device),
            patch=self.patch.to(device),
            patch_raw=raw,
        )

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join batches. `patch_raw` and `pixels` are kept only when every part has them."""
        raws = [part.patch_raw for part in parts if part.patch_raw is not None]
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return Features(
            torch.cat([part.class_feature for part in parts]),
            torch.cat([part.patch for part in parts]),
            torch.cat(raws) if parts and len(raws) == len(parts) else None,
            pixels=tuple(chain.from_iterable(pixels)) if len(pixels) == len(parts) else None,
        )


class Encoder:
    """A frozen CLIP at one input size, on one device, in one precision.

    Build it with `Encoder.load` (by name, tag or checkpoint) or `Encoder.from_clip`.
    """

    def __init__(
        self,
        parts: TowerParts,
        clip: Callable[[], nn.Module],
        identity: EncoderIdentity,
        preprocess: Preprocess,
        *,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        """`clip` gives the whole CLIP, text tower and all, to whoever asks for it (`self.clip`)."""
        if precision not in PRECISIONS:
            raise EncoderError(f"precision {precision!r} is unknown; choose fp32 or bf16")
        self._clip, self.identity, self.preprocess = clip, identity, preprocess
        self.device = resolve_device(device)
        self.dtype, self.precision = PRECISIONS[precision], precision
        if precision == "bf16" and not has_bf16(self.device):
            logger.warning(
                "bf16 is emulated on this %s, many times slower than fp32: take fp32", self.device
            )
        self.name, self.image_size = identity.architecture, identity.image_size
        self.plain = EncoderName.parse(identity.architecture).plain
        tower = PlainTower if self.plain else Tower
        made = tower(parts, identity.image_size, self.dtype)
        self.tower: Tower | PlainTower = pack(made.to(self.device))
        if compiled:
            compile_blocks(self.tower)
        on_gpu = self.device.type == "cuda"
        self.run: Tower | PlainTower | Graphs = Graphs(self.tower) if on_gpu else self.tower
        self.uploads = Uploads(preprocess, self.device) if on_gpu else None
        self.owner = Owner()
        self.grid: int = self.tower.grid
        self.width, self.embed_dim = self.tower.width, self.tower.embed_dim

    @classmethod
    def load(
        cls,
        name: str = "mrad-mini",
        pretrained: str | Path | None = None,
        *,
        image_size: int | None = None,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> Encoder:
        """Load by open_clip's or timm's name.

        Args:
            name: an open_clip model name, or `mrad-mini`, the small CLIP that is shipped inside;
                either with `:plain` behind it for the plain tokens of its patches; or `timm:` and the
                name of a vision transformer there, as `timm:vit_small_patch14_dinov2.lvd142m`.
            pretrained: a tag of open_clip (`openai`, `laion2b_s32b_b82k`, ...) or a local checkpoint:
                OpenAI's TorchScript archive, a state dict, or safetensors.
            image_size: side of the square input; None: the paper's for its encoder, else native.
            device: `auto` (a GPU if there is one), or a torch device.
            precision: `fp32`, or `bf16` for speed: what that changes was measured with
                `mrad-mini` alone. Outputs are float32 in any case.
            compiled: `torch.compile` the blocks, for a GPU; needs Triton and a C compiler, and compiles
                again for each new batch size. CUDA graphs are used in any case.

        Raises `WeightsNotFoundError` (what was tried, and how to bring weights by hand),
        `UnsupportedEncoderError`, `EncoderError`.
        """
        from mrad.encoder.weights import find_tower, keep_tower, load_clip, load_timm

        asked = EncoderName.parse(name)
        tower = find_tower(asked.source, pretrained)
        how: dict[str, Any] = {"device": device, "precision": precision, "compiled": compiled}
        if tower is not None:
            plain = PLAIN if asked.plain and not asked.timm else ""
            side = image_size or tower.identity.image_size
            architecture = f"{tower.identity.architecture}{plain}"
            identity = replace(tower.identity, architecture=architecture, image_size=side)
            _note(identity, pretrained)
            preprocess = Preprocess(side, tower.mean, tower.std)
            return cls(
                tower.parts,
                lambda: load_clip(asked.base, pretrained).clip,
                identity,
                preprocess,
                **how,
            )
        if asked.timm:
            from mrad.encoder.plain.of_timm import input_of, parts_of_timm

            model = load_timm(asked.base, pretrained)
            encoder = cls.from_timm(model, image_size, **how)
            native, parts = input_of(model)[0], parts_of_timm(model)
            size = native[0] if len(set(native)) == 1 else None
        else:
            from mrad.encoder.parts import parts_of

            loaded = load_clip(asked.base, pretrained)
            encoder = cls.from_clip(
                loaded.clip,
                image_size or loaded.image_size,
                name=f"{loaded.architecture}{PLAIN}" if asked.plain else loaded.architecture,
                mean=loaded.mean,
                std=loaded.std,
                **how,
            )
            parts = parts_of(loaded.clip.visual)  # type: ignore[arg-type]
            size = loaded.image_size or _side(getattr(loaded.clip.visual, "image_size", 0))
        if size is not None:
            name = EncoderName.parse(encoder.name).source
            kept = replace(encoder.identity, architecture=name, image_size=size)
            keep_tower(asked.source, pretrained, parts, kept, encoder.preprocess)
        _note(encoder.identity, pretrained)
        return encoder

    @classmethod
    def from_clip(
        cls,
        clip_model: nn.Module,
        image_size: int | None = None,
        *,
        name: str = "custom",
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Encoder:
        """Wrap any open_clip model built by the caller; its weights are copied, never changed.

        A `name` that ends in `:plain` asks for the plain tokens of its patches.
        """
        from mrad.encoder.parts import parts_of

        visual: Any = getattr(clip_model, "visual", None)
        if visual is None:
            raise EncoderError(f"{type(clip_model).__name__} is no CLIP: it has no image tower")
        size = image_size or _side(visual.image_size)
        identity = EncoderIdentity(name, size, digest_of(visual.state_dict()))
        preprocess = Preprocess(
            size,
            tuple(mean or getattr(visual, "image_mean", None) or OPENAI_MEAN),
            tuple(std or getattr(visual, "image_std", None) or OPENAI_STD),
        )
        how: dict[str, Any] = {"device": device, "precision": precision, "compiled": compiled}
        return cls(parts_of(visual), clip_model.eval, identity, preprocess, **how)

    @classmethod
    def from_timm(
        cls,
        model: nn.Module,
        image_size: int | None = None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        compiled: bool = False,
    ) -> Encoder:
        """Wrap a vision transformer of timm, by `timm.create_model`; its weights are copied.

        Raises `UnsupportedEncoderError` for other models, `EncoderError`.
        """
        from mrad.encoder.plain.of_timm import config_of, input_of, parts_of_timm

        native, mean, std = input_of(model)
        config = config_of(model)
        names = [str(config[key]) for key in ("architecture", "tag") if config.get(key)]
        name = TIMM + (".".join(names) or type(model).__name__)
        size = image_size or _side(native)
        identity = EncoderIdentity(name, size, digest_of(model.state_dict()))
        preprocess = Preprocess(size, mean, std)
        how: dict[str, Any] = {"device": device, "precision": precision, "compiled": compiled}
        return cls(parts_of_timm(model), nn.Identity, identity, preprocess, **how)

    @cached_property
    def clip(self) -> nn.Module:
        """The whole CLIP; loaded by open_clip when asked for, as for its text tower.

        Raises `UnsupportedEncoderError` for plain tokens, which no text is to be compared with.
        """
        EncoderName.parse(self.name).check_text()
        return self._clip()

    def encode(self, images: Sequence[ImageInput], *, raw: bool = True) -> Features:
        """Decode, preprocess and encode a batch. Raises `ImageError` for an unreadable image."""
        if not images:
            raise EncoderError("no images to encode")
        return self.encode_prepared(
            [self.prepare(read_image(image).image) for image in images], raw=raw
        )

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright image, L or RGB -> pixels float32 [3, S, S], where they will be read; any thread.

        Raises `ForkedProcessError`.
        """
        self.owner.check()
        return self.preprocess(image) if self.uploads is None else self.uploads(image)

    def prepare_several(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """As `prepare` of each, in less time where they are grey and of one size."""
        if self.uploads is not None:
            return [self.prepare(image) for image in images]
        self.owner.check()
        return self.preprocess.several(images)

    def encode_prepared(self, pixels: Sequence[Tensor], *, raw: bool = True) -> Features:
        """Encode a batch of what `prepare` gave."""
        return self.encode_pixels(gather(pixels, self.device), raw=raw)

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, raw: bool = True) -> Features:
        """Encode preprocessed `pixels`, float32 [B, 3, S, S]; features stay on the device.

        Raises `EncoderError` on a wrong shape, `NonFiniteError` on NaN or infinity in the result,
        `ForkedProcessError`.
        """
        self.owner.check()
        side = self.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise EncoderError(f"pixels must be [B, 3, {side}, {side}], not {list(pixels.shape)}")
        class_feature, patch_raw = self.run(pixels.to(self.device, non_blocking=True))
        patch = neighbourhood_average(patch_raw, self.grid)
        if not (all_finite(class_feature) and all_finite(patch)):
            raise NonFiniteError(f"{self.identity} produced NaN or infinity; check its weights")
        kept = patch_raw if raw else None
        return Features(class_feature, patch, kept, pixels=tuple(pixels))

    def project_patch(self, patch: Tensor) -> Tensor:
        """Patch features [..., W] -> joint space [..., E], W where the tower has none; linear, so it
        commutes with averaging.
        """
        projection = self.tower.projection
        return patch if projection is None else patch @ projection.to(patch.device)


def _side(size: Any) -> int:
    sides = set(size) if isinstance(size, tuple | list) else {size}
    if len(sides) > 1:
        raise UnsupportedEncoderError(f"this tower's input is {size}, the method's is square")
    return int(sides.pop())


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: names sorted, shapes and float32 little-endian values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{list(value.shape)};".encode())
        digest.update(value.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _note(identity: EncoderIdentity, pretrained: str | Path | None) -> None:
    """Weights of a file of the user's: banks name them by their digest alone."""
    from mrad.encoder.named import remember

    if pretrained is not None and Path(pretrained).expanduser().is_file():
        remember(identity, Path(pretrained).expanduser())


def precision_for(asked: str, kept: str | None, device: str) -> str:
    """`auto` -> the precision that a memory's keys were encoded in, where this device has it.

    Args:
        asked: `auto`, `fp32` or `bf16`.
        kept: the memory's (`MemoryBank.precision`), None where it does not say.
        device: as `Encoder.load` takes it.
    """
    if asked != "auto":
        return asked
    return "bf16" if kept == "bf16" and has_bf16(resolve_device(device)) else "fp32"
