"""The encoder: seconds an image against the paper's loop, rate by batch and size, cost of bf16.

python -m benchmarks.encoder [--quick]
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.geometry import Geometry, surface
from benchmarks.paper_loop import Memory, PaperLoop
from benchmarks.tables import Table, hardware, main, middle, paired, ratio, timed
from mrad import Detector, Encoder, MemoryBank, Sample, models
from mrad.preprocess import load_image

NAME = "encoder"
PRECISIONS = ("fp32", "bf16")
DEMO = Path(__file__).parent.parent / "mrad" / "demo" / "deep_pcb"


def run(quick: bool) -> list[Table]:
    """All tables of the encoder on a CPU."""
    geometry = Geometry.tiny() if quick else Geometry.paper()
    tables = [against_the_loop(geometry, 1 if quick else 5), by_batch_and_size(geometry, quick)]
    if "mrad-mini" in models.shipped():
        tables.append(cost_of_bf16(quick))
    return tables


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


def by_batch_and_size(geometry: Geometry, quick: bool) -> Table:
    """Images a second in bf16 as batch and input grow."""
    rows = []
    step = geometry.patch
    sizes = [geometry.size // 2 // step * step, geometry.size]
    for size in sizes:
        encoder = Encoder.from_clip(geometry.build(), size, device="cpu", precision="bf16")
        for batch in (1, 2) if quick else (1, 2, 4, 8):
            pixels = torch.randn(batch, 3, size, size)
            times = timed(lambda p=pixels, e=encoder: e.encode_pixels(p), 1 if quick else 3)
            rows.append([size, encoder.grid**2, batch, batch / median(times)])
    return Table(
        f"{geometry.name}, bf16: rate by size and batch on the CPU",
        ["input px", "patches", "batch", "images a second"],
        rows,
        [hardware()],
    )


def demo_samples(part: str) -> list[Sample]:
    """The bundled DeepPCB images of `memory` or `query`."""
    found = []
    for kind in ("good", "defect"):
        for path in sorted((DEMO / part / kind).glob("*.*")):
            masks = list((DEMO / part / "masks").glob(f"{path.stem}*"))
            mask = masks[0] if kind == "defect" and masks else None
            found.append(Sample(path, kind == "defect", mask))
    return found


def cost_of_bf16(quick: bool) -> Table:
    """Maps and scores of the bundled images in bf16 against float32, one float32 memory."""
    exact = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    half = Encoder.load("mrad-mini", device="cpu", precision="bf16")
    memory, queries = demo_samples("memory"), demo_samples("query")
    bank = MemoryBank.from_samples(exact, memory[:4] + memory[-4:] if quick else memory)
    images = [load_image(sample.image) for sample in queries]
    found = [Detector(encoder, bank).predict(images) for encoder in (exact, half)]
    ranks = [
        float(spearmanr(one.anomaly_map.ravel()[::7], other.anomaly_map.ravel()[::7])[0])
        for one, other in zip(*found)
        if one.anomaly_map is not None and other.anomaly_map is not None
    ]
    labels = [sample.anomalous for sample in queries]
    area = [100 * float(roc_auc_score(labels, [p.score for p in part])) for part in found]
    slow, fast = paired(
        lambda: exact.encode(images[:1]), lambda: half.encode(images[:1]), 1 if quick else 7
    )
    return Table(
        "mrad-mini: what bf16 changes, on the bundled DeepPCB images",
        ["", "fp32", "bf16"],
        [
            ["time an image", middle(slow), middle(fast)],
            ["Spearman of the maps, smallest of all images", 1.0, f"{min(ranks):.5f}"],
            ["image AUROC, percent", f"{area[0]:.2f}", f"{area[1]:.2f}"],
        ],
        [
            hardware(),
            f"{len(queries)} queries, {len(bank.entries)} images in the memory, built in float32.",
            "int8 is not offered: its effect on AUROC, and on the paper's encoder, is not measured.",
        ],
        {"mrad-mini bf16 against fp32": ratio(slow, fast)},
    )


if __name__ == "__main__":
    main(run)
