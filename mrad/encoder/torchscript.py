"""The tensors of a TorchScript archive, read without running it.

`torch.jit.load` runs whatever code the archive brings. Here its `data.pkl` is read by an unpickler that
knows tensors, plain containers and empty shells of the archive's own classes, and refuses every other
name; nothing of `code/` is run, only searched for the names of parameters and buffers.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

LARGEST_PICKLE = 64 << 20
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE)
NAMES = re.compile(r"__(?:parameters|buffers)__ = \[([^\]]*)\]")


def is_torchscript(path: Path) -> bool:
    """TorchScript archives are zip files with a `code/` folder."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their dotted names, as `state_dict` would give them.

    Raises `pickle.UnpicklingError` for an archive that holds anything else than tensors, containers
    and its own modules, `ValueError`, `KeyError` and `zipfile.BadZipFile` for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        top = archive.namelist()[0].split("/")[0]
        listed = archive.getinfo(f"{top}/data.pkl")
        if listed.file_size > LARGEST_PICKLE:
            raise ValueError(
                f"its data.pkl has {listed.file_size:,} bytes; that of weights is small"
            )
        root = _Reader(archive, top).load()
        members = dict(_members(archive, top))
    return dict(_tensors(root, members, ""))


class _Shell:
    """An object of one of the archive's own classes, without anything that it could do."""

    name = ""

    def __setstate__(self, state: Any) -> None:
        self.held = state


class _Reader(pickle.Unpickler):
    """Knows few names; every other one is refused, so nothing can be called."""

    def __init__(self, archive: zipfile.ZipFile, top: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{top}/data.pkl")))
        self._archive, self._top = archive, top
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Shell", (_Shell,), {"name": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_")):
            return _plain
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is no tensor")
        if key not in self._storages:
            # What is stored as it is cannot grow, so a small file never takes much memory.
            entry = self._archive.getinfo(f"{self._top}/data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its tensor {key} is compressed, as torch never writes them")
            data = bytearray(self._archive.read(entry))
            if len(data) < count * dtype.itemsize:
                raise ValueError(f"its tensor {key} is cut short")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0)
        return self._storages[key]


def _rebuild(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """A view of a storage; torch checks that it stays within."""
    if not isinstance(storage, torch.Tensor):
        raise pickle.UnpicklingError("a tensor without its numbers")
    return torch.as_strided(storage, size, stride, offset)


def _plain(value: Any, *_: Any) -> Any:
    return value


def _members(archive: zipfile.ZipFile, top: str) -> Iterator[tuple[str, set[str]]]:
    """Which attributes of each class are parameters and buffers, by its full name."""
    for name in archive.namelist():
        if name.startswith(f"{top}/code/") and name.endswith(".py"):
            module = name.removeprefix(f"{top}/code/").removesuffix(".py").replace("/", ".")
            text = archive.read(name).decode()
            for found in CLASS.finditer(text):
                names = ",".join(NAMES.findall(found[2]))
                yield f"{module}.{found[1]}", set(re.findall(r'"([^"]+)"', names))


def _tensors(
    shell: Any, members: dict[str, set[str]], prefix: str
) -> Iterator[tuple[str, torch.Tensor]]:
    held = getattr(shell, "held", None)
    if not isinstance(held, dict):
        raise ValueError("it holds no module")
    own = members.get(shell.name, set())
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            if name in own:
                yield f"{prefix}{name}", value
        elif isinstance(value, _Shell):
            yield from _tensors(value, members, f"{prefix}{name}.")
