"""API keys: hashed at rest, compared in constant time, with scopes."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import structlog

from mrad.files import atomic_write_bytes
from mrad_service.errors import ServiceError

log = structlog.get_logger(__name__)
Scope = Literal["score", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
NAME = re.compile(r"[\w.@-]{1,64}")
FORMAT_VERSION = 1


class KeysFileError(ServiceError):
    """The file of API keys cannot be read or written."""

    code = "keys_file"


@dataclass(frozen=True)
class Key:
    """A key as it lies on disk. The key itself, 256 random bits, is known to its holder only;
    nothing that long can be guessed, so one round of SHA-256 protects it."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created_at: str
    revoked_at: str | None = None


class KeyFile:
    """The file; read again whenever it changes, so that a revoked key is refused at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self.why = ""
        """Why the keys that were read last stay in force; empty while the file can be read."""

    def keys(self) -> dict[str, Key]:
        """Every key by its id, as last read where the file cannot be. Raises `KeysFileError`."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                self._keys, self._stamp = _parse(self.path.read_bytes()), stamp
            self.why = ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = "it is not as `mrad keys add` writes it"
            if isinstance(error, OSError) or type(error) is ValueError:
                reason = getattr(error, "strerror", None) or str(error)
            why = f"{self.path} cannot be read: {reason}"
            if self._stamp is None:
                raise KeysFileError(why) from error
            if not self.why:
                log.error("the keys that were read last stay in force", why=why)
            self.why = why
        return self._keys

    def reload(self) -> None:
        """Read it again, however it looks from outside."""
        if self._stamp is not None:
            self._stamp = (0, 0, 0)

    def why_not_ready(self) -> str:
        """Why the file cannot be read; empty while it can."""
        try:
            self.keys()
        except KeysFileError as error:
            return str(error)
        return self.why

    def find(self, presented: str) -> Key | None:
        """The key that this text is, unless unknown or revoked."""
        key_id, _, secret = presented.removeprefix("mrad_").partition("_")
        key = self.keys().get(key_id)
        right = hmac.compare_digest(key.sha256 if key else _hash(""), _hash(secret))
        return key if right and key is not None and key.revoked_at is None else None

    def add(self, name: str, scopes: tuple[str, ...]) -> str:
        """Make a key; returns the only copy of it. Raises `KeysFileError`."""
        if not NAME.fullmatch(name):
            raise KeysFileError("a key's name is 1 to 64 letters, digits and . _ @ -")
        unknown = set(scopes) - set(SCOPES)
        if unknown or not scopes:
            raise KeysFileError(f"scopes are {', '.join(SCOPES)}; not {sorted(unknown)}")
        keys = self.keys() if self.path.exists() else {}
        if any(key.name == name and key.revoked_at is None for key in keys.values()):
            raise KeysFileError(f"there is a key named {name}; revoke it first or choose another")
        key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        key = Key(key_id, name, tuple(scopes), _hash(secret), _now())
        self._write({**keys, key_id: key})
        return f"mrad_{key_id}_{secret}"

    def revoke(self, which: str) -> Key:
        """By name or id. Raises `KeysFileError`."""
        keys = self.keys()
        for key in keys.values():
            if which in (key.name, key.key_id) and key.revoked_at is None:
                gone = replace(key, revoked_at=_now())
                self._write({**keys, key.key_id: gone})
                return gone
        raise KeysFileError(f"there is no valid key {which!r} in {self.path}")

    def _write(self, keys: dict[str, Key]) -> None:
        facts = {"format_version": FORMAT_VERSION, "keys": [asdict(key) for key in keys.values()]}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.path, json.dumps(facts, indent=1).encode(), mode=0o600)
        except OSError as error:
            raise KeysFileError(f"{self.path} cannot be written: {error}") from error


def allows(scopes: tuple[str, ...], wanted: str) -> bool:
    """`admin` may do everything; `write` may score too, to look at what it taught."""
    if "admin" in scopes or wanted in scopes:
        return True
    return wanted == "score" and "write" in scopes


def _parse(data: bytes) -> dict[str, Key]:
    facts = json.loads(data)
    if facts["format_version"] > FORMAT_VERSION:
        raise ValueError(f"format {facts['format_version']} is newer than this server")
    keys = [Key(**{**key, "scopes": tuple(key["scopes"])}) for key in facts["keys"]]
    return {key.key_id: key for key in keys}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
