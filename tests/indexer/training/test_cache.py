"""Features are computed once, survive a cut-off run, and belong to one encoder."""

from __future__ import annotations

import json

import pytest
import torch
from mrad_indexer.training.cache import FeatureCache

from mrad import Encoder
from mrad.errors import DataError, ImageError


@pytest.fixture
def paths(records):
    return [record.image for record in records]


def count_encodes(encoder, monkeypatch) -> list[int]:
    """How many images each call of the encoder saw."""
    seen: list[int] = []
    own = encoder.encode_pixels
    monkeypatch.setattr(
        encoder,
        "encode_pixels",
        lambda pixels, **options: seen.append(len(pixels)) or own(pixels, **options),
    )
    return seen


def test_equals_the_encoder(tmp_path, tiny_encoder, paths):
    cached = FeatureCache(tmp_path, tiny_encoder, shard=5).features(paths, batch_size=4)
    wanted = tiny_encoder.encode(paths)
    rows = [7, 0, 11]
    found = cached.batch(rows)
    assert torch.allclose(found.class_feature, wanted.class_feature[rows], atol=1e-5)
    assert found.patch.dtype == torch.float32
    error = (found.patch - wanted.patch[rows]).abs() / wanted.patch[rows].abs().clamp_min(1e-2)
    assert error.max() < 2e-3
    assert cached.sizes[3] == (80, 64)


def test_the_second_run_encodes_nothing(tmp_path, tiny_encoder, paths, monkeypatch):
    cache = FeatureCache(tmp_path, tiny_encoder)
    first = cache.features(paths)
    seen = count_encodes(tiny_encoder, monkeypatch)
    second = FeatureCache(tmp_path, tiny_encoder).features(paths[::-1])
    assert (first.encoded, second.encoded, seen) == (12, 0, [])
    assert torch.equal(second.batch([0]).patch, first.batch([11]).patch)
    assert second.encode_seconds == pytest.approx(first.encode_seconds)


def test_a_cut_off_run_resumes(tmp_path, tiny_encoder, paths, monkeypatch):
    cache = FeatureCache(tmp_path, tiny_encoder, shard=4)

    def stop(done: int, of: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.features(paths, batch_size=2, progress=stop)
    seen = count_encodes(tiny_encoder, monkeypatch)
    assert cache.features(paths, batch_size=2).encoded == 4
    assert sum(seen) == 4


def test_an_image_is_known_by_its_content(tmp_path, tiny_encoder, paths):
    cache = FeatureCache(tmp_path / "cache", tiny_encoder)
    cache.features(paths[:3])
    moved, changed = tmp_path / "moved.png", tmp_path / "changed.png"
    moved.write_bytes(paths[1].read_bytes())
    changed.write_bytes(paths[4].read_bytes())
    assert cache.features([moved]).encoded == 0
    assert cache.features([changed, changed, moved]).encoded == 1


def test_another_encoder_or_size_shares_nothing(tmp_path, tiny_clip, tiny_encoder, paths):
    FeatureCache(tmp_path, tiny_encoder).features(paths[:2])
    other = Encoder.from_clip(tiny_clip, 64, name="tiny", device="cpu")
    assert FeatureCache(tmp_path, other).features(paths[:2]).encoded == 2


def test_patches_stay_on_disk_in_half_precision(tmp_path, tiny_encoder, paths):
    cached = FeatureCache(tmp_path, tiny_encoder, shard=5).features(paths)
    assert len(cached.patches) == 3
    assert all(part.dtype == "float16" and part.filename for part in cached.patches)
    sizes = [len(json.loads(m.read_text())["digests"]) for m in tmp_path.rglob("shard.json")]
    assert sorted(sizes) == [2, 5, 5]


def test_a_broken_image_leaves_no_half_shard(tmp_path, tiny_encoder, paths):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    cache = FeatureCache(tmp_path / "cache", tiny_encoder)
    with pytest.raises(ImageError):
        cache.features([*paths[:2], broken])
    assert not list((tmp_path / "cache").rglob("*.npy"))
    with pytest.raises(DataError):
        cache.features([])
