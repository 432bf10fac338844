"""Recordings: when they are made, when they are believed, and how CUDA's own functions are called."""

from __future__ import annotations

import ast
import inspect
import logging
import threading

import pytest
import torch
from torch import Tensor

from mrad import Encoder
from mrad.encoder import cuda
from mrad.encoder.cuda import Graphs, bucket_of, buckets, compile_blocks
from tests.mrad.plain import build_clip


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
    assert [buckets(n) for n in (1, 2, 3, 8, 24)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 16, 24],
    ]  # fmt: skip
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


def stale(run, pixels: Tensor):
    """What an empty graph replays: whatever its outputs held when it was made, for every input."""
    outputs = run(torch.zeros_like(pixels))
    return lambda batch: tuple(out[: len(batch)].clone() for out in outputs)


def shuffled(run, pixels: Tensor):
    """A replay whose rows are not the batch's."""
    return lambda batch: tuple(out.flip(0) for out in run(batch))


@pytest.mark.parametrize(("wrong", "batch"), [(stale, 1), (stale, 4), (shuffled, 2)])
def test_a_replay_that_is_not_the_tower_s_result_is_never_used(tiny_encoder, caplog, wrong, batch):
    graphs = Graphs(tiny_encoder.tower, wrong)
    pixels = torch.randn(batch, 3, 96, 96)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for found, wanted in zip(graphs(pixels), tiny_encoder.tower(pixels)):
            assert torch.equal(found, wanted)
    assert "its replay is not what the tower computes" in caplog.text


def test_nan_in_a_replay_is_not_agreement(tiny_encoder, caplog):
    def broken(run, pixels: Tensor):
        return lambda batch: tuple(torch.full_like(out, torch.nan) for out in run(batch))

    with caplog.at_level(logging.WARNING), torch.inference_mode():
        found, _ = Graphs(tiny_encoder.tower, broken)(torch.randn(2, 3, 96, 96))
    assert torch.isfinite(found).all()


def test_threads_get_their_own_images_features(tiny_encoder):
    graphs, wrong = Graphs(tiny_encoder.tower, recorder([])), []

    def ask(seed: int) -> None:
        pixels = torch.randn(1 + seed % 3, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            found, wanted = graphs(pixels)[1], tiny_encoder.tower(pixels)[1]
        wrong.append(float((found - wanted).abs().max()))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 6
    assert max(wrong) < 1e-4


def calls(function: str) -> list[ast.Call]:
    """Where `mrad/encoder/cuda.py` calls a function."""
    tree = ast.parse(inspect.getsource(cuda))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node for node in nodes if ast.unparse(node.func) == function]


def test_cuda_s_functions_are_called_as_this_pytorch_wants_and_never_without_a_device():
    """Left to themselves they take the current device and a stream of their own choice."""
    (recording,) = calls("torch.cuda.graph")
    names = {keyword.arg: ast.unparse(keyword.value) for keyword in recording.keywords}
    assert names["stream"] == "lane.stream"
    assert names["pool"] == "lane.pool"
    inspect.signature(torch.cuda.graph.__init__).bind(None, "graph", **names)
    for function in ("torch.cuda.Stream", "torch.cuda.current_stream", "torch.cuda.device"):
        found = calls(function)
        assert found
        for call in found:
            assert [ast.unparse(a) for a in call.args] in (["device"], ["lane.device"]), function
    assert not calls("torch.cuda.synchronize")
    assert not calls("torch.cuda.default_stream")
