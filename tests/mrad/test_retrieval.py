"""Exact retrieval against a plain float64 softmax over every key."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrad.errors import DimensionError, EmptyLevelError, MRADError, NonFiniteError
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import at_reference_shares, probability_of
from mrad.retrieval.choose import make_retriever
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.lessons import WithLessons, judged, retriever_of, weights


def naive(queries: np.ndarray, keys: np.ndarray, labels: np.ndarray, banned=None) -> np.ndarray:
    """Share of the anomalous class in the softmax over all keys, float64, written out."""
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    if banned is not None:
        scores[banned] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights @ labels / weights.sum(axis=1)


def make(seed: int, count: int, queries: int, dim: int = 12, sharp: float = 1.0):
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(count, dim)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = (rng.random(count) < 0.4).astype(np.uint8)
    asked = rng.normal(size=(queries, dim)).astype(np.float32)
    asked *= sharp / np.linalg.norm(asked, axis=1, keepdims=True)
    return keys, labels, asked


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from([0.0, 1.0, 30.0, 3_000.0]),
)
def test_any_block_size_and_sharpness_equals_the_plain_softmax(seed, count, queries, block, sharp):
    keys, labels, asked = make(seed, count, queries, sharp=sharp)
    retriever = ExactRetriever(keys, labels, block=block)
    found = retriever.probability(torch.from_numpy(asked)).numpy()
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found, naive(asked, keys, labels), atol=1e-6 * max(sharp, 1))


def test_more_queries_than_a_block_of_queries(monkeypatch):
    monkeypatch.setattr("mrad.retrieval.exact.QUERY_BLOCK", 7)
    keys, labels, asked = make(1, 40, 23)
    found = ExactRetriever(keys, labels).probability(torch.from_numpy(asked))
    np.testing.assert_allclose(found, naive(asked, keys, labels), atol=1e-6)
    assert len(ExactRetriever(keys, labels).probability(torch.empty(0, 12))) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
def test_the_order_of_the_keys_does_not_matter(seed, count):
    keys, labels, asked = make(seed, count, 5)
    order = np.random.default_rng(seed).permutation(count)
    one = ExactRetriever(keys, labels).probability(torch.from_numpy(asked))
    other = ExactRetriever(keys[order], labels[order]).probability(torch.from_numpy(asked))
    np.testing.assert_allclose(one, other, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_excluded_entries_have_no_say(seed, count):
    keys, labels, asked = make(seed, count, 6)
    rng = np.random.default_rng(seed)
    entry = rng.integers(0, max(2, count // 2), count)
    entry[:2] = (0, 1)  # whoever is excluded, one key is left
    exclude = rng.integers(-1, 3, 6)
    retriever = ExactRetriever(keys, labels, entry, block=7)
    found = retriever.probability(torch.from_numpy(asked), torch.from_numpy(exclude))
    banned = entry[None] == exclude[:, None]
    np.testing.assert_allclose(found, naive(asked, keys, labels, banned), atol=1e-6)
    similarity, rows = retriever.nearest(torch.from_numpy(asked), 3, torch.from_numpy(exclude))
    for query in range(6):
        allowed = int((~banned[query]).sum())
        got = rows[query][: min(3, allowed)]
        assert not banned[query][got].any()
        best = np.sort((asked @ keys.T)[query][~banned[query]])[::-1][: len(got)]
        np.testing.assert_allclose(similarity[query][: len(got)], best, atol=1e-5)


def test_log_sums_of_shards_merge_to_those_of_the_whole():
    keys, labels, asked = make(5, 90, 4, sharp=5)
    queries = torch.from_numpy(asked)
    whole = ExactRetriever(keys, labels).log_sums(queries)
    parts = [ExactRetriever(keys[i::3], labels[i::3]).log_sums(queries) for i in range(3)]
    merged = torch.logsumexp(torch.stack(parts), dim=0)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(merged, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(probability_of(merged), probability_of(whole))


def test_a_class_without_keys_gives_minus_infinity_and_certainty():
    keys, _, asked = make(2, 8, 3)
    for label in (0, 1):
        retriever = ExactRetriever(keys, np.full(8, label, np.uint8))
        sums = retriever.log_sums(torch.from_numpy(asked))
        assert torch.isinf(sums[:, 1 - label]).all()
        assert (retriever.probability(torch.from_numpy(asked)) == label).all()


def test_the_nearest_keys_are_the_largest_products_in_the_callers_numbering():
    keys, labels, asked = make(3, 50, 4)
    similarity, rows = ExactRetriever(keys, labels).nearest(torch.from_numpy(asked), 5)
    products = asked @ keys.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, np.take_along_axis(products, rows, 1), atol=1e-6)
    assert rows.shape == (4, 5)
    assert ExactRetriever(keys, labels).nearest(torch.from_numpy(asked), 99)[1].shape == (4, 50)


def test_the_largest_product_comes_with_the_sums():
    keys, labels, asked = make(7, 60, 9)
    entry = np.arange(60) // 3
    retriever = ExactRetriever(keys, labels, entry, block=7)
    queries, own = torch.from_numpy(asked), torch.arange(9)
    sums, peak = retriever.sums_and_peak(queries)
    assert torch.equal(sums, retriever.log_sums(queries))
    np.testing.assert_allclose(peak, (asked @ keys.T).max(axis=1), atol=1e-6)
    allowed = np.where(entry[None] == own.numpy()[:, None], -np.inf, asked @ keys.T)
    _, peak = retriever.sums_and_peak(queries, own)
    np.testing.assert_allclose(peak, allowed.max(axis=1), atol=1e-6)
    alone = ExactRetriever(keys[:2], labels[:2], np.zeros(2, np.int64))
    assert torch.isinf(alone.sums_and_peak(queries[:1], torch.tensor([0]))[1]).all()


def test_requests_that_come_together_all_search_a_full_index(monkeypatch):
    made = []

    class Slow:
        """An index that takes its time to be filled."""

        def __init__(self, width: int) -> None:
            self.index = index_of(width)
            made.append(self)

        def add(self, keys: np.ndarray) -> None:
            time.sleep(0.2)
            self.index.add(keys)

        def search(self, queries: np.ndarray, k: int):
            return self.index.search(queries, k)

    index_of = faiss.IndexFlatIP
    monkeypatch.setattr("mrad.retrieval.exact.faiss.IndexFlatIP", Slow)
    keys, labels, asked = make(8, 50, 4)
    retriever = ExactRetriever(keys, labels)
    together = Barrier(3)

    def ask() -> np.ndarray:
        together.wait(5)
        return retriever.nearest(torch.from_numpy(asked), 1)[0][:, 0]

    with ThreadPoolExecutor(3) as pool:
        answers = [one.result() for one in [pool.submit(ask) for _ in range(3)]]
    for found in answers:
        np.testing.assert_allclose(found, (asked @ keys.T).max(axis=1), atol=1e-6)
    assert len(made) == 1


def test_the_same_bits_twice():
    keys, labels, asked = make(4, 300, 40)
    retriever = ExactRetriever(keys, labels, block=64)
    queries = torch.from_numpy(asked)
    assert torch.equal(retriever.probability(queries), retriever.probability(queries))


def test_misuse_has_its_own_errors(tiny_bank):
    keys, labels, _ = make(6, 5, 1)
    with pytest.raises(EmptyLevelError):
        ExactRetriever(np.empty((0, 3), np.float32), np.empty(0, np.uint8))
    with pytest.raises(DimensionError, match="4 labels for 5 keys"):
        ExactRetriever(keys, labels[:4])
    broken = keys.copy()
    broken[0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="keys hold"):
        ExactRetriever(broken, labels)
    retriever = ExactRetriever(keys, labels)
    for queries in (torch.zeros(2, 3), torch.zeros(12)):
        with pytest.raises(DimensionError, match="12 wide"):
            retriever.probability(queries)
    with pytest.raises(NonFiniteError, match="query"):
        retriever.probability(torch.full((1, 12), torch.nan))
    with pytest.raises(MRADError, match="retrieval 'magic' is unknown; choose"):
        make_retriever(tiny_bank.image, mode="magic")
    exact = make_retriever(tiny_bank.image, mode="exact")
    assert isinstance(exact, ExactRetriever)
    assert len(exact) == len(tiny_bank.image)


def test_being_left_out_does_not_make_a_defect_look_better():
    """Keys that say nothing: every image must get the class share of the whole memory."""
    labels = np.array([0, 0, 0, 1, 1], np.uint8)
    level = LevelMemory(
        np.tile(np.float32([1, 0]), (5, 1)), labels, np.arange(5), np.full(5, "image"),
        np.ones(5, np.int32),
    )  # fmt: skip
    retriever = ExactRetriever(level.keys, level.labels, level.entry)
    own = torch.tensor([0, 3, -1])
    told = retriever.probability(torch.from_numpy(level.keys[:3]), own)
    assert told[1] < 0.3 < 0.4 < told[0]  # the bias: the defect looks best
    fair = at_reference_shares(told, level, own)
    assert torch.allclose(fair, torch.full((3,), 0.4), atol=1e-6)
    assert at_reference_shares(told, level, None) is told


def _level(vectors: np.ndarray, labels: list[int]) -> LevelMemory:
    count = len(labels)
    return LevelMemory(
        np.ascontiguousarray(vectors, np.float32), np.array(labels, np.uint8), np.arange(count),
        np.full(count, "image"), np.ones(count, np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("lessons", [1, 5, 36])
def test_lessons_that_say_nothing_new_leave_every_probability(lessons: int, label: int) -> None:
    """Keys like the class's own: the odds must not follow their number."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(12, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    level = _level(vectors, [0] * 6 + [1] * 6)
    queries = torch.from_numpy(vectors + 0.1)

    def told(memory: LevelMemory) -> torch.Tensor:
        retriever = ExactRetriever(memory.keys, memory.labels, memory.entry)
        return at_reference_shares(retriever.probability(queries), memory)

    before, taught = told(level), level
    own = vectors[level.labels == label]
    for _ in range(lessons):
        taught = taught.join(_level(own, [label] * len(own)))  # each key of the class once more
    assert taught.refers_to == level.counts != taught.counts
    assert torch.allclose(told(taught), before, atol=1e-6)
    unbalanced = ExactRetriever(taught.keys, taught.labels, taught.entry).probability(queries)
    assert (unbalanced - before).abs().min() > 0.05, "the number alone would move them"


