"""Where a living memory lies: beside its bank, in `<bank>.live/` (docs/memory.md says why).

LOCK                       who writes (mrad_service.memory.lock)
CURRENT                    which generation counts, and up to which operation it reaches
log/<first>.wal            what came since (mrad_service.memory.log)
generations/<n>/bank/      a snapshot: an ordinary bank folder; generation 0 is `<bank>` itself
generations/<n>/ledger.json   the idempotency keys up to there
tmp/                       exports on their way out; emptied at every start
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mrad.errors import BankCorruptError, BankError, BankNotFoundError, BankVersionError
from mrad.files import atomic_folder, atomic_write_bytes, fsync_folder, sha256_file
from mrad.memory.bank import MemoryBank
from mrad_service.memory.frames import Segment
from mrad_service.memory.log import segment_paths
from mrad_service.memory.operations import decode_entry
from mrad_service.memory.state import Standing

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Current:
    """The pointer. Replacing this file is the moment at which a new generation counts."""

    base: str
    """Content digest of `<bank>`."""
    generation: int = 0
    applied: int = 0
    """Sequence of the last operation that the generation holds."""
    ledger_sha256: str = ""
    format_version: int = FORMAT_VERSION


class LiveFolder:
    """Paths and the files that change rarely. Every method that writes is crash-safe."""

    def __init__(self, bank: Path, live: Path | None = None) -> None:
        self.bank = bank.resolve()
        self.live = live or self.bank.with_name(self.bank.name + ".live")
        self.lock = self.live / "LOCK"
        self.current = self.live / "CURRENT"
        self.log = self.live / "log"
        self.generations = self.live / "generations"
        self.temporary = self.live / "tmp"

    def create(self) -> None:
        """Make the folders. Raises `BankError` where the place is not writable."""
        try:
            for folder in (self.live, self.generations, self.temporary):
                folder.mkdir(exist_ok=True)
                fsync_folder(folder.parent)
        except OSError as error:
            raise BankError(
                f"{self.live} cannot be made ({error}): a memory that learns needs a writable "
                "place beside its bank"
            ) from error

    def base_digest(self) -> str:
        """What `<bank>` holds: its encoder and the digests of its files.

        Not the digest of `bank.json`: thresholds may be renewed without the memory changing.
        """
        facts = self._base_manifest()
        content = {"encoder": facts.get("encoder"), "files": facts.get("files")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def read_current(self) -> Current | None:
        """The pointer, None before the first start. Raises `BankCorruptError`, `BankVersionError`."""
        if not self.current.exists():
            return None
        try:
            facts = json.loads(self.current.read_bytes())
            version = int(facts["format_version"])
            if version <= FORMAT_VERSION:
                return Current(**facts)
        except (ValueError, KeyError, TypeError) as error:
            raise BankCorruptError(f"{self.current} is not readable: {error!r}") from error
        raise BankVersionError(f"{self.live} has format {version}; upgrade mrad")

    def write_current(self, current: Current) -> None:
        """Switch, atomically."""
        atomic_write_bytes(self.current, json.dumps(asdict(current)).encode())

    def is_untaught(self) -> bool:
        """Whether nothing was ever learnt here, so that a rebuilt bank may simply take over."""
        return not any(True for path in segment_paths(self.log) for _ in Segment(path).salvage())

    def load(self, current: Current) -> tuple[MemoryBank, dict[str, Standing]]:
        """The bank and the idempotency keys of a generation, every digest verified.

        Thresholds and metadata always come from `<bank>`: that is where `mrad calibrate` writes.
        """
        if current.generation == 0:
            return MemoryBank.load(self.bank), {}
        folder = self._generation(current.generation)
        bank = MemoryBank.load(folder / "bank")
        facts = self._base_manifest()
        bank = replace(
            bank, calibration=facts.get("calibration"), metadata=facts.get("metadata") or {}
        )
        ledger = folder / "ledger.json"
        if not ledger.is_file() or sha256_file(ledger) != current.ledger_sha256:
            raise BankCorruptError(f"{ledger} is missing or fails its SHA-256; restore it")
        kept = json.loads(ledger.read_bytes())
        # Before contents were compared, a ledger's rows had two values.
        return bank, {k: Standing(decode_entry(entry), *content) for k, entry, *content in kept}

    def write_generation(
        self, previous: Current, bank: MemoryBank, ledger: Mapping[str, Standing], applied: int
    ) -> Current:
        """Write the next snapshot; it counts once `write_current` has its pointer."""
        number = previous.generation + 1
        with atomic_folder(self._generation(number), replace=True) as folder:
            bank.save(folder / "bank")
            kept = [[key, asdict(use.entry), use.content] for key, use in ledger.items()]
            data = json.dumps(kept).encode()
            (folder / "ledger.json").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        return Current(previous.base, number, applied, digest)

    def sweep(self, current: Current) -> None:
        """At a start: remove what no longer counts, half-written generations, old exports."""
        self.sweep_generations(current)
        for path in self.temporary.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def sweep_generations(self, current: Current) -> None:
        """Remove every generation but the current one."""
        for path in self.generations.iterdir():
            if path != self._generation(current.generation):
                shutil.rmtree(path, ignore_errors=True)

    def clear_log(self) -> None:
        """Forget an empty log, for a bank that was rebuilt under it."""
        for path in segment_paths(self.log):
            path.unlink()

    def _generation(self, number: int) -> Path:
        return self.generations / f"{number:08d}"

    def _base_manifest(self) -> dict[str, Any]:
        manifest = self.bank / "bank.json"
        if not manifest.is_file():
            raise BankNotFoundError(f"no bank at {self.bank}: bank.json is missing")
        try:
            facts = json.loads(manifest.read_bytes())
        except ValueError as error:
            raise BankCorruptError(f"{manifest} is not readable: {error}") from error
        if not isinstance(facts, dict):
            raise BankCorruptError(f"{manifest} is not a JSON object")
        return facts
