"""The GPU path: all of it that a CPU can check, and the rest where there is a GPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mrad import Detector, Encoder
from mrad.encoder.cuda import Graphs, bucket_of, compile_blocks
from mrad.images.preprocess import Preprocess
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.nearest import by_blocks, nearest, resources_of
from tests.mrad.plain import build_clip

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def recorder(made: list[int]):
    """Stands in for CUDA's recording: a run with one fixed place for its input."""

    def record(run, pixels: Tensor):
        held = torch.zeros_like(pixels)
        made.append(len(held))

        def replay(batch: Tensor):
            held[: len(batch)].copy_(batch)
            return tuple(out[: len(batch)].clone() for out in run(held))

        return replay

    return record


def test_buckets_are_powers_of_two():
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 64, 128]


def test_every_bucket_is_recorded_once_and_a_batch_never_sees_the_one_before(tiny_encoder: Encoder):
    made: list[int] = []
    graphs = Graphs(tiny_encoder.tower, recorder(made))
    with torch.inference_mode():
        for batch in (3, 1, 4, 2, 3, 70):
            pixels = torch.randn(batch, 3, 96, 96)
            for found, wanted in zip(graphs(pixels), tiny_encoder.tower(pixels)):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert made == [4, 1, 2]  # 70 is too large to be recorded


def test_what_cannot_be_recorded_runs_as_it_is_and_the_log_says_why(tiny_encoder, caplog):
    def refuse(run, pixels):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(tiny_encoder.tower, refuse)
    pixels = torch.randn(3, 3, 96, 96)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for _ in range(2):
            for found, wanted in zip(graphs(pixels), tiny_encoder.tower(pixels)):
                assert torch.equal(found, wanted)
    (line,) = caplog.messages  # once, not for every batch
    assert "batches of 4 run without a CUDA graph: operation not permitted" in line


def test_out_of_memory_while_recording_is_the_callers_to_answer(tiny_encoder):
    def full(run, pixels):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        Graphs(tiny_encoder.tower, full)(torch.randn(1, 3, 96, 96))


def test_one_compilation_serves_every_block_and_changes_no_number():
    clip = build_clip(layers=6)
    plain = Encoder.from_clip(clip, device="cpu")
    other = Encoder.from_clip(clip, device="cpu")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(other.tower, backend="eager")
    pixels = torch.randn(2, 3, 64, 64)
    found, wanted = other.encode_pixels(pixels), plain.encode_pixels(pixels)
    torch.testing.assert_close(found.patch, wanted.patch)
    torch.testing.assert_close(found.class_feature, wanted.class_feature)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("d", [8, 33])
def test_nearest_keys_in_blocks_are_faisss(d: int):
    rng = np.random.default_rng(0)
    keys, asked = (torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32)) for n in (50, 7))
    retriever = ExactRetriever(keys, np.zeros(50, np.uint8))
    for k in (1, 9, 50):
        wanted, rows = retriever.nearest(asked, k)
        for found, places in (by_blocks(asked, keys, k, block=11), nearest(asked, keys, k)):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(places.numpy(), rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_faiss_without_gpus_says_so(caplog):
    resources_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resources_of(torch.device("cuda:0")) is None
    assert "faiss-gpu-cu12" in caplog.text


def images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (60 + 9 * i, 90, 3), dtype=np.uint8))
        for i in range(count)
    ]


@ON_GPU
def test_a_gpu_gives_the_cpus_features_through_uploads_and_graphs(tiny_clip):
    cpu = Encoder.from_clip(tiny_clip, 96, device="cpu").encode(images(5))
    encoder = Encoder.from_clip(tiny_clip, 96, device="cuda")
    for _ in range(3):
        gpu = encoder.encode(images(5)).to("cpu")
        torch.testing.assert_close(gpu.patch, cpu.patch, rtol=1e-2, atol=2e-2)
        cosine = torch.nn.functional.cosine_similarity(gpu.patch, cpu.patch, dim=-1)
        assert float(cosine.min()) > 0.999


@ON_GPU
def test_a_gpu_resizes_as_pillow_does():
    preprocess = Preprocess(96)
    for image in images(3):
        raw = torch.from_numpy(np.array(image)).permute(2, 0, 1).cuda()
        levels = (preprocess.resize(raw).cpu() - preprocess(image)).abs() * 255 * 0.2759
        assert float(levels.max()) < 2.01


@ON_GPU
def test_a_gpu_finds_the_cpus_neighbours_and_probabilities(tiny_clip, tiny_bank):
    cpu = Detector(Encoder.from_clip(tiny_clip, 96, name="tiny", device="cpu"), tiny_bank)
    gpu = Detector(Encoder.from_clip(tiny_clip, 96, name="tiny", device="cuda"), tiny_bank)
    for one, other in zip(*(d.predict(images(3), evidence=2) for d in (cpu, gpu))):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert [e.entry_id for e in one.evidence] == [e.entry_id for e in other.evidence]
