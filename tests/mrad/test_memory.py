"""The memory: what keys come from, how banks change, and an error of its own for each misfit."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrad import ANOMALOUS, NORMAL, Detector, Encoder, EncoderIdentity, Entry, MemoryBank, Sample
from mrad.errors import (
    BankError,
    DimensionError,
    EmptyLevelError,
    EncoderMismatchError,
    ImageError,
    MaskError,
    NonFiniteError,
    OneClassError,
)
from mrad.memory.entry import Key, new_entry_id
from mrad.memory.keys import region_grid
from mrad.memory.level import unit

IDENTITY = EncoderIdentity("test", 96, "0" * 64)


def bank_of(labels: list[int], dims: tuple[int, int] = (4, 3), seed: int = 0) -> MemoryBank:
    """One entry, one image key and one patch key for each label."""
    rng = np.random.default_rng(seed)
    entries = [Entry(new_entry_id(), label, source=f"{i}.png") for i, label in enumerate(labels)]
    keys = []
    for entry in entries:
        for level, dim in zip(("image", "patch"), dims):
            region = "image" if level == "image" else ("normal", "anomalous")[entry.label]
            vector = unit(rng.normal(size=dim))
            keys.append(Key(level, entry.label, entry.entry_id, region, 1, vector))
    return MemoryBank.from_keys(IDENTITY, entries, keys, dims=dims)


def test_every_key_says_where_it_comes_from(tiny_bank: MemoryBank, tiny_encoder: Encoder):
    assert len(tiny_bank.entries) == 6
    assert tiny_bank.image.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert tiny_bank.image.entry.tolist() == list(range(6))
    assert set(tiny_bank.image.region) == {"image"}
    cells = tiny_encoder.grid**2
    for row, entry in enumerate(tiny_bank.entries):
        assert (entry.source, entry.width, entry.height) == (f"{row}.png", 80 + 8 * row, 64)
        assert entry.added_at.endswith("Z")
        own = tiny_bank.patch.entry == row
        regions = dict(zip(tiny_bank.patch.region[own], tiny_bank.patch.size[own]))
        assert set(regions) == ({"normal", "anomalous"} if entry.label else {"normal"})
        whole = sum(regions.values())
        assert whole == cells if entry.label == NORMAL else whole < cells  # borders are nobody's
    for level in (tiny_bank.image, tiny_bank.patch):
        np.testing.assert_allclose(np.linalg.norm(level.keys, axis=1), 1, rtol=1e-5)
        assert level.keys.dtype == np.float32


def test_a_region_key_is_the_unit_mean_of_its_cells(tiny_encoder: Encoder, make_image):
    image, mask = make_image(4, (96, 96), defect=True)
    bank = MemoryBank.from_samples(tiny_encoder, [Sample(image, True, mask)])
    patch = tiny_encoder.encode([image]).patch[0].numpy()
    marked = np.asarray(mask) > 0
    normal, anomalous = region_grid(marked, True, tiny_encoder.image_size, tiny_encoder.grid)
    for key, cells in zip(bank.patch.keys, (normal, anomalous)):
        np.testing.assert_allclose(key, unit(patch[cells.numpy()].mean(axis=0)), atol=1e-6)


def test_samples_without_a_mask_or_with_a_tiny_defect_feed_what_is_known(tiny_encoder, make_image):
    image, _ = make_image(1, defect=True)
    speck = np.zeros((64, 80), np.uint8)
    speck[5, 5] = 255
    everywhere = np.full((64, 80), 255, np.uint8)
    samples = [
        Sample(image, True),
        Sample(image, True, speck),
        Sample(image, True, everywhere),
        Sample(image, False),
    ]
    bank = MemoryBank.from_samples(tiny_encoder, samples, batch_size=3)
    assert len(bank.image) == 4
    regions = [bank.patch.region[bank.patch.entry == row].tolist() for row in range(4)]
    assert regions == [[], ["normal"], ["anomalous"], ["normal"]]


def test_the_batch_size_does_not_change_the_keys(tiny_encoder, tiny_samples, tiny_bank):
    calls: list[int] = []
    bank = MemoryBank.from_samples(
        tiny_encoder, iter(tiny_samples), batch_size=1, progress=calls.append
    )
    assert calls == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(bank.image.keys, tiny_bank.image.keys, atol=1e-5)
    np.testing.assert_allclose(bank.patch.keys, tiny_bank.patch.keys, atol=1e-5)


def test_bad_samples_raise_their_own_error(tiny_encoder, make_image):
    image, mask = make_image(2, defect=True)
    with pytest.raises(ImageError):
        MemoryBank.from_samples(tiny_encoder, [Sample(b"nonsense", False)])
    with pytest.raises(MaskError, match="but its image is"):
        MemoryBank.from_samples(tiny_encoder, [Sample(image, True, mask.resize((9, 9)))])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90), st.integers(2, 9))
def test_regions_never_overlap_and_flip_with_the_mask(seed, width, height, grid):
    mask = np.zeros((height, width), bool)
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, width), rng.integers(0, height)
    mask[y : y + rng.integers(1, 60), x : x + rng.integers(1, 60)] = True
    normal, anomalous = region_grid(mask, True, grid * 8, grid)
    assert normal.shape == anomalous.shape == (grid * grid,)
    assert not (normal & anomalous).any()
    swapped = region_grid(np.asarray(Image.fromarray(~mask)), True, grid * 8, grid)
    # The cut at 0.5 is strict, so a pixel at exactly one half may fall on the other side.
    assert int((swapped[0] ^ anomalous).sum() + (swapped[1] ^ normal).sum()) <= 4 * grid


def test_regions_of_the_extremes():
    empty, full = np.zeros((10, 10), bool), np.ones((10, 10), bool)
    assert [r.all().item() for r in region_grid(empty, True, 32, 4)] == [True, False]
    assert [r.all().item() for r in region_grid(full, True, 32, 4)] == [False, True]
    assert not torch.stack(region_grid(None, True, 32, 4)).any()
    assert region_grid(None, False, 32, 4)[0].all()
    assert region_grid(full, False, 32, 4)[0].all()  # a good image is normal, mask or not


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.data())
def test_adding_then_removing_gives_the_bank_back(labels, data):
    bank = bank_of(labels)
    other = bank_of([data.draw(st.integers(0, 1))], seed=9)
    entry = other.entries[0]
    keys = [
        Key(name, int(level.labels[0]), entry.entry_id, str(level.region[0]), 1, level.keys[0])
        for name, level in (("image", other.image), ("patch", other.patch))
    ]
    larger = bank.add(entry, keys, b"jpeg")
    assert len(bank.entries) == len(labels)  # the old one stays as it was
    assert larger.entries[-1] == entry
    assert larger.thumbnails == {entry.entry_id: b"jpeg"}
    np.testing.assert_array_equal(larger.image.keys[-1], other.image.keys[0])
    back = larger.remove(entry.entry_id)
    same(back, bank)
    gone = data.draw(st.integers(0, len(labels) - 1))
    smaller = bank.remove(bank.entries[gone].entry_id)
    kept = [row for row in range(len(labels)) if row != gone]
    assert [e.source for e in smaller.entries] == [f"{row}.png" for row in kept]
    np.testing.assert_array_equal(smaller.patch.keys, bank.patch.keys[kept])
    assert smaller.patch.entry.tolist() == list(range(len(kept)))


def same(one: MemoryBank, other: MemoryBank) -> None:
    """Equal entries and, level by level, equal keys and provenance."""
    assert one.entries == other.entries
    assert one.identity == other.identity
    assert one.thumbnails == other.thumbnails
    for name in ("image", "patch"):
        a, b = getattr(one, name), getattr(other, name)
        for column in ("keys", "labels", "entry", "region", "size", "tile"):
            np.testing.assert_array_equal(getattr(a, column), getattr(b, column))


def test_an_entry_that_is_not_there_cannot_be_removed():
    with pytest.raises(BankError, match="no entry nowhere"):
        bank_of([0, 1]).remove("nowhere")


def test_keys_must_belong_to_one_entry_each_and_agree_in_width():
    entry = Entry(new_entry_id(), NORMAL)
    key = Key("image", 0, entry.entry_id, "image", 1, unit(np.ones(4)))
    with pytest.raises(BankError, match="share an entry_id"):
        MemoryBank.from_keys(IDENTITY, [entry, entry], [key])
    with pytest.raises(BankError, match="unknown entries"):
        MemoryBank.from_keys(IDENTITY, [entry], [key._replace(entry_id="stranger")])
    with pytest.raises(DimensionError, match="image keys differ in width"):
        MemoryBank.from_keys(IDENTITY, [entry], [key, key._replace(vector=unit(np.ones(5)))])
    wide = key._replace(entry_id="b", vector=unit(np.ones(5)))
    with pytest.raises(DimensionError, match="do not fit a level of width 4"):
        bank_of([0, 1]).add(Entry("b", NORMAL), [wide])


def test_each_misfit_between_bank_and_encoder_has_its_own_error(tiny_encoder, tiny_bank):
    tiny_bank.check(tiny_encoder)
    stranger = replace(tiny_bank, identity=EncoderIdentity("ViT-B-32", 224, "f" * 64))
    with pytest.raises(EncoderMismatchError) as caught:
        stranger.check(tiny_encoder)
    assert "ViT-B-32 at 224 px" in str(caught.value)
    assert str(tiny_encoder.identity) in str(caught.value)
    for name in ("image", "patch"):
        level = getattr(tiny_bank, name)
        none, one = np.zeros(len(level), bool), level.labels == ANOMALOUS
        nan = level.keys.copy()
        nan[1, 0] = np.nan
        for broken, error, message in (
            (replace(level, keys=level.keys[:, :-1]), DimensionError, f"{name} keys are"),
            (replace(level, keys=nan), NonFiniteError, f"{name} level holds NaN"),
        ):
            bank = replace(tiny_bank, **{name: broken})
            with pytest.raises(error, match=message):
                bank.check(tiny_encoder)
            with pytest.raises(error):
                Detector(tiny_encoder, bank)
        for broken, error, message in (
            (cut(level, none), EmptyLevelError, f"{name}"),
            (cut(level, one), OneClassError, f"{name} level holds anomalous keys only"),
            (cut(level, ~one), OneClassError, "every probability would be 0"),
        ):
            with pytest.raises(error, match=message):  # each head says what it needs
                Detector(tiny_encoder, replace(tiny_bank, **{name: broken}), "tf")


def cut(level, keep):
    """The level with only the keys where `keep`."""
    columns = ("keys", "labels", "entry", "region", "size", "tile")
    return replace(level, **{name: getattr(level, name)[keep] for name in columns})


def test_entry_ids_are_uuid7_unique_and_sorted_by_time():
    ids = [new_entry_id() for _ in range(2_000)]
    assert len(set(ids)) == 2_000
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    stamps = [uuid.UUID(one).int >> 80 for one in ids]
    assert stamps == sorted(stamps)


def test_unit_vectors_have_length_one_and_zero_stays_finite():
    assert np.linalg.norm(unit(np.array([3.0, 4.0]))) == pytest.approx(1)
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]
