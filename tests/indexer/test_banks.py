"""Memories joined and parted: nothing is lost, and what would surprise is said."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.banks.choose import Selection
from mrad_indexer.banks.merge import Part, merge
from mrad_indexer.cli.main import app
from PIL import Image
from typer.testing import CliRunner

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.demo import FOLDER
from mrad.errors import DataError, EncoderMismatchError, MergeError, UnknownObjectError
from mrad.images.guard import InputProfile
from mrad.images.layout import Layout, Tiling

GOOD = sorted((FOLDER / "memory" / "good").glob("*.png"))
BAD = sorted((FOLDER / "memory" / "defect").glob("*.png"))
MASKS = FOLDER / "memory" / "masks"


def good(paths: list[Path], name: str) -> list[Sample]:
    return [Sample(p, False, source=f"good/{p.name}", object_name=name) for p in paths]


def bad(paths: list[Path], name: str, tag: str = "") -> list[Sample]:
    tags = (tag,) if tag else ()
    return [Sample(p, True, MASKS / p.name, f"defect/{p.name}", name, "hole", tags) for p in paths]


@pytest.fixture(scope="module")
def boards(mini_encoder: Encoder) -> MemoryBank:
    return MemoryBank.from_samples(mini_encoder, good(GOOD[:5], "boards"))


@pytest.fixture(scope="module")
def caps(mini_encoder: Encoder) -> MemoryBank:
    samples = good(GOOD[-4:], "caps") + bad(BAD[:3], "caps", "line 2")
    return MemoryBank.from_samples(mini_encoder, samples)


@pytest.fixture(scope="module")
def both(boards: MemoryBank, caps: MemoryBank) -> MemoryBank:
    return merge([Part("a", boards), Part("b", caps)]).bank


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_joined_memories_hold_every_key_and_every_fact(boards, caps, both) -> None:
    assert both.entries == (*boards.entries, *caps.entries)
    for name in ("image", "patch", "local"):
        one, other, level = (getattr(bank, name) for bank in (boards, caps, both))
        np.testing.assert_array_equal(level.keys, np.concatenate([one.keys, other.keys]))
        np.testing.assert_array_equal(level.entry[len(one) :], other.entry + len(boards.entries))
        assert level.counts == tuple(np.add(one.counts, other.counts))
        assert level.refers_to == level.counts, "its own shares, not those of the first"
    assert both.calibration is None
    told = both.metadata["build"]["merged"]
    assert [(part["bank"], part["entries"]) for part in told] == [("a", 5), ("b", 7)]


def test_an_entry_that_two_memories_share_stands_once(both, caps) -> None:
    again = merge([Part("both", both), Part("b", caps)])
    assert again.repeated == 7
    assert again.bank.entries == both.entries


def test_the_same_picture_is_named_and_one_with_a_small_defect_is_another(
    mini_encoder, boards
) -> None:
    saved = io.BytesIO()
    Image.open(GOOD[0]).convert("RGB").save(saved, "JPEG", quality=85)
    samples = [Sample(saved.getvalue(), True, source="photo.jpg"), *bad(BAD[:1], "caps")]
    assert BAD[0].name == GOOD[0].name, "one board, and the same board with defects"
    found = merge([Part("a", boards), Part("b", MemoryBank.from_samples(mini_encoder, samples))])
    (pair,) = found.doubles
    assert pair.contradict
    assert GOOD[0].name in pair.one
    assert "photo.jpg" in pair.other


def test_what_cannot_be_joined_says_why_and_what_to_do(boards, caps, both) -> None:
    stranger = replace(caps, identity=replace(caps.identity, digest="0" * 64))
    with pytest.raises(EncoderMismatchError, match=r"a was built by .* b by .*again"):
        merge([Part("a", boards), Part("b", stranger)])
    tiled = replace(caps, metadata=caps.metadata | {"layout": Layout(Tiling(64)).to_json()})
    with pytest.raises(MergeError, match="two ways"):
        merge([Part("a", boards), Part("b", tiled)])
    with pytest.raises(MergeError, match="patch-keys"):
        merge([Part("a", boards), Part("b", replace(caps, metadata={"patch_keys": "all"}))])
    banks = [
        replace(bank, metadata={"input": InputProfile(depths={"16-bit grey": bits}).as_json()})
        for bank, bits in ((boards, 12), (caps, 10))
    ]
    with pytest.raises(MergeError, match="bit depths"):
        merge([Part("a", banks[0]), Part("b", banks[1])])


def test_a_product_is_judged_by_its_own_images(mini_encoder, boards, caps, both) -> None:
    assert Detector(mini_encoder, both).head.name == "combined", "of boards no defect is known"
    both = both.with_calibration({"tf": {"settings": {}}})
    whole = Detector(mini_encoder, both)
    assert whole.head.name == "tf", "calibrated for it"
    own = whole.of_object("boards")
    assert own.head.name == "nn", "the head that can serve these images"
    alone = Detector(mini_encoder, boards)
    image = str(sorted((FOLDER / "query" / "defect").glob("*.png"))[0])
    found, wanted = (one.predict([image], evidence=3)[0] for one in (own, alone))
    assert found.score == pytest.approx(wanted.score, abs=1e-5)
    assert {one.entry_id for one in found.evidence} <= {one.entry_id for one in boards.entries}
    assert whole.bank is both
    nn = Detector(mini_encoder, both, "nn").of_object("caps")
    other = Detector(mini_encoder, caps, "nn")
    assert nn.predict([image])[0].score == pytest.approx(other.predict([image])[0].score, abs=1e-5)
    with pytest.raises(UnknownObjectError, match="boards, caps"):
        whole.of_object("screws")


def test_parts_are_chosen_by_product_tag_and_source(both) -> None:
    def count(**words: list[str]) -> int:
        return int(Selection(**words).rows(both).sum())

    assert count(objects=["caps"]) == 7
    assert count(tags=["line 2"]) == 3
    assert count(sources=["defect/"]) == 3
    assert count(sources=["good"]) == 9
    assert count(objects=["caps"], sources=["good/*"]) == 4
    assert count(objects=["caps", "boards"]) == 12
    for words, said in (
        ({"objects": ["nuts"]}, "caps, boards"),
        ({"tags": ["line 3"]}, "line 2"),
        ({"sources": ["bad"]}, "good/"),
        ({}, "--object"),
        ({"objects": ["boards"], "tags": ["line 2"]}, "no image fits"),
    ):
        with pytest.raises(DataError, match=said):
            count(**words)


def folder(root: Path, name: str, good_only: list[Path], bads: list[Path]) -> Path:
    for kind, paths in (("good", good_only), ("defect", bads), ("masks", bads)):
        for path in paths:
            source = MASKS / path.name if kind == "masks" else path
            place = root / name / kind / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
    return root / name


def test_from_folders_to_verdicts_of_each_product(tmp_path, monkeypatch) -> None:
    """build, build --base, merge, split, remove, calibrate: each memory can be used as it stands."""
    monkeypatch.chdir(tmp_path)
    boards = folder(tmp_path, "boards", GOOD[:6], [])
    caps = folder(tmp_path, "caps", GOOD[-5:], BAD[:4])
    run("build", boards, "--out", "b/boards")
    told = run("build", caps, "--base", "b/boards", "--out", "b/both")
    assert "boards, caps" in told
    assert not Path("b/both.own").exists()
    assert "stands already" in run("build", caps, "--base", "b/boards", "--out", "b/both")
    run("build", caps, "--out", "b/caps")
    run("bank", "merge", "b/boards", "b/caps", "--out", "b/joined")
    based, joined = (MemoryBank.load(f"b/{name}") for name in ("both", "joined"))
    np.testing.assert_allclose(based.image.keys, joined.image.keys, atol=1e-6)
    assert len(MemoryBank.load("b/boards").entries) == 6, "the base stays as it was"
    run("calibrate", "b/both")
    assert MemoryBank.load("b/both").calibration["combined"]["normal"] == 11
    run("bank", "split", "b/both", "--object", "boards", "--out", "b/again")
    run("bank", "remove", "b/both", "--object", "boards", "--out", "b/rest")
    assert MemoryBank.load("b/again").objects == ("boards",)
    assert MemoryBank.load("b/rest").objects == ("caps",)
    run("calibrate", "b/again")
    scored = MemoryBank.load("b/again").calibration["nn"]
    assert (scored["normal"], scored["scored"]) == (6, "leave-one-out")
    run("bank", "inspect", "b/rest")
    taken = CliRunner().invoke(app, ["build", str(caps), "--base", "b/boards", "--out", "b/rest"])
    assert "is taken" in str(taken.output) + str(taken.exception)
