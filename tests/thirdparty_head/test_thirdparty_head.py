"""Somebody else's head: a distribution of its own, installed by an installer, found by its entry point."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from mrad import Detector
from mrad.errors import HeadError
from mrad.heads import available_heads, load_head

HERE = Path(__file__).parent
SOURCES = ("pyproject.toml", "mrad_head_knn.py")


def installer() -> list[str]:
    """pip, or uv where the environment has no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("neither pip nor uv is here")
    return [uv, "pip", "install", "--python", sys.executable]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the distribution into; no network is asked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        shutil.copy(HERE / name, source)
    command = [*installer(), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def plugged(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))


def test_it_is_unknown_until_it_is_installed(tiny_encoder):
    with pytest.raises(HeadError, match=r"no head 'knn'; installed: .*tf"):
        load_head("knn", tiny_encoder)


@pytest.mark.usefixtures("plugged")
def test_it_is_found_and_judges(tiny_encoder, tiny_bank, tiny_samples):
    assert distribution("mrad-head-knn").version == "1.0"
    assert available_heads()["knn"] == "mrad_head_knn:KNNHead"
    detector = Detector(tiny_encoder, tiny_bank, "knn")
    predictions = detector.predict([sample.image for sample in tiny_samples], evidence=2)
    assert predictions[0].anomaly_map.shape == (64, 80)
    features = tiny_encoder.encode([sample.image for sample in tiny_samples])
    alone = load_head("knn", tiny_encoder, config={"k": 1})
    alone.attach(tiny_bank)
    assert alone(features).image.tolist() == [1, 0, 1, 0, 1, 0]  # each finds itself


@pytest.mark.usefixtures("plugged")
def test_its_vote_is_the_formula(tiny_encoder, tiny_bank, make_image):
    head = load_head("knn", tiny_encoder, config={"k": 3, "temperature": 0.1})
    head.attach(tiny_bank)
    features = tiny_encoder.encode([make_image(50, defect=True)[0]])
    scores = (features.class_query().numpy() @ tiny_bank.image.keys.T)[0]
    best = np.argsort(-scores)[:3]
    weights = np.exp(scores[best] / 0.1)
    wanted = weights @ tiny_bank.image.labels[best] / weights.sum()
    assert float(head(features).image[0]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.usefixtures("plugged")
def test_its_config_is_checked(tiny_encoder):
    with pytest.raises(HeadError, match="greater than or equal to 1"):
        load_head("knn", tiny_encoder, config={"k": 0})
