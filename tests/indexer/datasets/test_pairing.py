"""Masks find their images by one rule; doubt is an error, and nothing goes unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.pairing import ENDINGS, pair

from mrad.errors import DataError
from tests.cases import CASES
from tests.indexer.datasets.trees import picture, plain_folder

REPORTS = CASES / "reports"


def masks_of(root: Path) -> dict[str, str | None]:
    found = {}
    for record in read_dataset(root).records:
        if record.anomalous:
            found[record.source] = None if record.mask is None else record.mask.name
    return found


def test_cases_of_other_projects_reports():
    assert masks_of(REPORTS / "03_flat_masks") == {"defect/scratch/07.png": "07.png"}
    assert masks_of(REPORTS / "04_masks_beside") == {"defect/07.png": "07_mask.png"}
    assert masks_of(REPORTS / "05_same_stem") == {"defect/07.jpg": None, "defect/07.png": "07.png"}
    assert masks_of(REPORTS / "06_letter_case") == {
        "defect/A.png": "A.png",
        "defect/a.png": "a.png",
    }
    assert masks_of(REPORTS / "07_double_suffix") == {"defect/07.bmp": "07.bmp.png"}


def test_a_painted_alpha_marks_what_is_painted():
    (record,) = [r for r in read_dataset(REPORTS / "08_alpha_mask").records if r.anomalous]
    mask = record.truth((64, 64))
    assert mask.anomalous.sum() == 256
    assert not mask.warnings


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_with_stem_and_whole_name(tmp_path, ending):
    image = tmp_path / "07.bmp"
    for mask in (tmp_path / f"07{ending}.png", tmp_path / f"07.bmp{ending}.png"):
        assert pair([image], [mask]) == {image: mask}
    assert pair([tmp_path / "08.bmp"], [tmp_path / f"07{ending}.png"]) == {}


def test_doubt_is_an_error_that_names_the_files(tmp_path):
    masks = [tmp_path / name for name in ("07.tif", "07.gif")]
    with pytest.raises(DataError, match=r"07\.bmp has several masks.*07\.gif.*07\.tif"):
        pair([tmp_path / "07.bmp"], masks)
    with pytest.raises(DataError, match=r"07\.tif fits .*07\.bmp and .*07\.jpg alike"):
        pair([tmp_path / "07.bmp", tmp_path / "07.jpg"], masks[:1])
    picture(tmp_path / "good/1.png")
    for kind in ("dent", "scratch"):
        picture(tmp_path / "defect" / kind / "07.png")
    picture(tmp_path / "masks/07.png", mask=True)
    with pytest.raises(DataError, match=r"masks/07\.png fits"):
        read_dataset(tmp_path)


def test_what_is_not_taken_is_named(tmp_path):
    shutil.copytree(REPORTS / "03_flat_masks", tmp_path / "set")
    root = tmp_path / "set"
    (root / "masks/99.png").write_bytes((root / "masks/07.png").read_bytes())
    (root / "good/.hidden.png").write_bytes(b"x")
    (root / "good/._0.png").write_bytes(b"x")
    (root / "good/5.picture").write_bytes((root / "good/0.png").read_bytes())
    (root / "good/notes.txt").write_text("x")
    (root / "unsure").mkdir()
    shutil.copy(root / "good/0.png", root / "unsure/1.png")
    found = {item.path.name: item.why for item in read_dataset(root).left_out}
    assert set(found) == {"99.png", ".hidden.png", "5.picture", "1.png"}
    assert "hidden" in found[".hidden.png"]
    assert "suffix .picture" in found["5.picture"]


def test_heat_maps_of_a_run_are_neither_good_parts_nor_a_kind_of_defect(tmp_path):
    """`mrad score photos` writes scores/ where one stands: perhaps among the parts."""
    root = tmp_path / "parts"
    plain_folder(root)
    known = len(read_dataset(root).records)
    for place in (root, root / "good"):
        shutil.copytree(root / "good", place / "scores" / "overlays", dirs_exist_ok=True)
        (place / "scores" / "results.journal").touch()
    read = read_dataset(root)
    assert len(read.records) == known
    assert {item.path for item in read.left_out} == {
        root / "scores" / "overlays",
        root / "good" / "scores" / "overlays",
    }


def test_linked_folders_are_read_once(tmp_path):
    picture(tmp_path / "elsewhere/2.png")
    picture(tmp_path / "set/good/1.png")
    (tmp_path / "set/good/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set/good/round").symlink_to(tmp_path / "set/good", target_is_directory=True)
    assert len(read_dataset(tmp_path / "set")) == 2
