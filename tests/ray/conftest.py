"""A local Ray cluster, a small dataset, and an encoder that a worker can make for itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mrad import Encoder

for name in ("READY", "HEALTH"):  # generous, for loaded machines
    os.environ[f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S"] = "120"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray starts workers at niceness 15: beside other tests they would hardly run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name


def load_tiny(pids: str) -> Encoder:
    """The tiny CLIP at 96 px; leaves this process's id in the folder `pids`."""
    import os
    from pathlib import Path

    import open_clip
    import torch

    from mrad import Encoder

    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16}
    clip = open_clip.model.CLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(width=32, heads=2, layers=4),
    )
    (Path(pids) / str(os.getpid())).touch()
    return Encoder.from_clip(clip, image_size=96, name="tiny", device="cpu")


# Workers cannot import this module, so the function travels whole.
load_tiny.__module__ = "__main__"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Ray with two workers' worth of CPUs, on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """Where workers leave their process ids."""
    folder = tmp_path / "pids"
    folder.mkdir()
    return folder


@pytest.fixture
def load(pids: Path) -> Callable[[], Encoder]:
    """Makes the tiny encoder, here or in a worker."""
    return partial(load_tiny, str(pids))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, make_image: Any) -> Path:
    """`good/`, `defect/` and `masks/` with 40 images, and one that is broken."""
    root = tmp_path_factory.mktemp("images")
    for name in ("good", "defect", "masks"):
        (root / name).mkdir()
    for seed in range(40):
        image, mask = make_image(seed, defect=seed % 2 == 0)
        image.save(root / ("defect" if mask else "good") / f"{seed:02}.png")
        if mask:
            mask.save(root / "masks" / f"{seed:02}.png")
    (root / "good" / "broken.png").write_bytes(b"not an image")
    return root
