"""Files from strangers: one of each kind that would run something, or lead somewhere, if it could."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mrad_indexer.cli.main import app
from mrad_indexer.loading import encoder_of
from typer.testing import CliRunner

from mrad import Encoder, MemoryBank
from mrad.encoder import weights
from mrad.encoder.named import name_in_bank, remember, weights_named
from mrad.encoder.weights import load_clip, read_state, verify
from mrad.errors import BankCorruptError, EncoderError, MRADError, WeightsNotFoundError
from mrad.heads import load_head
from mrad.memory.living import writing
from mrad.memory.store import save_calibration, sealed
from mrad.released.memory import convert_memory


class Evil:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[object, tuple[object]]:
        return (Path.touch, (Path("ran"),))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "user_cache_path", lambda name: tmp_path / "cache" / name)
    yield
    assert not (tmp_path / "ran").exists(), "code of the file ran"


class Runs(torch.nn.Module):
    """TorchScript that does something as soon as it is loaded: its `__setstate__`."""

    @torch.jit.export
    def __getstate__(self) -> int:
        return 3

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        torch.save(torch.zeros(state), "ran")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(path: Path, data: bytes, code: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("evil/data.pkl", data)
        file.writestr("evil/code/__torch__.py", code)
        file.writestr("evil/constants.pkl", pickle.dumps(()))
        file.writestr("evil/version", "3")
    return path


def evil_archives(folder: Path) -> list[Path]:
    module = b"c__torch__\nModule\n)\x81}(X\x01\x00\x00\x00a"
    known = b"ctorch._utils\n_rebuild_tensor_v2\n"
    cases = {
        "reduce": pickle.dumps({"a": Evil()}),
        "module": module + pickle.dumps(Evil())[2:-1] + b"ub.",
        "jit": b"ctorch\njit.load\n(X\x08\x00\x00\x00other.pttR.",
        "getattr": b"cbuiltins\ngetattr\n.",
        "storage": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000tQ.",
        "bounds": b"\x80\x02" + known + b"(K\x01K\x00(I9\nt(I1\nttR.",
        "plain": b"\x80\x02I1\n.",
        "cycle": b"\x80\x02c__torch__\nModule\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub.",
    }
    return [archive(folder / f"{name}.pt", data) for name, data in cases.items()]


def test_torchscript_is_read_and_never_run(tmp_path: Path) -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.w = Runs(), torch.nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    try:
        torch.jit.save(torch.jit.script(Holder()), "evil.pt")
    except RuntimeError:  # this TorchScript may not write files: what it may do is enough
        pytest.skip("this torch compiles no such module")
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(EncoderError):
        load_clip("ViT-B-32", tmp_path / "evil.pt")


def test_an_archive_that_asks_for_anything_but_tensors_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    for path in evil_archives(tmp_path):
        for reader in (read_state, verify):
            with pytest.raises(EncoderError, match="not a readable checkpoint"):
                reader(path)
        result = CliRunner().invoke(app, ["weights", "verify", str(path)])
        assert result.exit_code != 0


def test_a_small_archive_does_not_become_a_large_one(tmp_path: Path) -> None:
    tensor = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x00\x10tQ"
        b"K\x00J\x00\x00\x00\x10\x85K\x01\x85\x89NtR."
    )
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", tensor)
        file.writestr("bomb/code/__torch__.py", "")
        file.writestr("bomb/data/0", bytes(1 << 20))
    with pytest.raises(EncoderError, match="compressed"):
        read_state(tmp_path / "bomb.pt")


def test_pickles_in_place_of_tensors_are_refused_wherever_a_file_is_read(
    tmp_path: Path, tiny_encoder: Encoder
) -> None:
    torch.save({"keys": Evil(), "values": torch.zeros(1)}, "evil.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Evil()))
    np.save("evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "bare.pt"):
        with pytest.raises(EncoderError):
            read_state(tmp_path / name)
        with pytest.raises(MRADError):
            convert_memory(tmp_path / name, tmp_path / name, tiny_encoder)
        with pytest.raises(MRADError):
            load_head("ft", tiny_encoder, checkpoint=tmp_path / name)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load("evil.npy")


@pytest.mark.parametrize(
    "named", ["weights.pt", "/etc/passwd", "../evil.safetensors", "~/evil", "a/b", "evil.pth", "."]
)
def test_a_path_in_a_bank_is_not_followed(
    tiny_bank: MemoryBank, tmp_path: Path, monkeypatch, named: str
) -> None:
    monkeypatch.setattr(weights, "read_state", lambda path: pytest.fail(f"{path} was read"))
    Path("weights.pt").write_bytes(pickle.dumps(Evil()))
    path = tmp_path / "bank"
    tiny_bank.save(path)
    manifest = json.loads((path / "bank.json").read_bytes())
    manifest["metadata"]["pretrained"] = named
    (path / "bank.json").write_bytes(sealed(manifest))
    with pytest.raises(WeightsNotFoundError, match="never followed"):
        encoder_of(MemoryBank.load(path))


def test_a_file_that_the_user_loaded_is_found_by_its_digest(
    tiny_bank: MemoryBank, tmp_path
) -> None:
    identity, file = tiny_bank.identity, tmp_path / "mine.safetensors"
    file.write_bytes(b"")
    assert name_in_bank(file) == "mine.safetensors"
    assert name_in_bank("openai") == "openai"
    with pytest.raises(WeightsNotFoundError, match=identity.digest[:12]):
        weights_named(identity, "mine.safetensors")
    remember(identity, file)
    assert weights_named(identity, "mine.safetensors") == file
    assert weights_named(identity, "/somewhere/else.pt") == file
    file.unlink()
    with pytest.raises(WeightsNotFoundError):
        weights_named(identity, "mine.safetensors")
    assert weights_named(identity, "openai") == "openai"
    assert weights_named(identity, None) is None


def test_a_bank_of_lies_is_refused_before_anything_is_parsed(
    tiny_bank: MemoryBank, tmp_path
) -> None:
    tiny_bank.save(tmp_path / "bank")
    (tmp_path / "bank" / "patch.faiss").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BankCorruptError):
        MemoryBank.load(tmp_path / "bank")


def test_a_database_of_a_stranger_runs_nothing(tiny_bank: MemoryBank, tmp_path: Path) -> None:
    """SQL that hides in a schema: a view and a trigger in place of a table, an extension to load."""
    tiny_bank.save(tmp_path / "bank")
    with writing(tmp_path / "bank"):
        pass
    path = tmp_path / "bank.live" / "memory.sqlite"
    whole = path.read_bytes()
    for evil in (
        "DROP TABLE removed; CREATE VIEW removed AS "
        "SELECT 1 AS sequence, load_extension('evil') AS entry_id, x'00' AS checksum",
        "CREATE TRIGGER t AFTER INSERT ON total BEGIN SELECT load_extension('evil'); END",
    ):
        path.write_bytes(whole)
        with sqlite3.connect(path) as connection:
            connection.executescript(evil)
        connection.close()
        with pytest.raises(MRADError, match="schema"):
            MemoryBank.load(tmp_path / "bank")
        with pytest.raises(MRADError, match="schema"), writing(tmp_path / "bank"):
            pass


def test_a_calibration_of_a_stranger_is_numbers_or_refused(tiny_bank: MemoryBank, tmp_path) -> None:
    from mrad.calibration import Calibration
    from mrad.errors import CalibrationError

    tiny_bank.save(tmp_path / "bank")
    evil = {"tf": {"image": {"value": "__import__('os')"}, "settings": {"checkpoint": "../../x"}}}
    save_calibration(MemoryBank.load(tmp_path / "bank").with_calibration(evil), tmp_path / "bank")
    with pytest.raises(CalibrationError, match="cannot be used"):
        Calibration.of(MemoryBank.load(tmp_path / "bank"), "tf")


def test_links_in_a_bank_lead_nowhere(tiny_bank: MemoryBank, tmp_path: Path) -> None:
    tiny_bank.save(tmp_path / "bank")
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    for name in ("image.faiss", "entries.parquet"):
        copy = tmp_path / f"linked-{name}"
        shutil.copytree(tmp_path / "bank", copy)
        (copy / name).unlink()
        (copy / name).symlink_to(secret)
        with pytest.raises(BankCorruptError):
            MemoryBank.load(copy)


def test_read_tensors_reads_no_stream_of_pickles() -> None:
    buffer = io.BytesIO()
    torch.save([Evil()], buffer)
    Path("list.pt").write_bytes(buffer.getvalue())
    with pytest.raises(EncoderError):
        read_state(Path("list.pt"))
