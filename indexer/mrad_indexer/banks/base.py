"""A build that adds to a memory that stands: the new images first become one of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mrad.errors import BankError
from mrad.memory.bank import MemoryBank
from mrad.memory.store import MANIFEST
from mrad_indexer.banks.merge import Merged, Part, merge
from mrad_indexer.build.build import Built


def build_on(
    base: Part,
    fingerprint: str,
    out: Path,
    build: Callable[[Path], Built],
    *,
    replace_out: bool = False,
) -> tuple[Built, Merged | None]:
    """Build the new images' memory, and write it joined to `base` at `out`.

    Args:
        base: comes first in the new memory.
        fingerprint: of the build, to know one that is done already.
        out: the bank's folder.
        build: writes the new images' memory to a folder; goes on where it was cut off.
        replace_out: take the place of a bank at `out`.

    Raises `BankError` before anything is encoded where `out` is taken; what `merge` and `build` raise.
    """
    made = {"base": base.bank.digest, "own": fingerprint}
    if (standing := _made(out)) == made:
        bank = MemoryBank.load(out)
        return Built(bank, (), 0, 0, already=True), None
    if out.exists() and any(out.iterdir()) and not (replace_out and standing is not None):
        raise BankError(
            f"{out} is taken; choose another --out, or --replace a bank that stands there"
        )
    own = out.with_name(out.name + ".own")  # the new images' memory, until it is joined
    built = build(own)
    merged = merge([base, Part(out.name, built.bank)])
    merged.bank.metadata["build"]["joined"] = made
    bank = merged.bank.save(out, replace=replace_out)
    shutil.rmtree(own)
    return replace(built, bank=bank, already=False), merged


def _made(out: Path) -> dict[str, str] | None:
    """Of what the bank at `out` was joined; empty for another bank, None where there is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        return dict((manifest["metadata"].get("build") or {}).get("joined") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
