"""A build on Ray: the bank of a local build, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mrad_indexer.build.build import BuildOptions, Built, build
from mrad_indexer.cli.common.tiles import shard_size
from mrad_indexer.cutting import extent_of
from mrad_indexer.datasets import read_dataset

from mrad import Encoder
from mrad.errors import EncoderMismatchError, ImageError
from mrad.images.layout import Layout
from mrad.images.tiles import Tiling

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mrad[ray]'")
from mrad_indexer.build.ray import RayEngine

OPTIONS = BuildOptions(batch_size=2, shard=4, patch_keys=2)
Load = Callable[[], Encoder]


def same(a: Built, b: Built) -> None:
    """Bit for bit, and in the same order."""
    for level in ("image", "patch"):
        one, other = getattr(a.bank, level), getattr(b.bank, level)
        for name in ("keys", "labels", "entry", "region", "size", "tile"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (level, name)
    assert [e.source for e in a.bank.entries] == [e.source for e in b.bank.entries]
    assert list(a.bank.thumbnails.values()) == list(b.bank.thumbnails.values())
    assert [item.source for item in a.skipped] == [item.source for item in b.skipped]


def test_killed_workers_lose_nothing_and_the_bank_is_that_of_a_local_build(
    ray_cluster: Any, images: Path, load: Load, pids: Path, tmp_path: Path
) -> None:
    encoder, dataset = load(), read_dataset(images)
    own, killed = os.getpid(), []

    def kill_the_first(done: int, skipped: int, old: bool) -> None:
        workers = {int(path.name) for path in pids.iterdir()} - {own}
        if not killed and workers:
            killed.append(min(workers))
            os.kill(killed[0], signal.SIGKILL)

    on_ray = build(
        encoder, dataset, tmp_path / "ray", OPTIONS, engine=RayEngine(load, workers=2),
        progress=kill_the_first,
    )  # fmt: skip
    assert killed
    assert on_ray.encoded == 41
    same(on_ray, build(encoder, dataset, tmp_path / "local", OPTIONS))


def test_tiles_are_the_unit_of_work(
    ray_cluster: Any, images: Path, load: Load, tmp_path: Path
) -> None:
    """A shard has so many pictures as have some 64 tiles; its batches are of tiles, whoever encodes it."""
    encoder, dataset = load(), read_dataset(images)
    layout = Layout(Tiling(32, 0.25))
    extent = extent_of(dataset, encoder.image_size)
    each = len(layout.places(extent.middle).tiles)
    size = shard_size(layout, extent)
    assert each > 1
    assert size * each <= 64 < (size + 1) * each
    options = replace(OPTIONS, layout=layout, shard=size, batch_size=5)
    on_ray = build(encoder, dataset, tmp_path / "ray", options, engine=RayEngine(load, workers=2))
    assert len(set(on_ray.bank.image.tile.tolist())) == each
    same(on_ray, build(encoder, dataset, tmp_path / "local", options))


class Stop(Exception):
    """The driver dies."""


@pytest.mark.nightly
def test_a_local_build_goes_on_where_a_build_on_ray_stopped(
    ray_cluster: Any, images: Path, load: Load, tmp_path: Path
) -> None:
    encoder, dataset = load(), read_dataset(images)
    seen = []

    def stop_at_the_third(done: int, skipped: int, old: bool) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        build(
            encoder, dataset, tmp_path / "bank", OPTIONS, engine=RayEngine(load, workers=1),
            progress=stop_at_the_third,
        )  # fmt: skip
    went_on = build(encoder, dataset, tmp_path / "bank", OPTIONS)
    assert went_on.resumed == sum(seen)
    same(went_on, build(encoder, dataset, tmp_path / "whole", OPTIONS))


@pytest.mark.nightly
def test_a_worker_says_what_a_local_build_would_say(
    ray_cluster: Any, images: Path, load: Load, tmp_path: Path
) -> None:
    strict = BuildOptions(batch_size=2, shard=4, strict=True)
    with pytest.raises(ImageError, match=r"broken\.png"):
        build(load(), read_dataset(images), tmp_path / "bank", strict, engine=RayEngine(load, 1))


@pytest.mark.nightly
def test_a_worker_with_other_weights_is_refused(
    ray_cluster: Any, images: Path, load: Load, tmp_path: Path, tiny_clip: Any
) -> None:
    other = Encoder.from_clip(tiny_clip, image_size=64, name="tiny", device="cpu")
    with pytest.raises(EncoderMismatchError, match="give every machine the same weights"):
        build(other, read_dataset(images), tmp_path / "bank", OPTIONS, engine=RayEngine(load, 1))


@pytest.mark.nightly
def test_the_command(ray_cluster: Any, images: Path, tmp_path: Path) -> None:
    """`mrad build --engine ray` on the shipped encoder: the local command's keys."""
    from mrad_indexer.cli.main import app
    from typer.testing import CliRunner

    from mrad import MemoryBank

    command = ["build", str(images), "--device", "cpu", "--out"]
    banks = {}
    for name, more in {"ray": ["--engine", "ray", "--workers", "2"], "local": []}.items():
        done = CliRunner().invoke(app, [*command, str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
        banks[name] = MemoryBank.load(tmp_path / name)
    assert np.array_equal(banks["ray"].patch.keys, banks["local"].patch.keys)
    assert np.array_equal(banks["ray"].image.keys, banks["local"].image.keys)
