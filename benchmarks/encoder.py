"""The encoder: seconds an image against the paper's loop, and where they go.

python -m benchmarks encoder [--quick]
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.geometry import Geometry, surface
from benchmarks.paper_loop import Memory, PaperLoop
from benchmarks.tables import Table, hardware, middle, paired, ratio, timed
from mrad import Encoder

PRECISIONS = ("fp32", "bf16")


def run(quick: bool) -> list[Table]:
    """All tables of the encoder on a CPU."""
    geometry = Geometry.tiny() if quick else Geometry.paper()
    return [
        against_the_loop(geometry, 1 if quick else 3),
        *(by_operation(geometry, precision) for precision in PRECISIONS),
    ]


def against_the_loop(geometry: Geometry, runs: int) -> Table:
    """Whole judgement of one image by the loop, encoding by ours, in turn."""
    memory = Memory.random(geometry.embed_dim, geometry.width, 2_162, 3_360)
    loop = PaperLoop(geometry.build().visual, geometry.size, memory)
    image = surface(640, 480)
    rows: list[list[Any]] = []
    ratios = {}
    for precision in PRECISIONS:
        encoder = geometry.encoder(precision)

        def ours(encoder: Encoder = encoder) -> None:
            encoder.encode([image])

        slow, fast = paired(lambda: loop(image), ours, runs)
        ratios[precision] = ratio(slow, fast)
        if not rows:
            rows.append(["the paper's loop", middle(slow), "1x", apart(_peak_of_loop, geometry)])
        peak = apart(_peak_of_encoder, geometry, precision)
        rows.append([f"mrad, {precision}", middle(fast), str(ratios[precision]), peak])
    return Table(
        f"{geometry.name} at {geometry.size} px, seeded weights, one image on the CPU",
        ["", "time an image (spread)", "against the loop, paired", "peak memory, MiB"],
        rows,
        [
            hardware(),
            "Peak memory is the whole process, libraries and both copies of the weights included.",
            "The loop judges the image (retrieval and map are below 2 % of it), mrad encodes it.",
        ],
        {f"encoder {name} against the paper's loop": value for name, value in ratios.items()},
    )


def _peak_of_loop(geometry: Geometry) -> None:
    memory = Memory.random(geometry.embed_dim, geometry.width, 2_162, 3_360)
    PaperLoop(geometry.build().visual, geometry.size, memory)(surface(640, 480))


def _peak_of_encoder(geometry: Geometry, precision: str) -> None:
    geometry.encoder(precision).encode([surface(640, 480)])


def apart(work: Callable[..., None], *arguments: Any) -> int:
    """Largest resident memory, MiB, of a process of its own that does the work once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # a child that dies is an error
        return pool.submit(_report, work, arguments).result()


def _report(work: Callable[..., None], arguments: tuple[Any, ...]) -> int:
    work(*arguments)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


OPERATIONS = {
    "mkldnn::_linear_pointwise": "projections and MLPs",
    "aten::mm": "attention's products",
    "aten::_softmax": "softmax",
    "aten::copy_": "rounding to bf16 and back, layouts",
    "aten::native_layer_norm": "layer norms",
}
LARGE = 4_096
ALL_PRODUCTS = "products: projections, MLPs, attention"
"""In float32 all of them are one operation."""


def products(geometry: Geometry) -> list[float]:
    """Operations in one image's projections and MLPs, and in its attention's products."""
    patches, width, blocks = (geometry.size // geometry.patch) ** 2, geometry.width, geometry.layers
    tokens = patches + 1
    each = 3 * tokens + 8 * tokens + tokens  # rows of width x width: q, k, v; MLP; output
    gained = (blocks - 1) * (patches + 1)  # the V-V path's output, and what all values share
    spared = 10 * tokens  # of the last block: q, the MLP and the output, but for the class token
    attended = (2 * blocks - 2) * tokens**2 * width
    return [2.0 * width**2 * (blocks * each + gained - spared), 4.0 * attended]


def by_operation(geometry: Geometry, precision: str) -> Table:
    """Where the time of one image goes, and how fast its products run."""
    encoder, pixels = geometry.encoder(precision), torch.randn(1, 3, geometry.size, geometry.size)
    encoder.encode_pixels(pixels)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        encoder.encode_pixels(pixels)
    times = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    named = {what: times.pop(name, 0.0) for name, what in OPERATIONS.items()}
    named["all else"] = sum(times.values())
    done = dict(zip(named, products(geometry)))
    if precision == "fp32":
        first, second = list(named)[:2]
        rest = {what: taken for what, taken in named.items() if what not in (first, second)}
        named = {ALL_PRODUCTS: named[first] + named[second], **rest}
        done = {ALL_PRODUCTS: sum(done.values())}
    whole = sum(named.values())
    rows = [
        [what, f"{taken / whole:.1%}", f"{done[what] / taken / 1e9:.0f}" if what in done else None]
        for what, taken in named.items()
    ]
    large = torch.randn(LARGE, LARGE).to(encoder.dtype)
    rate = 2 * LARGE**3 / median(timed(lambda: large @ large, 3)) / 1e9
    return Table(
        f"{geometry.name} at {geometry.size} px, {precision}: where an image's time goes",
        ["", "share", "GFLOP/s"],
        rows,
        [hardware(), f"One image under PyTorch's profiler. A product of {LARGE:,} x {LARGE:,} "
         f"matrices in {precision}: {rate:.0f} GFLOP/s."],
    )  # fmt: skip