def _built_and_taught(seed: int, lessons: int) -> tuple[LevelMemory, int, torch.Tensor]:
    """12 good and 4 defective keys, then lessons; and queries."""
    keys, _, asked = make(seed, 16 + lessons, 9)
    built = _level(keys[:16], [0] * 12 + [1] * 4)
    if not lessons:
        return built, 16, torch.from_numpy(asked)
    extra = _level(keys[16:], [place % 2 for place in range(lessons)])
    extra = replace(extra, entry=extra.entry + 16)
    return built.join(extra), 16, torch.from_numpy(asked)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 7]), st.booleans())
def test_lessons_count_by_how_much_nearer_they_are(seed: int, lessons: int, own: bool) -> None:
    level, count, queries = _built_and_taught(seed, lessons)
    exclude = torch.arange(len(queries)) * 2 if own else None
    found = judged(retriever_of(level, 16, mode="exact", device="cpu"), level, queries, exclude)
    for place, query in enumerate(queries.numpy().astype(np.float64)):
        cosine = level.keys.astype(np.float64) @ query
        full = np.arange(len(level)) < count
        left = level.entry != (2 * place if own else -1)
        nearest = 1 - cosine[full & left].max()
        weight = np.where(full, 1.0, np.clip(1 - (1 - cosine) / nearest, 0, 1)) * left
        mean = [
            np.average(np.exp(cosine[level.labels == label]), weights=weight[level.labels == label])
            for label in (0, 1)
        ]
        assert found[place] == pytest.approx(4 * mean[1] / (12 * mean[0] + 4 * mean[1]), abs=1e-5)


