"""The banks by name: which there are, which are loaded, which one is active, and switching."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from mrad.calibration import Calibration
from mrad.errors import BankError
from mrad.files import sha256_file
from mrad.memory.bank import MemoryBank
from mrad.memory.store import MANIFEST
from mrad_service.errors import BankNotLoadedError, ReadOnlyError, UnknownBankError
from mrad_service.memory import DurableMemory
from mrad_service.models.following import WAIT, Following, Renewal, workers
from mrad_service.models.loading import (
    Encoders,
    Model,
    build_model,
    calibration_of,
    follow,
    holds_the_same,
)
from mrad_service.settings import BankSpec, Settings

log = structlog.get_logger(__name__)


@dataclass
class Loaded:
    """A bank in memory. `model` is replaced whenever the memory learns."""

    model: Model
    memory: DurableMemory | None
    """None on a read-only server."""
    manifest: str
    """Digest of `bank.json` as it was read."""
    stop_following: Callable[[], None] = lambda: None
    following: Following | None = None
    """None on a read-only server."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Of `model`, while it is replaced."""


class Banks:
    """Thread-safe. Reading the active model takes no lock that loading holds."""

    def __init__(self, settings: Settings, encoders: Encoders) -> None:
        self._settings, self._encoders = settings, encoders
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._active: str | None = None
        self._switching = threading.Lock()
        self._workers = workers()

    @property
    def active(self) -> str | None:
        """Name of the active bank; None before the first was loaded."""
        return self._active

    def known(self) -> dict[str, BankSpec]:
        """Every bank that can be activated, by name. The folder of banks is read again."""
        settings = self._settings
        specs: dict[str, BankSpec] = {}
        plain = {"head": settings.head, "checkpoint": settings.checkpoint}
        if settings.bank_root is not None and settings.bank_root.is_dir():
            for manifest in sorted(settings.bank_root.glob(f"*/{MANIFEST}")):
                specs[manifest.parent.name] = BankSpec(path=manifest.parent, **plain)
        if settings.bank is not None:
            name = settings.bank.resolve().name
            specs.setdefault(name, BankSpec(path=settings.bank, **plain))
        return specs | settings.bank_specs

    def first(self) -> str:
        """The bank to start with. Raises `UnknownBankError`."""
        known = self.known()
        if self._settings.bank is not None:
            return self._settings.bank.resolve().name
        if len(known) == 1:
            return next(iter(known))
        raise UnknownBankError(
            f"which bank is active? give --bank (MRAD_BANK); there are: {', '.join(known) or 'none'}"
        )

    def loaded(self) -> list[str]:
        """Names in memory, the active one last."""
        return list(self._loaded)

    def get(self, name: str | None = None) -> Loaded:
        """The bank of a name, the active one for None.

        Raises `UnknownBankError`, `BankNotLoadedError`.
        """
        wanted = name or self._active
        found = self._loaded.get(wanted) if wanted is not None else None
        if found is not None:
            return found
        if wanted is None:
            raise BankNotLoadedError("no bank is active yet")
        if wanted not in self.known():
            raise UnknownBankError(f"there is no bank {wanted!r}")
        raise BankNotLoadedError(
            f"bank {wanted!r} is not in memory; POST /v1/banks/{wanted}/activate first"
        )

    def memory(self, name: str | None = None) -> DurableMemory:
        """Its living memory. Raises `ReadOnlyError` too."""
        found = self.get(name)
        if found.memory is None:
            raise ReadOnlyError(
                "this server is read-only: its memory is not taught, listed or exported here; ask the "
                "server that learns"
            )
        if found.memory.closed:  # another name of the same folder took a rebuilt bank up
            bank = found.model.name
            raise BankNotLoadedError(
                f"bank {bank!r} was built again; POST /v1/banks/{bank}/activate takes it up"
            )
        return found.memory

    def trouble(self) -> str:
        """What keeps the active bank from being trusted: its files were changed. Empty for nothing."""
        found = self._loaded.get(self._active or "")
        return found.memory.trouble() if found is not None and found.memory is not None else ""

    def activate(self, name: str) -> Model:
        """Load, verify and warm, then switch. Whatever fails leaves the active bank as it is.

        Requests in flight keep the model that they began with. Raises `UnknownBankError` and what
        loading raises.
        """
        with self._switching:
            spec = self.known().get(name)
            if spec is None:
                raise UnknownBankError(f"there is no bank {name!r}")
            found = self._loaded.get(name)
            if found is None:
                found = self._load(name, spec)
            elif found.manifest != _digest(spec.path):
                found = self._reload(name, spec, found)
            self._loaded[name] = found
            self._loaded.move_to_end(name)
            before, self._active = self._active, name
            self._evict()
            log.info("bank active", bank=name, before=before, keys=len(found.model.bank.patch))
            return found.model

    def close(self) -> None:
        """Let the next writer in."""
        with self._switching:
            self._workers.shutdown(wait=False, cancel_futures=True)
            for name in list(self._loaded):
                self._unload(name)
            self._workers.shutdown()

    def _load(self, name: str, spec: BankSpec) -> Loaded:
        manifest = _digest(spec.path)
        memory = self._memory_of(spec.path)
        opened = memory is None and self._settings.writable
        if opened:
            memory = DurableMemory.open(spec.path)
        try:
            bank = memory.bank if memory is not None else MemoryBank.load(spec.path)
            model = build_model(name, spec, bank, self._encoders, self._settings)
        except BaseException:
            if opened and memory is not None:
                memory.close()
            raise
        loaded = Loaded(model, memory, manifest)
        if memory is not None:
            self._follow(loaded, memory)
        return loaded

    def _reload(self, name: str, spec: BankSpec, found: Loaded) -> Loaded:
        """`bank.json` changed: new thresholds, or a bank that was built again."""
        memory = found.memory
        writes = memory is not None and not memory.closed
        if memory is not None and writes and memory.holds():
            memory.renew()
            found.manifest = _digest(spec.path)
            return found
        # Another memory: its log has one writer, so the old one is closed first, and only once
        # the new one is known to be whole. Until then the old one judges and learns as before.
        if memory is not None and writes:
            bank = MemoryBank.load(spec.path, living=False)
            build_model(name, spec, bank, self._encoders, self._settings)
            memory.retire()
        loaded = self._load(name, spec)
        found.stop_following()
        return loaded

    def renewal(self, name: str | None = None) -> Renewal | None:
        """What the latest lesson did to a bank's thresholds, once that is known or `WAIT` is over."""
        following = self.get(name).following
        found = following.latest if following is not None else None
        if found is not None:
            found.settled.wait(WAIT)
        return found

    def following(self, name: str | None = None) -> Following:
        """What keeps a bank's thresholds up to date. Raises `ReadOnlyError` too."""
        self.memory(name)
        found = self.get(name).following
        assert found is not None
        return found

    def _follow(self, loaded: Loaded, memory: DurableMemory) -> None:
        def changed(bank: MemoryBank) -> None:
            with loaded.lock:
                before, model = loaded.model, follow(loaded.model, bank)
                if bank.calibration != before.bank.calibration:
                    held, why = calibration_of(bank, model.spec, model.detectors[0])
                    model = replace(model, calibration=held, why_uncalibrated=why)
                if not holds_the_same(before.bank, bank):
                    renewal = following.follow(model, before.calibration)
                    if renewal.computed.wait(WAIT) and renewal.after is not None:
                        model = replace(model, calibration=renewal.after)
                loaded.model = model

        def publish(model: Model, calibration: Calibration) -> None:
            with loaded.lock:
                if calibration != loaded.model.calibration:
                    changes = {"calibration": calibration, "why_uncalibrated": ""}
                    loaded.model = replace(loaded.model, **changes)  # type: ignore[arg-type]

        following = Following(memory, self._workers, lambda: loaded.model, publish)
        loaded.following = following
        loaded.stop_following = memory.subscribe(changed)
        others = [o for o in self._loaded.values() if o.memory is memory and o is not loaded]
        memory.serves({one.model.detectors[0].head.name for one in (*others, loaded)})
        if memory.bank is not loaded.model.bank:
            changed(memory.bank)
        following.begin(loaded.model)

    def _memory_of(self, path: Path) -> DurableMemory | None:
        """Two names may mean the same folder with two heads; its log has one writer."""
        for loaded in self._loaded.values():
            memory = loaded.memory
            if memory is not None and not memory.closed and memory.folder.bank == path.resolve():
                return memory
        return None

    def _evict(self) -> None:
        while len(self._loaded) > self._settings.max_loaded:
            oldest = next(iter(self._loaded))
            log.info("bank unloaded", bank=oldest)
            self._unload(oldest)
        self._encoders.keep_only({loaded.model.bank.identity for loaded in self._loaded.values()})

    def _unload(self, name: str) -> None:
        loaded = self._loaded.pop(name)
        loaded.stop_following()
        memory = loaded.memory
        if memory is not None and self._memory_of(memory.folder.bank) is not memory:
            memory.close()


def _digest(path: Path) -> str:
    manifest = path / MANIFEST
    try:
        return sha256_file(manifest)
    except OSError as error:
        raise BankError(f"{manifest} cannot be read: {error.strerror or error}") from error
