"""The promise of the bank format: what an older release wrote is read for ever.

`bank_v1` was written by 0.1.0, `bank_v2` by 0.2.0 (its images are cut into tiles). Never rewrite what
was released: when the format changes after that, add `bank_v3` beside them and its line in EXPECTED.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mrad import MemoryBank
from mrad.errors import BankVersionError
from mrad.memory.store import FORMAT_VERSION

HERE = Path(__file__).parent
EXPECTED = {
    1: {"entries": 6, "image": 6, "patch": 9, "sum": 1.0155210494995117, "tiles": {0}},
    2: {"entries": 6, "image": 17, "patch": 24, "sum": 0.8225727081298828, "tiles": {0, 1, 2}},
}


@pytest.mark.parametrize("version", EXPECTED)
def test_a_bank_of_every_version_is_read(version: int) -> None:
    bank = MemoryBank.load(HERE / f"bank_v{version}")
    facts = EXPECTED[version]
    assert len(bank.entries) == facts["entries"]
    assert (len(bank.image.keys), len(bank.patch.keys)) == (facts["image"], facts["patch"])
    total = float(np.abs(bank.patch.keys[0]).sum() - np.abs(bank.image.keys[0]).sum())
    assert total == pytest.approx(facts["sum"], rel=1e-6)
    assert {entry.label for entry in bank.entries} == {0, 1}
    assert set(bank.image.tile.tolist()) == facts["tiles"]
    assert bank.layout.plain == (facts["tiles"] == {0})


def test_reading_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    shutil.copytree(HERE / "bank_v1", tmp_path / "bank")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()}
    MemoryBank.load(tmp_path / "bank").save(tmp_path / "new")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()}
    manifest = json.loads((tmp_path / "new" / "bank.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION


def test_every_version_has_its_witness() -> None:
    assert set(EXPECTED) == set(range(1, FORMAT_VERSION + 1))


def test_a_newer_bank_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(HERE / "bank_v1", tmp_path / "bank")
    path = tmp_path / "bank" / "bank.json"
    manifest = json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BankVersionError, match=str(FORMAT_VERSION + 1)):
        MemoryBank.load(tmp_path / "bank")


def test_a_later_release_migrates_into_a_new_folder_and_an_earlier_one_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next format will go through: read the old, write the new beside it, never back."""
    old, new = tmp_path / "bank", tmp_path / "migrated"
    shutil.copytree(HERE / "bank_v1", old)
    with monkeypatch.context() as later:
        later.setattr("mrad.memory.store.FORMAT_VERSION", FORMAT_VERSION + 1)
        bank = MemoryBank.load(old)
        bank.save(new)
        again = MemoryBank.load(new)
        assert again.entries == bank.entries
        for level in ("image", "patch"):
            assert np.array_equal(getattr(again, level).keys, getattr(bank, level).keys)
    with pytest.raises(BankVersionError, match=f"reads up to {FORMAT_VERSION}; upgrade mrad"):
        MemoryBank.load(new)
    assert json.loads((old / "bank.json").read_text())["format_version"] == 1
    MemoryBank.load(old)