def test_a_lesson_the_build_knows_as_well_moves_nothing_and_one_alone_is_near_itself() -> None:
    level, _, _ = _built_and_taught(1, 0)
    known = torch.from_numpy(level.keys)
    before = judged(retriever_of(level, 16, mode="exact", device="cpu"), level, known)
    lesson = np.float32([[0] * 11 + [1]])
    taught = level.join(replace(_level(lesson, [1]), entry=np.array([16])))
    after = retriever_of(taught, 16, mode="exact", device="cpu")
    assert isinstance(after, WithLessons)
    assert torch.allclose(judged(after, taught, known), before, atol=1e-6)
    near = torch.from_numpy(lesson)
    was = judged(retriever_of(level, 16, mode="exact", device="cpu"), level, near)
    assert judged(after, taught, near) > was
    full = retriever_of(taught, None, mode="exact", device="cpu")  # too few of the build
    assert not isinstance(full, WithLessons)


def test_what_the_build_knows_as_near_counts_nothing_whatever_is_rounded() -> None:
    cosine = torch.tensor([[1.0, 0.9999999, 1.0000001, 0.5]] * 3)
    nearest = torch.tensor([0.9999999, 1.0, 0.75])
    found = weights(cosine, nearest)
    assert (found[:2] == 0).all()
    torch.testing.assert_close(found[2], torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert (weights(cosine[:, 3:], torch.tensor([0.5, 0.5000001, 0.6])) == 0).all()
    none = weights(cosine, torch.full((3,), -torch.inf))  # everything else is left out
    torch.testing.assert_close(none[0], torch.tensor([1.0, 1.0, 1.0, 0.75]))
    assert (weights(torch.full((1, 2), -torch.inf), nearest[2:]) == 0).all()


def test_a_patch_that_build_and_lesson_both_hold_is_judged_as_before() -> None:
    level, _, _ = _built_and_taught(2, 0)
    copies = replace(_level(level.keys[12:14], [0, 0]), entry=np.array([16, 17]))
    taught, known = level.join(copies), torch.from_numpy(level.keys[12:14])
    before = judged(retriever_of(level, 16, mode="exact", device="cpu"), level, known)
    after = judged(retriever_of(taught, 16, mode="exact", device="cpu"), taught, known)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)


@pytest.mark.parametrize("own", [False, True])
def test_lessons_count_the_same_in_blocks_of_any_size_and_search_nothing(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    level, _, queries = _built_and_taught(3, 11)
    exclude = torch.arange(len(queries)) + 12 if own else None  # of the build, and taught
    monkeypatch.setattr("mrad.retrieval.exact.faiss.IndexFlatIP", None)  # whoever searches fails

    def told() -> torch.Tensor:
        return judged(retriever_of(level, 16, mode="exact", device="cpu"), level, queries, exclude)

    whole = told()
    for size in (1, 4, 9):
        monkeypatch.setattr("mrad.retrieval.lessons.BLOCK", size)
        torch.testing.assert_close(told(), whole, rtol=0, atol=1e-6)
