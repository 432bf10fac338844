"""Which device, how exact its products are, one path to pixels, and processes that were forked."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mrad_indexer.training.cache import FeatureCache

from mrad import MemoryBank, Sample
from mrad.encoder import device as module
from mrad.encoder.device import Owner, exact_float32, resolve_device
from mrad.errors import ForkedProcessError

NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
PARTS = (
    (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn) if NEW else ()
)


@pytest.fixture(params=["older", "newer"] if NEW else ["older"])
def tf32(request):
    """TF32 as an application may have asked for it, by either of PyTorch's two sets of switches."""
    before = [part.fp32_precision for part in PARTS] if NEW else []
    if request.param == "older":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        for part in PARTS:
            part.fp32_precision = "tf32"
    yield
    for part, value in zip(PARTS, before):
        part.fp32_precision = value


def switches() -> set[bool]:
    """Every answer that PyTorch gives to whether TF32 is on."""
    told = {part.fp32_precision == "tf32" for part in PARTS} if NEW else set()
    if NEW and told != {False}:
        return told  # set by the newer switches, the older ones do not answer
    return told | {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}


@pytest.fixture
def card(monkeypatch):
    """PyTorch says that there is a card; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(module.torch, "empty", lambda *shape, device: SimpleNamespace())


@pytest.mark.usefixtures("tf32", "card")
@pytest.mark.parametrize(
    ("asked", "found"), [("auto", "cuda:0"), ("cuda", "cuda:1"), ("cuda:1", "cuda:1")]
)
def test_a_card_has_an_index_and_computes_float32_exactly(asked, found):
    assert switches() == {True}
    assert resolve_device(asked) == torch.device(found)
    assert switches() == {False}


@pytest.mark.usefixtures("tf32")
def test_a_cpu_leaves_the_application_s_choice_alone():
    assert resolve_device("cpu") == torch.device("cpu")
    assert switches() == {True}


@pytest.mark.usefixtures("tf32")
def test_only_a_benchmark_turns_it_on_and_what_overrides_it_is_told(monkeypatch, caplog):
    exact_float32(False)
    assert switches() == {True}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with caplog.at_level(logging.WARNING):
        exact_float32()
    assert "forces TF32" in caplog.text


@pytest.fixture
def marked(tiny_encoder):
    """An encoder whose images are made elsewhere than by Pillow, as a card makes them: black ones."""
    encoder = copy.copy(tiny_encoder)
    encoder.uploads = lambda image: encoder.preprocess(image.point(lambda level: 0))
    return encoder


def test_a_memory_is_built_by_the_path_that_serves(marked, tiny_samples):
    """On a card both resize there; a bank of another path's pixels would be off by two levels."""
    bank = MemoryBank.from_samples(marked, tiny_samples)
    seen = marked.encode([sample.image for sample in tiny_samples])
    wanted = torch.nn.functional.normalize(seen.class_feature, dim=-1)
    torch.testing.assert_close(torch.from_numpy(bank.image.keys), wanted, rtol=0, atol=1e-5)


def test_training_reads_by_the_path_that_serves(marked, tiny_samples, tmp_path):
    paths = [tmp_path / f"{row}.png" for row in range(2)]
    for path, sample in zip(paths, tiny_samples):
        sample.image.save(path)
    features = FeatureCache(tmp_path / "cache", marked).features(paths)
    wanted = marked.encode(paths).class_feature
    torch.testing.assert_close(features.batch([0, 1]).class_feature, wanted, rtol=0, atol=1e-5)


FORKED = """
import multiprocessing, sys
from PIL import Image
from mrad import Detector, Encoder, MemoryBank, Sample
from tests.conftest import build_tiny_clip, draw_image

def ask(detector, image, step):
    try:
        features = detector.encoder.encode([image]) if step == "encode" else None
        decoded = detector.decode(image) if step == "decode" else None
        detector.finish(kept, [image.size], evidence=1) if step == "finish" else None
        detector.with_bank(detector.bank) if step == "follow" else None
        Detector(detector.encoder, detector.bank, head) if step == "attach" else None
    except Exception as error:
        print(type(error).__name__, error, flush=True)

encoder = Encoder.from_clip(build_tiny_clip(), 96, device="cpu")
samples = []
for seed in range(4):
    image, mask = draw_image(seed, defect=seed % 2 == 0)
    samples.append(Sample(image, mask is not None, mask))
bank = MemoryBank.from_samples(encoder, samples)
for head in ("tf", "nn"):
    detector = Detector(encoder, bank, head)
    detector.predict([image], evidence=2)
    kept = encoder.encode([image])
    for step in ("decode", "encode", "finish", "follow", "attach"):
        child = multiprocessing.get_context("fork").Process(target=ask, args=(detector, image, step))
        child.start()
        child.join(30)
        if child.exitcode is None:
            print("hangs in", step, flush=True)
            child.kill()
"""


def test_a_child_that_was_forked_from_a_loaded_detector_is_told_and_does_not_hang(pytestconfig):
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=pytestconfig.rootpath,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    for line in lines:
        assert line.startswith("ForkedProcessError")
        assert "spawn" in line


def test_what_was_unpickled_belongs_to_the_process_that_did_it(monkeypatch):
    owner = Owner()
    sent = pickle.dumps(owner)
    monkeypatch.setattr(module.os, "getpid", lambda: 1)
    with pytest.raises(ForkedProcessError):
        owner.check()
    pickle.loads(sent).check()


def test_samples_of_the_tiny_set_differ_between_the_paths(marked, tiny_encoder, tiny_samples):
    """The two tests above can fail: what Pillow makes is something else."""
    one, other = (
        MemoryBank.from_samples(encoder, [Sample(tiny_samples[0].image, False)]).image.keys
        for encoder in (marked, tiny_encoder)
    )
    assert abs(one - other).max() > 1e-2


@pytest.mark.parametrize(
    "told", [None, "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"]
)
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(monkeypatch, told):
    asked: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *pair: asked.append(pair))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    for name in list(os.environ):
        if name.startswith(("MALLOC_", "GLIBC_")):
            monkeypatch.delenv(name)
    if told:
        monkeypatch.setenv(told, "1")
    module.keep_freed_memory.cache_clear()
    for _ in range(2):
        module.resolve_device("cpu")
    module.keep_freed_memory.cache_clear()
    trim, mmap = (module.TRIM_THRESHOLD, module.KEPT), (module.MMAP_THRESHOLD, module.SINGLE)
    assert asked == ([] if told else [trim, mmap, (module.ARENA_MAX, os.cpu_count())])


def test_without_glibc_memory_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: SimpleNamespace())
    module.keep_freed_memory.cache_clear()
    assert module.resolve_device("cpu").type == "cpu"
    module.keep_freed_memory.cache_clear()
