"""A picture that was taught is known again and judged by its label; one with a new defect is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from mrad import Detector, Encoder, MemoryBank, Sample
from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.keys import Piece, encode_samples, keys_of
from mrad.retrieval.taught import SAME
from mrad.thresholds.own import score_own
from mrad.thresholds.taught import as_taught
from mrad.types import ANOMALOUS, NORMAL, WHOLE, Prediction, Recognised
from tests.mrad.boards import bank_of_boards, opened, recompressed

HEADS = ("tf", "nn", "combined")
TOO_LOW, TOO_HIGH = 0.0, 1.0
"""Thresholds that flag everything, and nothing."""


def doubles(image: Image.Image) -> list[Image.Image]:
    """The same picture recompressed, and brightened."""
    return [recompressed(image), ImageEnhance.Brightness(image).enhance(1.03)]


@pytest.fixture(scope="module")
def bank(mini_encoder: Encoder, demo_images: Path) -> MemoryBank:
    return bank_of_boards(mini_encoder, demo_images)


def taught(bank: MemoryBank, encoder: Encoder, *samples: Sample) -> MemoryBank:
    for entry, keys in encode_samples(encoder, samples, layout=bank.layout):
        bank = bank.add(entry, keys)
    return bank


@pytest.mark.parametrize("head", HEADS)
def test_a_taught_picture_is_judged_by_its_label_until_it_is_forgotten(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path, head: str
) -> None:
    folder = demo_images / "query"
    good = sorted((folder / "good").glob("*.png"))[0]
    bad = sorted((folder / "defect").glob("*.png"))[-1]
    lessons = Sample(good, False, source="g"), Sample(bad, True, folder / "masks" / bad.name, "b")
    now = taught(bank, mini_encoder, *lessons)
    before = Detector(mini_encoder, bank, head)
    detector = before.with_bank(now)
    for path, label, cut in ((good, NORMAL, TOO_LOW), (bad, ANOMALOUS, TOO_HIGH)):
        shown = [opened(path), *doubles(opened(path))]
        assert not any(one.recognised for one in before.predict(shown, maps=False))
        for found in detector.predict(shown):
            told = found.recognised
            assert told is not None
            assert (told.label, told.entry_id) == (label, now.entries[-2 + label].entry_id)
            assert told.similarity > 0.98
            judged = as_taught(found, None, cut, cut)
            assert (np.float32(judged.score) >= np.float32(cut)) == label
            assert judged.recognised == told
            assert found.anomaly_map is not None
            assert judged.anomaly_map is not None
            assert bool((judged.anomaly_map >= np.float32(cut)).any()) == bool(label)
    assert told.marked, "the mask says where the defect is"
    without = detector.with_bank(now.remove(now.entries[-1].entry_id))
    assert without.predict([opened(bad)])[0].recognised is None
    assert without.predict([opened(good)])[0].recognised is not None


@pytest.mark.parametrize("head", HEADS)
def test_recognition_leaves_raw_scores_and_the_memorys_own_images_alone(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path, head: str
) -> None:
    path = sorted((demo_images / "query" / "good").glob("*.png"))[0]
    detector = Detector(mini_encoder, taught(bank, mini_encoder, Sample(path, False)), head)
    as_built = Detector(mini_encoder, replace(detector.bank, metadata={}), "tf")
    if head == "tf":
        one, other = (d.predict([opened(path)])[0] for d in (detector, as_built))
        assert other.recognised is None, "a memory as built recognises nothing"
        assert one.score == other.score
        assert np.array_equal(one.anomaly_map, other.anomaly_map)  # type: ignore[arg-type]
    features = mini_encoder.encode([opened(path)])
    own = torch.tensor([len(detector.bank.entries) - 1])
    assert detector.finish(features, [(64, 64)], exclude=own)[0].recognised is None
    left_out = detector.finish(features, [(64, 64)], exclude=own)[0].score
    assert score_own(detector).score[-1] == pytest.approx(left_out, abs=2e-4)


@pytest.mark.parametrize("size", [0.03, 0.06])
def test_the_taught_picture_with_a_small_new_defect_is_not_recognised(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path, size: float
) -> None:
    rng = np.random.default_rng(3)
    for path in sorted((demo_images / "query" / "good").glob("*.png")):
        detector = Detector(mini_encoder, taught(bank, mini_encoder, Sample(path, False)), "nn")
        image = opened(path)
        side = max(4, round(size * min(image.size)))
        x, y = (int(v) for v in rng.integers(side, min(image.size) - side, 2))
        here = np.asarray(image)[y : y + side, x : x + side].mean()
        ImageDraw.Draw(image).ellipse(
            (x, y, x + side, y + side), fill=(0 if here > 110 else 255,) * 3
        )
        shown = [image, *doubles(image)]
        assert not any(one.recognised for one in detector.predict(shown, maps=False))


def test_real_defects_on_boards_that_were_taught_as_good_are_not_recognised(
    mini_encoder: Encoder, shared_data: Path
) -> None:
    """DeepPCB has the same board with and without defects: each way round."""
    folder = shared_data / "deep_pcb"
    good = {path.stem: path for path in sorted(folder.glob("*/good/*"))}
    bads = {path.stem: path for path in sorted(folder.glob("test/defect/*"))}
    pairs = [(good[stem], bads[stem]) for stem in bads if stem in good][:40]
    assert len(pairs) >= 20
    bank = MemoryBank.from_samples(mini_encoder, [Sample(good, False) for good, _ in pairs[:2]])
    known = 0
    for good, bad in pairs[2:]:
        mask = next((folder / "ground_truth" / "defect").glob(f"{bad.stem}*"))
        for lesson, other in (
            (Sample(good, False), bad),
            (Sample(bad, True, mask), good),
        ):
            detector = Detector(mini_encoder, taught(bank, mini_encoder, lesson), "nn")
            twins = [opened(other), *doubles(opened(other))]
            assert not any(one.recognised for one in detector.predict(twins, maps=False)), bad
            same = doubles(opened(Path(str(lesson.image))))
            known += sum(one.recognised is not None for one in detector.predict(same, maps=False))
    assert known >= 0.95 * 4 * (len(pairs) - 2)


def test_of_conflicting_lessons_the_later_decides_and_the_answer_says_so(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path
) -> None:
    path = sorted((demo_images / "query" / "good").glob("*.png"))[0]
    now = taught(bank, mini_encoder, Sample(path, True), Sample(path, False))
    detector = Detector(mini_encoder, now, "tf")
    told = detector.predict([opened(path)])[0].recognised
    assert told is not None
    assert told.label == NORMAL
    assert told.contradicts == (now.entries[-2].entry_id,)
    assert now.entries[-2].entry_id in told.text
    first = detector.with_bank(now.remove(now.entries[-1].entry_id))
    told = first.predict([opened(path)])[0].recognised
    assert told is not None
    assert (told.label, told.contradicts) == (ANOMALOUS, ())


def test_it_holds_in_a_bank_that_is_written_and_for_the_part_of_one_product(
    mini_encoder: Encoder, bank: MemoryBank, demo_images: Path, tmp_path: Path
) -> None:
    path = sorted((demo_images / "query" / "good").glob("*.png"))[0]
    named = replace(bank, entries=tuple(replace(e, object_name="board") for e in bank.entries))
    now = taught(named, mini_encoder, Sample(path, False, object_name="board"))
    now.save(tmp_path / "bank")
    detector = Detector(mini_encoder, MemoryBank.load(tmp_path / "bank"), "nn")
    assert detector.predict([opened(path)])[0].recognised is not None
    assert detector.of_object("board").predict([opened(path)])[0].recognised is not None


def test_a_picture_that_is_cut_is_recognised_where_every_tile_is(
    mini_encoder: Encoder, demo_images: Path
) -> None:
    folder = demo_images / "memory" / "good"
    paths = sorted(folder.glob("*.png"))[:4]
    layout = Layout(Tiling(min(opened(paths[0]).size) // 2 + 20))
    built = MemoryBank.from_samples(
        mini_encoder, [Sample(p, False) for p in paths[:3]], layout=layout
    )
    now = taught(built, mini_encoder, Sample(paths[3], False, source="cut"))
    detector = Detector(mini_encoder, now, "nn")
    image = opened(paths[3])
    whole, *rest = detector.predict([image, *doubles(image)])
    assert all(one.recognised is not None for one in (whole, *rest))
    assert len(whole.tiles) > 1
    spot = image.copy()
    ImageDraw.Draw(spot).ellipse((10, 10, 40, 40), fill=(255, 0, 255))
    assert detector.predict([spot])[0].recognised is None
    assert detector.predict([image], layout=Layout(Tiling(100)))[0].recognised is None


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), patch=st.integers(0, 35), share=st.floats(0.2, 1.0))
def test_one_patch_that_differs_is_enough(
    tiny_encoder: Encoder, seed: int, patch: int, share: float
) -> None:
    """Whatever the mean says: every patch decides."""
    rng = torch.Generator().manual_seed(seed)
    grid, width = tiny_encoder.grid, tiny_encoder.width
    entries: list[Entry] = []
    keys: list[Key] = []

    def seen(raw: torch.Tensor, whole: torch.Tensor) -> Features:
        return Features(whole, neighbourhood_average(raw, grid), raw)

    for _ in range(3):
        raw = torch.randn(1, grid * grid, width, generator=rng)
        whole = torch.randn(1, tiny_encoder.embed_dim, generator=rng)
        entries.append(Entry(new_entry_id(), NORMAL))
        keys += keys_of(tiny_encoder, seen(raw, whole), 0, entries[-1], Piece(0, False))
    dims = tiny_encoder.embed_dim, width
    bank = MemoryBank.from_keys(
        tiny_encoder.identity, entries[:2], keys[: len(keys) * 2 // 3], dims=dims
    )
    bank = bank.add(entries[2], keys[len(keys) * 2 // 3 :])
    detector = Detector(tiny_encoder, bank, "nn")
    known = detector.finish(seen(raw, whole), [(64, 64)])[0].recognised
    assert known is not None
    assert known.similarity == pytest.approx(1, abs=1e-5)
    other = raw.clone()
    place = patch % (grid * grid)
    away = torch.randn(width, generator=rng)
    other[0, place] = (1 - share) * raw[0, place] + share * away
    cosine = torch.cosine_similarity(other[0, place], raw[0, place], dim=0)
    found = detector.finish(seen(other, whole), [(64, 64)])[0].recognised
    assert (found is None) == (float(1 - cosine) > SAME)
    assert seen(raw, whole).places is None  # a whole picture lies at
    assert detector._taught.places == (WHOLE,)


@given(st.floats(0.01, 0.99))
def test_a_taught_map_stays_on_its_side_of_the_threshold_in_16_bits(cut: float) -> None:
    """As the server and the command line write it: else a page outlines a good part, or not the defect."""
    size, raw = (8, 6), np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    for label, marked in ((NORMAL, ()), (ANOMALOUS, ((2, 1, 5, 4),))):
        told = Recognised("", label, "", 1.0, marked=marked)
        found = Prediction(0.5, 0.5, 0.5, size, raw, recognised=told)
        shown = as_taught(found, None, pixel_threshold=cut).anomaly_map
        assert shown is not None
        reached = np.round(shown * np.float32(65535)).astype(np.uint16) / 65535 >= cut
        if label == NORMAL:
            assert not reached.any()
        else:
            assert reached[1:4, 2:5].all()


@pytest.mark.parametrize("marked", ["tight", "box", "whole"])
def test_other_pictures_of_one_position_are_not_taken_for_the_taught_defect(
    mini_encoder: Encoder, demo_images: Path, marked: str
) -> None:
    """Parts in a jig are as alike as a picture and its copy; a generous mark holds what all of them have."""
    board = opened(sorted((demo_images / "query" / "good").glob("*.png"))[0])
    rng = np.random.default_rng(5)

    def photographed() -> Image.Image:
        noise = rng.normal(0, 3, (board.height, board.width, 1))
        levels = np.asarray(board, dtype=float) * rng.uniform(0.98, 1.02) + noise
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8))

    bank = MemoryBank.from_samples(
        mini_encoder, [Sample(photographed(), False, source=str(n)) for n in range(6)]
    )
    bad, mask = photographed(), np.zeros((board.height, board.width), bool)
    across, down = board.width // 3, board.height // 3
    side = board.width // 40
    spot = (across, down, across + side, down + side)
    ImageDraw.Draw(bad).ellipse(spot, fill=(90, 90, 90))
    wide = {"tight": 0, "box": 4 * side, "whole": board.width}[marked]
    mask[max(0, spot[1] - wide) : spot[3] + wide, max(0, spot[0] - wide) : spot[2] + wide] = True
    detector = Detector(mini_encoder, taught(bank, mini_encoder, Sample(bad, True, mask)), "nn")
    asked = [bad, *doubles(bad), *(photographed() for _ in range(6))]
    known = [found.recognised is not None for found in detector.predict(asked, maps=False)]
    assert known[0]
    assert known[3:] == [False] * 6
