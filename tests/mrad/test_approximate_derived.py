"""Choosing retrieval, and the index that a bank's folder keeps: found, extended, built again."""

from __future__ import annotations

import gc
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `clusters`, under any import mode

from clusters import COUNT, WIDTH, clustered, mixed_labels

from mrad import Detector, Encoder, MemoryBank
from mrad.errors import EmptyLevelError, MRADError
from mrad.heads import NoSettings
from mrad.heads.ft import FTHead, FTWeights
from mrad.memory.level import LevelMemory
from mrad.retrieval.approximate import derived as approximate_derived
from mrad.retrieval.approximate.derived import approximate, stored
from mrad.retrieval.approximate.index import TOLERANCE, ApproximateRetriever
from mrad.retrieval.base import streamed_log_sums
from mrad.retrieval.choose import choose, make_retriever, sharpness_of
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.lessons import WithLessons, judged, retriever_of


def level_of(count: int, home: Path | None = None, seed: int = 0) -> LevelMemory:
    """The first `count` of the clustered keys, two to an entry."""
    return LevelMemory(
        clustered(COUNT, seed, 2.0)[:count],
        mixed_labels()[:count],
        np.arange(count) // 2,
        np.full(count, "normal"),
        np.ones(count, dtype=np.int32),
        home,
    )


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the indexes that were built; none is alive at the start."""
    gc.collect()
    approximate_derived._living.clear()
    made: list[int] = []
    whole = ApproximateRetriever.build.__func__

    def build(cls: type, keys: np.ndarray, *args: object, **kwargs: object) -> object:
        made.append(len(keys))
        return whole(cls, keys, *args, cells=4, **kwargs)

    monkeypatch.setattr(ApproximateRetriever, "build", classmethod(build))
    return made


def test_the_index_lies_in_the_bank_with_its_error(tmp_path: Path, builds: list[int]) -> None:
    level = level_of(1_000, tmp_path)
    first = make_retriever(level, mode="approximate")
    (facts,) = stored(tmp_path)
    assert facts["keys"] == 1_000
    assert facts["accuracy"]["queries"] == 256
    assert 0 < facts["accuracy"]["largest_error"] < 1e-2
    assert facts["bytes"] > 1_000 * WIDTH * 2
    sums = first.log_sums(torch.from_numpy(level.keys[:9]))
    assert approximate(level) is first  # in use already
    approximate_derived._living.clear()
    again = approximate(level)  # a new process
    assert isinstance(again.cells.segments[0].codes, np.memmap)
    assert again.cells.accuracy is not None
    torch.testing.assert_close(again.log_sums(torch.from_numpy(level.keys[:9])), sums)
    assert builds == [1_000]


def test_a_level_that_grew_extends_what_there_is(tmp_path: Path, builds: list[int]) -> None:
    approximate(level_of(1_000, tmp_path))
    grown = level_of(1_200, tmp_path)
    found = approximate(grown)
    assert len(found) == 1_200
    assert found.drift().added == 200
    exact = ExactRetriever(grown.keys, grown.labels, grown.entry)
    queries = torch.from_numpy(clustered(50, 1, 2.0))
    assert (found.probability(queries) - exact.probability(queries)).abs().max() < 2e-3
    assert len(approximate(level_of(1_100, tmp_path))) == 1_100  # from the 1,000 again
    assert builds == [1_000]


def test_other_keys_get_an_index_of_their_own(tmp_path: Path, builds: list[int]) -> None:
    level = level_of(600, tmp_path)
    approximate(level)
    keys = level.keys.copy()
    keys[:] = clustered(COUNT, 3)[:600]  # another head's projection of the same entries
    approximate(replace(level, keys=keys))
    approximate(level.without_row(7))
    assert builds == [600, 600, 598]
    assert len(stored(tmp_path)) == 3


def test_drift_builds_anew(builds: list[int], caplog: pytest.LogCaptureFixture) -> None:
    level = level_of(400)
    kept = approximate(level)
    with caplog.at_level(logging.WARNING):
        found = approximate(level_of(1_000))
    assert builds == [400, 1_000]
    assert found.drift().added == 0
    assert "built again" in caplog.text
    assert len(kept) == 400


def test_a_damaged_index_is_built_anew(
    tmp_path: Path, builds: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    level = level_of(600, tmp_path)
    approximate(level)
    approximate_derived._living.clear()
    table = next(tmp_path.glob("derived/*/cells.safetensors"))
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    approximate(level)
    assert builds == [600, 600]
    assert "built again" in caplog.text


def test_a_place_that_cannot_be_written_is_said(
    tmp_path: Path, builds: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "derived").write_text("in the way")
    found = approximate(level_of(600, tmp_path))
    assert len(found) == 600
    assert "cannot be kept" in caplog.text


def test_auto_chooses_and_says_why(caplog: pytest.LogCaptureFixture, builds: list[int]) -> None:
    with caplog.at_level(logging.INFO, logger="mrad.retrieval.choose"):
        assert isinstance(make_retriever(level_of(600), mode="auto"), ExactRetriever)
    assert "600 keys of width 96 are few" in caplog.text
    with pytest.raises(MRADError, match="exact, approximate, auto"):
        make_retriever(level_of(10), mode="fast")
    for mode in ("auto", "approximate"):
        with pytest.raises(EmptyLevelError):
            make_retriever(level_of(0), mode=mode)


def test_choice_follows_size_and_sharpness() -> None:
    assert choose(3_360, 1_024, 1.0)[0] == "exact"  # the paper's memory
    assert choose(1_000_000, 1_024, 1.0)[0] == "approximate"
    assert choose(50_000, 1_024, 64.0)[0] == "exact"
    mode, reason = choose(10_000_000, 1_024, 64.0)
    assert mode == "approximate"
    assert "10000000 keys" in reason
    assert "64" in reason


def test_sharpness_is_the_size_of_the_products() -> None:
    keys = clustered(1_000, 0, 3.0)
    assert sharpness_of(keys) == pytest.approx(9, rel=1e-5)
    assert sharpness_of(keys, torch.from_numpy(clustered(10, 1, 2.0))) == pytest.approx(6, rel=1e-5)


def test_streamed_sums_are_the_exact_ones() -> None:
    level, queries = level_of(1_000), torch.from_numpy(clustered(20, 1, 2.0))
    exclude = torch.arange(20) - 1
    exact = ExactRetriever(level.keys, level.labels, level.entry).log_sums(queries, exclude)
    got = streamed_log_sums(level.keys, level.labels, queries, level.entry, exclude)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-6)


def taught_level(home: Path | None = None) -> tuple[LevelMemory, int]:
    """3,000 keys of a build, then 300 that were taught; and how many entries the build has."""
    whole = level_of(3_300, home)
    return replace(whole, keys=whole.keys / 2, reference=level_of(3_000).counts), 1_500


def test_lessons_weigh_the_same_beside_an_index_that_misses_the_nearest_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mrad.retrieval.approximate.index.NEAREST_PROBES", 1)
    approximate_derived._living.clear()
    level, entries = taught_level()
    exact, index = (
        retriever_of(level, entries, mode=mode, device="cpu") for mode in ("exact", "approximate")
    )
    assert isinstance(exact, WithLessons)
    assert isinstance(index, WithLessons)
    later, others = level.keys[3_000:3_060], clustered(60, 1)
    queries = torch.from_numpy(np.concatenate([later, (later + others) / 2, others]))
    queries /= queries.norm(dim=1, keepdim=True)
    for exclude in (None, torch.arange(180) // 2 + 1_500):
        _, nearest = exact.built.sums_and_peak(queries, exclude)
        found = torch.from_numpy(index.built.nearest(queries, 1, exclude)[0][:, 0])
        assert (nearest - found > 1e-3).sum() > 10, "it misses some"
        wanted = exact.taught.weighed(queries, nearest, exclude)[1]
        counted = index._nearest_built(index.built, queries, exclude)
        got = index.taught.weighed(queries, counted, exclude)[1]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
        one, other = (judged(each, level, queries, exclude) for each in (exact, index))
        # Two classes, whose log-sums are within the tolerance each.
        assert (one - other).abs().max() < 2 * TOLERANCE / 4


def test_a_taught_memory_opens_with_the_index_of_its_build(
    tmp_path: Path, builds: list[int]
) -> None:
    level, entries = taught_level(tmp_path)
    build = replace(level.take(slice(None, 3_000)), folder=tmp_path)
    approximate(build)
    approximate_derived._living.clear()  # a new process
    taught = retriever_of(level, entries, mode="approximate", device="cpu")
    assert isinstance(taught, WithLessons)
    assert isinstance(taught.built.cells.segments[0].codes, np.memmap)
    assert len(taught.built) == 3_000
    assert builds == [3_000]
    assert len(stored(tmp_path)) == 1


def test_a_detector_on_an_approximate_memory(
    tiny_encoder: Encoder, tiny_bank: MemoryBank, tmp_path: Path, builds: list[int]
) -> None:
    bank = MemoryBank.load(tiny_bank.save(tmp_path / "bank") and tmp_path / "bank")
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    exact, other = (
        Detector(tiny_encoder, bank, retrieval=mode).predict([image], evidence=2)[0]
        for mode in ("exact", "approximate")
    )
    assert other.score == pytest.approx(exact.score, abs=1e-4)
    assert [e.entry_id for e in other.evidence] == [e.entry_id for e in exact.evidence]
    assert sorted(facts["keys"] for facts in stored(tmp_path / "bank")) == sorted(
        [len(bank.image), len(bank.patch)]
    )
    assert len(builds) == 2  # evidence asks the head's own index
    assert len(MemoryBank.load(tmp_path / "bank").entries) == len(bank.entries)


def test_a_sharp_head_on_an_approximate_memory(
    tiny_encoder: Encoder, tiny_bank: MemoryBank, builds: list[int]
) -> None:
    torch.manual_seed(0)
    weights = FTWeights(tiny_encoder.embed_dim, tiny_encoder.width)
    state = {name: 6 * value for name, value in weights.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    features, outputs = tiny_encoder.encode([image]), []
    for mode in ("exact", "approximate"):
        head = FTHead(tiny_encoder, NoSettings(), state)
        head.attach(tiny_bank, mode)
        outputs.append(head(features, torch.tensor([2])))
    exact, other = outputs
    assert exact.patch.std() > 1e-3
    torch.testing.assert_close(other.patch, exact.patch, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.image, exact.image, rtol=0, atol=1e-3)
    assert len(builds) == 2
