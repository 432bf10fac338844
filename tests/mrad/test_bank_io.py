"""A bank on disk: whole or absent, verified before it is parsed, and the same when read back."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrad import Detector, EncoderIdentity, Entry, MemoryBank
from mrad.errors import (
    BankCorruptError,
    BankError,
    BankNotFoundError,
    BankVersionError,
    BankWriteError,
    EncoderMismatchError,
)
from mrad.memory import store as bank_io
from mrad.memory.entry import Key
from mrad.memory.level import unit

FILES = (
    "bank.json",
    "image.faiss",
    "patch.faiss",
    "local.faiss",
    "entries.parquet",
    "thumbnails.parquet",
)


@pytest.fixture
def full_bank(tiny_bank: MemoryBank) -> MemoryBank:
    """The tiny bank with everything that a bank can carry, and an entry without a key."""
    thumbnails = {tiny_bank.entries[0].entry_id: b"\xff\xd8jpeg"}
    return replace(
        tiny_bank,
        entries=(*tiny_bank.entries, Entry("bare", 1, "bare.png", tags=("a", "b"), defect="crack")),
        thumbnails=thumbnails,
        calibration={"tf": {"image": {"threshold": 0.5}}},
        metadata={"origin": "näive"},
    )


@pytest.fixture
def folder(full_bank: MemoryBank, tmp_path: Path) -> Path:
    full_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


def test_what_was_saved_is_read_back(full_bank: MemoryBank, folder: Path):
    loaded = MemoryBank.load(folder)
    assert loaded.identity == full_bank.identity
    assert loaded.entries == full_bank.entries
    assert loaded.thumbnails == full_bank.thumbnails
    assert loaded.calibration == full_bank.calibration
    assert loaded.metadata == full_bank.metadata
    for name in ("image", "patch"):
        one, other = getattr(loaded, name), getattr(full_bank, name)
        for column in ("keys", "labels", "entry", "region", "size", "tile"):
            a, b = getattr(one, column), getattr(other, column)
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_a_loaded_bank_judges_like_the_one_that_was_saved(
    tiny_encoder, tiny_detector, tiny_bank, tmp_path, make_image
):
    saved = tiny_bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)
    assert loaded.digest == saved.digest
    assert (
        loaded.digest == hashlib.sha256((tmp_path / "bank" / "bank.json").read_bytes()).hexdigest()
    )
    image, _ = make_image(9, defect=True)
    one = Detector(tiny_encoder, loaded).predict([image], evidence=2)[0]
    other = tiny_detector.predict([image], evidence=2)[0]
    assert one.score == other.score
    assert one.evidence == other.evidence
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=6), st.data())
def test_any_memory_survives_the_disk(tmp_path_factory, rows, data):
    text = st.text(st.characters(codec="utf-8"), max_size=8)
    rng = np.random.default_rng(0)
    entries, keys = [], []
    for number, (label, count) in enumerate(rows):
        entries.append(Entry(str(number), label, data.draw(text), data.draw(text), data.draw(text)))
        for _ in range(count):
            level = data.draw(st.sampled_from(["image", "patch"]))
            vector = unit(rng.normal(size=5 if level == "image" else 3))
            keys.append(Key(level, label, str(number), "normal", number, vector))
    identity = EncoderIdentity("any", 8, "d")
    bank = MemoryBank.from_keys(identity, entries, keys, dims=(5, 3))
    path = tmp_path_factory.mktemp("any") / "bank"
    bank.save(path)
    loaded = MemoryBank.load(path)
    assert loaded.entries == bank.entries
    for name in ("image", "patch"):
        np.testing.assert_array_equal(getattr(loaded, name).keys, getattr(bank, name).keys)
        np.testing.assert_array_equal(getattr(loaded, name).entry, getattr(bank, name).entry)


def test_a_folder_that_is_not_empty_is_only_replaced_on_request(full_bank, folder, tiny_bank):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BankError, match="not empty"):
        tiny_bank.save(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    tiny_bank.save(folder, replace=True)
    assert MemoryBank.load(folder).thumbnails == {}
    assert [path.name for path in folder.parent.iterdir()] == ["bank"]


def test_a_save_that_fails_leaves_the_old_bank_and_no_rubbish(folder, tiny_bank, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank_io, "write_entries", full)
    with pytest.raises(BankWriteError, match="No space left"):
        tiny_bank.save(folder, replace=True)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["bank"]


@pytest.mark.parametrize("name", FILES[1:])
def test_any_change_to_any_file_is_noticed_before_it_is_parsed(name, folder, monkeypatch):
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("parsed a file whose digest is wrong")

    monkeypatch.setattr(bank_io, "map_keys", parsed)
    monkeypatch.setattr(bank_io, "read_rows", parsed)
    whole = (folder / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    cases = {bytes(flipped): "fails its SHA-256", whole[:-1]: "bytes,", whole + b"0": "bytes,"}
    for data, message in cases.items():
        (folder / name).write_bytes(data)
        with pytest.raises(BankCorruptError, match=f"{name}.*{message}"):
            MemoryBank.load(folder)
    (folder / name).unlink()
    with pytest.raises(BankCorruptError, match=f"{name} is missing"):
        MemoryBank.load(folder)


def test_a_missing_bank_and_a_half_written_one_are_told_apart(folder, tmp_path):
    with pytest.raises(BankNotFoundError, match="no such folder"):
        MemoryBank.load(tmp_path / "nowhere")
    (folder / "bank.json").unlink()
    with pytest.raises(BankNotFoundError, match="half-written or not a bank"):
        MemoryBank.load(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format_version=99), BankVersionError, "format 99.*upgrade"),
        (lambda m: m.pop("format_version"), BankCorruptError, "not what a build writes"),
        (lambda m: m.update(format_version="x"), BankCorruptError, "not what a build writes"),
        (lambda m: m.pop("files"), BankCorruptError, "lacks its files"),
        (lambda m: m.pop("encoder"), BankCorruptError, "lacks its files or its encoder"),
        (lambda m: m["files"].pop("image.faiss"), BankCorruptError, "does not list image.faiss"),
        (lambda m: m["files"]["image.faiss"].pop("sha256"), BankCorruptError, "lacks the digest"),
        (
            lambda m: m["files"].update({"../up": {"sha256": "", "bytes": 0}}),
            BankCorruptError,
            "up",
        ),
        (lambda m: m.pop("dims"), BankCorruptError, "cannot be parsed"),
        (lambda m: m["dims"].update(image=7), BankCorruptError, "listed"),
        (lambda m: m["encoder"].update(colour="red"), BankCorruptError, "cannot be parsed"),
    ],
)
def test_a_manifest_that_lies_is_refused(change, error, message, folder):
    manifest = json.loads((folder / "bank.json").read_text())
    change(manifest)
    (folder / "bank.json").write_bytes(bank_io.sealed(manifest))
    with pytest.raises(error, match=message):
        MemoryBank.load(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"bank"'])
def test_a_manifest_that_is_no_manifest_is_refused(data, folder):
    (folder / "bank.json").write_bytes(data)
    with pytest.raises(BankCorruptError, match="not what a build writes"):
        MemoryBank.load(folder)


def test_an_index_with_other_keys_than_listed_is_refused_even_with_its_digest(folder):
    index = faiss.IndexFlatIP(48)
    index.add(np.ones((2, 48), np.float32))
    faiss.write_index(index, str(folder / "image.faiss"))
    data = (folder / "image.faiss").read_bytes()
    manifest = json.loads((folder / "bank.json").read_text())
    manifest["files"]["image.faiss"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    (folder / "bank.json").write_bytes(bank_io.sealed(manifest))
    with pytest.raises(BankCorruptError, match="holds 2 x 48, listed 6 x 48"):
        MemoryBank.load(folder)


def test_another_encoder_is_refused_when_loading_for_it(tiny_encoder, tiny_bank, tmp_path):
    stranger = replace(tiny_bank, identity=EncoderIdentity("other", 96, "a" * 64))
    stranger.save(tmp_path / "bank")
    with pytest.raises(EncoderMismatchError):
        MemoryBank.load(tmp_path / "bank", encoder=tiny_encoder)


def test_calibration_is_renewed_without_touching_the_keys(folder, full_bank):
    bank = MemoryBank.load(folder)
    before = {name: (folder / name).read_bytes() for name in FILES[1:]}
    renewed = bank_io.save_calibration(bank.with_calibration({"tf": {"image": 1}}), folder)
    assert before == {name: (folder / name).read_bytes() for name in FILES[1:]}
    loaded = MemoryBank.load(folder)
    assert loaded.calibration == {"tf": {"image": 1}}
    assert loaded.digest == renewed.digest != bank.digest
    smaller = bank.remove(bank.entries[0].entry_id)
    with pytest.raises(BankError, match="another memory"):
        bank_io.save_calibration(smaller, folder)


def test_a_copied_folder_is_the_same_bank(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert MemoryBank.load(tmp_path / "copy").digest == MemoryBank.load(folder).digest


@pytest.mark.parametrize("mapped", [False, True])
def test_many_keys_are_mapped_and_the_file_is_never_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
):
    if mapped:
        monkeypatch.setattr(bank_io, "MAPPED_FROM", 0)
    before = (folder / "patch.faiss").read_bytes()
    keys = MemoryBank.load(folder).patch.keys
    assert isinstance(keys, np.memmap) is mapped
    wanted = faiss.read_index(str(folder / "patch.faiss")).reconstruct_n(0, len(keys))
    np.testing.assert_array_equal(keys, wanted)
    keys[:] = 0
    assert (folder / "patch.faiss").read_bytes() == before


def test_keys_that_were_read_do_not_change_with_the_file(folder: Path):
    """`cp` over a bank that is being served: neither other keys under old labels, nor a bus error."""
    keys = MemoryBank.load(folder).patch.keys
    before = keys.copy()
    file = folder / "patch.faiss"
    size = file.stat().st_size
    file.write_bytes(b"")
    file.write_bytes(bytes(size))
    np.testing.assert_array_equal(keys, before)


def test_a_bank_that_changes_while_it_is_read_is_refused(folder: Path, monkeypatch):
    parse = bank_io._parse

    def slowly(*arguments):
        contents = parse(*arguments)
        (folder / "patch.faiss").write_bytes((folder / "patch.faiss").read_bytes())
        return contents

    monkeypatch.setattr(bank_io, "_parse", slowly)
    with pytest.raises(BankCorruptError, match="changed while they were read"):
        MemoryBank.load(folder)


def test_only_a_flat_index_of_the_listed_size_is_mapped(tmp_path: Path):
    vectors = np.eye(4, 8, dtype=np.float32)
    flat, coded, file = faiss.IndexFlatIP(8), faiss.IndexLSH(8, 16), tmp_path / "x.faiss"
    for index in (flat, coded):
        index.add(vectors)
    faiss.write_index(flat, str(file))
    np.testing.assert_array_equal(bank_io.map_keys(file, 4, 8), vectors)
    with pytest.raises(ValueError, match="holds 4 x 8, listed 5 x 8"):
        bank_io.map_keys(file, 5, 8)
    file.write_bytes(file.read_bytes() + bytes(4))
    with pytest.raises(ValueError, match="laid out otherwise"):
        bank_io.map_keys(file, 4, 8)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="no flat index"):
        bank_io.map_keys(file, 4, 8)
    faiss.write_index(coded, str(file))
    with pytest.raises(ValueError, match="no flat index, listed 4 x 8"):
        bank_io.map_keys(file, 4, 8)


def test_a_memory_that_learned_keeps_the_shares_that_its_scores_refer_to(
    tiny_bank: MemoryBank, tmp_path: Path
) -> None:
    before = tiny_bank.image.counts
    entry = Entry("taught", 1)
    key = Key("image", 1, "taught", "image", 1, tiny_bank.image.keys[0])
    taught = tiny_bank.add(entry, [key])
    taught.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert loaded.image.refers_to == before == taught.image.refers_to
    assert loaded.image.counts == (before[0], before[1] + 1)
    assert loaded.remove("taught").image.refers_to == before


def test_levels_are_written_as_faiss_writes_them(tiny_bank: MemoryBank, tmp_path: Path) -> None:
    tiny_bank.save(tmp_path / "bank")
    for name in ("image", "patch", "local"):
        keys, file = getattr(tiny_bank, name).keys, tmp_path / "bank" / f"{name}.faiss"
        index = faiss.IndexFlatIP(keys.shape[1])
        index.add(np.ascontiguousarray(keys))
        assert faiss.serialize_index(index).tobytes() == file.read_bytes()
        assert faiss.read_index(str(file)).ntotal == len(keys)
