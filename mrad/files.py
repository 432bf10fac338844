"""Files that are either whole or absent, also after a power cut; and files from strangers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrad.errors import MRADError


def utf8(name: str) -> str:
    """A file's name as text that can be stored: bytes of it that are no UTF-8 read `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fsync_path(path: Path) -> None:
    """Make a file's content durable, or a folder's own entries (new names, renames)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` so that readers see the old file or the new one, never a part.

    The new file keeps the old one's owner, group and mode, so that a command of root's does not lock a
    server out. `mode` is that of a first one, less the umask. Raises `OSError`; `PermissionError` where
    the owner, who alone may read the file, would lose it.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            _take_over(path, handle)
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def _take_over(path: Path, descriptor: int) -> None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return
    mode, mine = stat.S_IMODE(facts.st_mode), (os.geteuid(), os.getegid())
    if (facts.st_uid, facts.st_gid) != mine:
        try:
            os.fchown(descriptor, facts.st_uid, facts.st_gid)
        except PermissionError as error:
            if not mode & (stat.S_IRGRP | stat.S_IROTH):
                raise PermissionError(
                    error.errno, "it belongs to another user; run this as that user", str(path)
                ) from error
    os.fchmod(descriptor, mode)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync everything and rename it to `path`.

    Raises `FileExistsError` when `path` is a non-empty folder and `replace` is false. With
    `replace` the old folder is moved aside first and removed once the new one stands; a crash
    between the two renames leaves the old one beside it, under `.<name>.old-*`.
    """
    path = path.absolute()
    if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            fsync_path(file)
        fsync_path(temporary)
        temporary.chmod(0o755)
        _swap(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, path: Path) -> None:
    aside: Path | None = None
    if path.exists():
        aside = path.with_name(f".{path.name}.old-{temporary.name.rsplit('-', 1)[-1]}")
        path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        if aside is not None:
            aside.rename(path)
        raise
    fsync_path(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, error: type[MRADError]) -> Mapping[str, Any]:
    """A torch file that holds tensors and plain containers only. Raises `error` for any other."""
    import torch

    if not path.is_file():
        raise error(f"no file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as cause:
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise error(
            f"{path} is no torch file that holds only tensors, and nothing else is read: {reason}"
        ) from cause
    if not isinstance(content, Mapping):
        raise error(f"{path} holds {type(content).__name__}, not a dict of entries")
    return content
