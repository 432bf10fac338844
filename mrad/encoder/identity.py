"""Which encoder made a feature. Imports nothing heavy: a bank names its encoder."""

from __future__ import annotations

from dataclasses import dataclass

from mrad.errors import EncoderError, UnsupportedEncoderError

TIMM = "timm:"
PLAIN = ":plain"


@dataclass(frozen=True)
class EncoderName:
    """What an encoder is called: `mrad-mini`, `ViT-B-16:plain`, `timm:vit_small_patch14_dinov2.lvd142m`."""

    base: str
    """open_clip's name, or timm's."""
    timm: bool = False
    """A vision transformer of timm, without a text tower."""
    plain: bool = False
    """Its patches are the tokens of its last block; else those of the V-V path."""

    @classmethod
    def parse(cls, text: str) -> EncoderName:
        """Raises `EncoderError` for `timm:...:plain`: timm's have nothing else to offer."""
        plain = text.endswith(PLAIN)
        base = text.removesuffix(PLAIN)
        if not base.startswith(TIMM):
            return cls(base, plain=plain)
        if plain:
            raise EncoderError(
                f"timm's encoders give their plain tokens anyway: ask for {base!r}, without {PLAIN!r}"
            )
        return cls(base.removeprefix(TIMM), timm=True, plain=True)

    @property
    def source(self) -> str:
        """The name of its weights: plain tokens come from the same as others."""
        return f"{TIMM}{self.base}" if self.timm else self.base

    def check_text(self) -> None:
        """Raise `UnsupportedEncoderError` where no text is to be compared with, as head `clip` does."""
        if self.plain:
            others = "mrad-mini or a CLIP of open_clip" if self.timm else repr(self.base)
            raise UnsupportedEncoderError(
                f"{self} gives plain patch tokens, and head clip compares text with the paper's features: "
                f"build the memory with {others}, or take nn, combined, tf or ft"
            )

    def __str__(self) -> str:
        return self.source if self.timm or not self.plain else f"{self.base}{PLAIN}"


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made a feature: the same weights from any file are the same encoder."""

    architecture: str
    """As `EncoderName` reads it, so it says which patch features they are."""
    image_size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.architecture} at {self.image_size} px (weights {self.digest[:12]})"
