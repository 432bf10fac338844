"""What needs a card: skipped where there is none. What was run where: docs/gpu-host.md."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from mrad import Detector, Encoder
from mrad.encoder.cuda import Graphs
from mrad.images.preprocess import Preprocess
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.nearest import by_blocks, nearest, resources_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SECOND = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU here")


def images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (60 + 9 * i, 90, 3), dtype=np.uint8))
        for i in range(count)
    ]


def test_a_gpu_gives_the_cpus_features_through_uploads_and_graphs(tiny_clip):
    cpu = Encoder.from_clip(tiny_clip, 96, device="cpu").encode(images(5))
    encoder = Encoder.from_clip(tiny_clip, 96, device="cuda")
    for _ in range(3):
        patch = encoder.encode(images(5)).patch.cpu()
        torch.testing.assert_close(patch, cpu.patch, rtol=1e-2, atol=2e-2)
        cosine = torch.nn.functional.cosine_similarity(patch, cpu.patch, dim=-1)
        assert float(cosine.min()) > 0.999


def test_a_gpu_gives_the_cpus_plain_tokens(tiny_clip):
    towers = (
        Encoder.from_clip(tiny_clip, 96, name="tiny:plain", device=d) for d in ("cpu", "cuda")
    )
    cpu, gpu = (tower.encode(images(5)) for tower in towers)
    torch.testing.assert_close(gpu.patch.cpu(), cpu.patch, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(gpu.class_feature.cpu(), cpu.class_feature, rtol=1e-2, atol=2e-2)


def test_a_gpu_resizes_as_pillow_does():
    preprocess = Preprocess(96)
    for image in images(3):
        raw = torch.from_numpy(np.array(image)).permute(2, 0, 1).cuda()
        levels = (preprocess.resize(raw).cpu() - preprocess(image)).abs() * 255 * 0.2759
        assert float(levels.max()) < 2.01


@pytest.mark.parametrize("head", ["tf", "nn", "combined"])
def test_a_gpu_finds_the_cpus_neighbours_and_probabilities(tiny_clip, tiny_bank, head):
    encoders = (Encoder.from_clip(tiny_clip, 96, name="tiny", device=d) for d in ("cpu", "cuda"))
    cpu, gpu = (Detector(encoder, tiny_bank, head) for encoder in encoders)
    for one, other in zip(*(d.predict(images(3), evidence=2) for d in (cpu, gpu))):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert [e.entry_id for e in one.evidence] == [e.entry_id for e in other.evidence]


@pytest.mark.parametrize("device", ["cuda:0", pytest.param("cuda:1", marks=SECOND)])
def test_recordings_give_what_the_tower_gives_on_any_card_whichever_is_current(tiny_clip, device):
    torch.cuda.set_device(0)
    encoder = Encoder.from_clip(tiny_clip, 96, device=device)
    assert isinstance(encoder.run, Graphs)
    with torch.inference_mode():
        for batch in (3, 1, 4, 2, 8, 3):
            pixels = torch.randn(batch, 3, 96, 96, device=device)
            for found, wanted in zip(encoder.run(pixels), encoder.tower(pixels)):
                assert found.device == torch.device(device)
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert all(run is not encoder.tower for run in encoder.run._recorded.values())


def test_two_encoders_and_many_threads_share_a_card_s_recordings(tiny_clip):
    encoders = [Encoder.from_clip(tiny_clip, size, device="cuda") for size in (96, 64)]
    wrong: list[float] = []

    def ask(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        for turn in range(50):
            encoder = encoders[(seed + turn) % 2]
            side = encoder.image_size
            pixels = torch.randn(1 + turn % 4, 3, side, side, device="cuda", generator=generator)
            with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                found, wanted = encoder.run(pixels)[1], encoder.tower(pixels)[1]
                wrong.append(float((found - wanted).abs().max() / wanted.abs().max()))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 200
    assert max(wrong) < 1e-2


def test_faiss_searches_on_this_card_and_finds_what_blocks_find():
    assert resources_of(torch.device("cuda", 0)) is not None
    rng = np.random.default_rng(0)
    keys, asked = (
        torch.from_numpy(rng.normal(size=(n, 64)).astype(np.float32)).cuda() for n in (5000, 9)
    )
    for k in (1, 9, 2048):
        for one, other in zip(nearest(asked, keys, k), by_blocks(asked, keys, k)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    retriever = ExactRetriever(keys, np.zeros(5000, np.uint8), device="cuda")
    assert retriever.nearest(asked, 3)[1].shape == (9, 3)
