"""The weights that a bank names: by a published tag and a digest, never by a path.

A bank may come from anywhere, so a path in it is not followed. Whoever loads an encoder from a file of
their own does it by hand once (`mrad build --pretrained mine.pt`); this machine keeps in the user's
cache which file gave which digest, and banks of that digest find it.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from mrad.encoder.identity import EncoderIdentity
from mrad.encoder.weights import SUFFIXES, search_paths
from mrad.errors import WeightsNotFoundError
from mrad.files import atomic_write_bytes

logger = logging.getLogger(__name__)
TAG = re.compile(r"\w[\w.-]{0,99}")


def name_in_bank(pretrained: str | Path | None) -> str | None:
    """What a bank keeps of `pretrained`: the tag, or a file's name without its folder."""
    if pretrained is None:
        return None
    path = Path(pretrained).expanduser()
    return path.name if path.is_file() else str(pretrained)


def remember(identity: EncoderIdentity, path: Path) -> None:
    """Note that the user took these weights from `path`. What cannot be written is logged."""
    known = _known()
    if known.get(identity.digest) == str(path.absolute()):
        return
    try:
        _register().parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(known | {identity.digest: str(path.absolute())}, indent=1)
        atomic_write_bytes(_register(), content.encode())
    except OSError as error:
        logger.info("where the weights came from is not kept: %s", error)


def weights_named(identity: EncoderIdentity, pretrained: Any) -> str | Path | None:
    """What to load for a bank whose metadata say `pretrained`; None for weights that are shipped.

    A tag is taken as it is; for a file, whatever the bank calls it, the one that this user loaded before
    with the bank's digest. Raises `WeightsNotFoundError` where there is none.
    """
    if pretrained is None:
        return None
    text = str(pretrained)
    path = _known().get(identity.digest)
    if path is not None and Path(path).is_file():
        return Path(path)
    if TAG.fullmatch(text) and not text.endswith(SUFFIXES):
        return text
    raise WeightsNotFoundError(
        f"the bank was built on weights of a file ({text!r}, digest {identity.digest[:12]}), and the name "
        "of a file in a bank is never followed: give the file yourself, with --pretrained or "
        "MRAD_PRETRAINED"
    )


def _register() -> Path:
    return search_paths()[-1].with_name("weights.json")


def _known() -> dict[str, str]:
    try:
        found = json.loads(_register().read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
