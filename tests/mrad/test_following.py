"""A lesson changes verdicts near what it teaches, and no other: bounds over random memories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrad import Detector, Encoder, MemoryBank
from mrad.calibration import Calibration
from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average
from mrad.heads.good_parts.classes import GoodClasses
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.keys import Piece, keys_of
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.follow import flips, followed
from mrad.thresholds.own import anchored, score_own

HEADS = ("tf", "nn", "combined")
FAR_SCORE = {"tf": 0.001, "nn": 0.03, "combined": 0.1}
"""What 36 lessons of a kind that has nothing in common with a memory of 24 images may move the distance of
its other images' scores from the threshold by; scores of good and defective ones lie 0.3 and more apart
with `nn` and `combined`."""
FAR_PROBABILITY = 0.25


class Kinds:
    """Pictures of kinds that have nothing in common, as features."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self.encoder, self.rng = encoder, np.random.default_rng(seed)
        cells, width, embed = encoder.grid**2, encoder.width, encoder.embed_dim
        self.sheet = {
            name: torch.from_numpy(self.rng.normal(size=(cells, width))).float()
            for name in ("product", "other")
        }
        self.whole = {
            name: torch.from_numpy(self.rng.normal(size=embed)).float() for name in self.sheet
        }
        self.flaw = torch.from_numpy(self.rng.normal(size=width)).float()
        self.flaw_whole = torch.from_numpy(self.rng.normal(size=embed)).float()

    def picture(self, kind: str, bad: bool) -> tuple[Features, np.ndarray]:
        """Features of one picture, and its mask on the grid."""
        grid = self.encoder.grid
        noise = lambda *shape: torch.from_numpy(self.rng.normal(size=shape)).float()  # noqa: E731
        sheet = self.sheet[kind] + 0.3 * noise(grid * grid, self.encoder.width)
        whole = self.whole[kind] + 0.3 * noise(self.encoder.embed_dim)
        mask = np.zeros((grid, grid), bool)
        if bad:
            mask[: grid // 2, : grid // 2] = True
            sheet[torch.from_numpy(mask.ravel())] += self.flaw
            whole = whole + 0.5 * self.flaw_whole
        raw = sheet[None]
        return Features(whole[None], neighbourhood_average(raw, grid), raw), mask

    def lesson(self, kind: str, bad: bool) -> tuple[Entry, list[Key], Features]:
        features, mask = self.picture(kind, bad)
        side = self.encoder.image_size
        entry = Entry(new_entry_id(), int(bad), source=kind, width=side, height=side)
        large = np.kron(mask, np.ones((side // self.encoder.grid,) * 2, bool))
        piece = Piece(0, bad, large if bad else None)
        return entry, keys_of(self.encoder, features, 0, entry, piece), features


def memory(kinds: Kinds) -> MemoryBank:
    entries, keys = [], []
    for place in range(24):
        entry, own, _ = kinds.lesson("product", place % 3 == 0)
        entries.append(entry)
        keys += own
    dims = kinds.encoder.embed_dim, kinds.encoder.width
    return MemoryBank.from_keys(kinds.encoder.identity, entries, keys, dims=dims)


def made(detector: Detector) -> Calibration:
    scored = score_own(detector, thorough=True)
    return anchored(calibrate(detector, scored, draws=50), detector.bank, scored)


def above(detector: Detector, held: Calibration, features: Features) -> tuple[float, float]:
    """How far a score lies above the threshold, and the probability."""
    (found,) = detector.finish(features, [(64, 64)], maps=False)
    return found.score - held.image_threshold, held.probability(found.score) or 0.0


def taught(detector: Detector, lessons: list[tuple[Entry, list[Key], Features]]) -> Detector:
    bank = detector.bank
    for entry, keys, _ in lessons:
        bank = bank.add(entry, keys)
    return detector.with_bank(bank)


def now(origin: Calibration, detector: Detector) -> Calibration:
    return followed(origin, detector, score_own(detector))


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), bad=st.booleans(), count=st.sampled_from([1, 5, 36]))
def test_lessons_far_from_a_query_leave_its_verdict_and_forgetting_leaves_no_trace(
    tiny_encoder: Encoder, head: str, seed: int, bad: bool, count: int
) -> None:
    kinds = Kinds(tiny_encoder, seed)
    before = Detector(tiny_encoder, memory(kinds), head)
    origin = made(before)
    lessons = [kinds.lesson("other", bad) for _ in range(count)]
    after = taught(before, lessons)
    held = now(origin, after)
    for flawed in (False, True):
        features, _ = kinds.picture("product", flawed)
        was, risk = above(before, origin, features)
        is_, then = above(after, held, features)
        assert abs(is_ - was) <= FAR_SCORE[head]
        assert abs(then - risk) <= FAR_PROBABILITY
    assert not flips(origin, held)
    back = after.with_bank(before.bank)
    assert now(origin, back).image_threshold == origin.image_threshold


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bad", [False, True])
def test_near_a_lesson_scores_move_towards_it_and_back_when_it_is_forgotten(
    tiny_encoder: Encoder, head: str, bad: bool
) -> None:
    kinds = Kinds(tiny_encoder, 7)
    before = Detector(tiny_encoder, memory(kinds), head)
    origin = made(before)
    lessons = [kinds.lesson("other", bad) for _ in range(5)]
    after = taught(before, lessons)
    held = now(origin, after)
    features, _ = kinds.picture("other", bad)
    was, _ = above(before, origin, features)
    is_, _ = above(after, held, features)
    if bad and head != "tf":  # they compare with good parts: a defect teaches them next to nothing
        assert is_ == pytest.approx(was, abs=0.02)
    else:
        assert (is_ > was) == bad, (was, is_)
    back = after.with_bank(before.bank)
    assert above(back, now(origin, back), features)[0] == pytest.approx(was, abs=1e-4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), count=st.sampled_from([1, 36]))
def test_a_lesson_calms_what_is_like_it_as_a_whole_and_moves_no_scale(
    seed: int, count: int
) -> None:
    """The distance of whole images: from what is usual, or from a lesson that is truly nearer."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randn(64, generator=rng, dtype=torch.float64)
    far = torch.randn(64, generator=rng, dtype=torch.float64)

    def draw(around: torch.Tensor, images: int) -> torch.Tensor:
        noise = torch.randn(images, 64, generator=rng, dtype=torch.float64)
        return torch.nn.functional.normalize(around + 0.2 * noise, dim=1)

    built, lessons = draw(kind, 24), draw(kind + far, count)
    keys, usual = torch.cat([built, lessons]), torch.arange(24 + count) < 24
    before = GoodClasses(built, torch.arange(24))
    after = GoodClasses(keys, torch.arange(24 + count), usual)
    asked = torch.cat([draw(kind, 20), draw(kind - far, 20)])
    assert torch.allclose(after.distance(asked), before.distance(asked), rtol=0, atol=1e-9)
    near = torch.nn.functional.normalize(lessons[:1] + 0.01, dim=1)
    assert float(after.distance(near)) < 0.5 * float(before.distance(near))
    assert torch.equal(after.alone().keys, before.keys)


def test_while_enough_images_are_left_a_threshold_is_chosen_on_those_it_was_made_of(
    tiny_encoder: Encoder,
) -> None:
    """Lessons are often odd: they are no sample of what is to come."""
    kinds = Kinds(tiny_encoder, 11)
    before = Detector(tiny_encoder, memory(kinds), "nn")
    origin = made(before)
    after = taught(before, [kinds.lesson("other", True) for _ in range(12)])
    scored = score_own(after)
    held = followed(origin, after, scored)
    odd = [row >= len(before.bank.entries) for row in scored.own_row]
    moved = replace(scored, score=[0.9999 if new else s for new, s in zip(odd, scored.score)])
    assert followed(origin, after, moved).image_threshold == held.image_threshold
