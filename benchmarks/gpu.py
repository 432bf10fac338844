"""The GPU: the same numbers as the CPU, images a second, share of the card's GEMM rate, the server.

    python -m benchmarks.gpu [--quick]

One script for wherever a GPU is at hand. It stops where the GPU's numbers are not the CPU's. Without
a GPU it says so and runs nothing, but for `--quick`, which then walks every step on the CPU.
"""

from __future__ import annotations

import os
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import service
from benchmarks.geometry import Geometry, surface
from benchmarks.load import drive
from benchmarks.tables import Table, hardware, main, middle, paired, ratio, timed
from mrad.encoder.encoder import Encoder
from mrad.images.preprocess import Preprocess
from mrad.maps import anomaly_map
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.nearest import resources_of

NAME = "gpu"
BOUND = 1e-3
"""Largest difference between CPU and GPU, float32, as a share of each quantity's range."""
LEVELS = 2.01 / 255
"""The same for pixels: whole levels, see `Preprocess.resize`."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def run(quick: bool) -> list[Table]:
    """Raises `SystemExit` when the GPU's numbers are not the CPU's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not quick:
        note = f"{hardware()}. No GPU here: nothing was run, there is no figure to show."
        return [Table("GPU", ["not run"], [["no GPU"]], [note])]
    torch.backends.cuda.matmul.allow_tf32 = False
    geometry = Geometry.tiny() if quick else Geometry.paper()
    return [
        same_numbers(geometry, device),
        launches(geometry, device, quick),
        by_batch(geometry, device, quick),
        retrieval(geometry, device, quick),
        server(device, quick),
    ]


def same_numbers(geometry: Geometry, device: str) -> Table:
    """Every step from image to map on both devices, float32."""
    image, keys = surface(640, 480), unit(5_000, geometry.width)
    labels = (np.arange(len(keys)) % 2).astype(np.uint8)

    def steps(on: str) -> dict[str, Tensor]:
        encoder = geometry.encoder("fp32", on)
        pixels = encoder.prepare(image)
        features = encoder.encode_pixels(torch.stack([pixels, pixels.flip(-1)]))
        memory = ExactRetriever(keys, labels, device=on)
        queries = features.patch_query().flatten(0, 1)
        cells = memory.probability(queries).view(2, -1)
        similarity, _ = memory.nearest(queries, 5)
        return {
            "pixels": pixels,
            "class feature": features.class_feature,
            "patch features": features.patch,
            "patch probabilities": cells,
            "similarity of the 5 nearest": torch.from_numpy(similarity),
            "map": anomaly_map(cells, geometry.size),
        }

    rows = []
    here, there = steps("cpu"), steps(device)
    for name, one in here.items():
        share = float((one - there[name].cpu()).abs().max() / (one.max() - one.min()))
        bound = LEVELS if name == "pixels" else BOUND
        if not share <= bound:
            raise SystemExit(f"{name} on the GPU: off by {share:.1e} of its range, over {bound}")
        rows.append([name, share, bound])
    columns = ["", "largest difference, share of the range", "bound"]
    return Table(f"CPU = {device}, float32", columns, rows, [hardware()])


def unit(count: int, width: int) -> Tensor:
    """Seeded unit vectors [count, width]."""
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1)


def launches(geometry: Geometry, device: str, quick: bool) -> Table:
    """One image and eight: launched kernel by kernel, replayed from a graph, compiled."""
    encoder, runs = geometry.encoder("bf16", device), 2 if quick else 20
    kinds = {"CUDA graph" if device == "cuda" else "the same": encoder}
    if device == "cuda":
        kinds["compiled, CUDA graph"] = geometry.encoder("bf16", device, compiled=True)
    rows: list[list[str | int]] = []
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, geometry.size, geometry.size, device=device)
        for name, other in kinds.items():

            def plain(pixels: Tensor = pixels) -> None:
                with torch.inference_mode():
                    encoder.tower(pixels)

            def ours(pixels: Tensor = pixels, other: Encoder = other) -> None:
                with torch.inference_mode():
                    other.run(pixels)

            slow, fast = paired(plain, ours, runs)
            rows.append([batch, name, middle(slow), middle(fast), str(ratio(slow, fast))])
    columns = ["batch", "", "kernel by kernel", "time", "ratio, paired"]
    return Table("The tower's launches, bf16", columns, rows, [hardware()])


def gemm_rate(device: str, quick: bool) -> float:
    """Operations a second of a large bf16 product: what this card really gives."""
    side = 512 if quick else 8_192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median(timed(lambda: a @ b, 3 if quick else 20))


def operations(geometry: Geometry) -> float:
    """Multiply-adds, times two, of one image through what the encoder computes."""
    cells = (geometry.size // geometry.patch) ** 2
    tokens, width = cells + 1, geometry.width
    projections = 24 * tokens * width**2  # qkv 6, out 2, MLP 16
    attention = 4 * tokens**2 * width
    gained = 2 * cells * width**2 + 4 * cells * tokens * width  # V-V: out and attention
    last = tokens * width**2 * 4 + gained  # keys and values for all, the rest for one token
    blocks = geometry.layers
    return (blocks - 1) * (projections + attention) + (blocks - 2) * gained + last


def by_batch(geometry: Geometry, device: str, quick: bool) -> Table:
    """bf16: the encoder alone on pixels from pinned memory, and from decoded images."""
    encoder, rate = geometry.encoder("bf16", device), gemm_rate(device, quick)
    preprocess, image, rows = Preprocess(geometry.size), surface(640, 480), []
    for batch in (1, 2) if quick else BATCHES:
        pixels = torch.stack([preprocess(image)] * batch)
        pixels = pixels.pin_memory() if device == "cuda" else pixels
        times = timed(lambda p=pixels: encoder.encode_pixels(p), 3 if quick else 10)
        whole = timed(lambda n=batch: encoder.encode([image] * n), 3 if quick else 10)
        images = batch / median(times)
        share = 100 * images * operations(geometry) / rate
        rows.append([batch, middle(times), images, share, batch / median(whole)])
    columns = ["batch", "time", "images a second", "percent of the GEMM rate", "from images, one thread"]  # fmt: skip
    notes = [
        hardware(),
        f"The measured bf16 GEMM rate: {rate / 1e12:.3g} TFLOP/s; an image takes "
        f"{operations(geometry) / 1e12:.3g} TFLOP.",
        "From images: one thread uploads and the device resizes, one image after the other.",
    ]
    return Table(f"{geometry.name} at {geometry.size} px, bf16, {device}", columns, rows, notes)


def retrieval(geometry: Geometry, device: str, quick: bool) -> Table:
    """Exact retrieval of one image's patches: probabilities, and the ten nearest keys."""
    rows, grid = [], geometry.size // geometry.patch
    queries = unit(grid**2, geometry.width).to(device)
    for count in SIZES[:1] if quick else SIZES:
        labels = (np.arange(count) % 2).astype(np.uint8)
        retriever = ExactRetriever(unit(count, geometry.width), labels, device=device)
        asked = timed(lambda r=retriever: r.probability(queries), 5)
        found = timed(lambda r=retriever: r.nearest(queries, 10), 5)
        rows.append([count, middle(asked), middle(found)])
    where = torch.device(device, 0) if device == "cuda" else None
    by = "FAISS on the GPU" if where and resources_of(where) is not None else "no FAISS on a GPU"
    columns = ["keys", "probabilities of one image's patches", "their 10 nearest keys"]
    return Table(f"Exact retrieval, {device}", columns, rows, [hardware(), f"Neighbours: {by}."])


def server(device: str, quick: bool) -> Table:
    """Rate and latency through HTTP, JPEGs in, scores out."""
    images, rows = 16 if quick else 1_024, []
    before = {name: os.environ.get(name) for name in ("MRAD_BENCH_DEVICE", "MRAD_BENCH_QUICK")}
    os.environ |= {"MRAD_BENCH_DEVICE": device, "MRAD_BENCH_QUICK": str(int(quick))}
    try:
        with service.worker("mrad", len(os.sched_getaffinity(0))) as (_, port):
            for name, each, clients in service.SHAPES:
                requests = service.requests_of("form", images, each)
                drive(port, requests[:2], each, clients)
                found = drive(port, requests, each, clients)
                if found.failed or found.refused:
                    raise SystemExit(f"{name}: {found.failed} failed, {found.refused} refused")
                quantiles = [1_000 * found.quantile(q) for q in (0.5, 0.99)]
                rows.append([name, found.rate, *quantiles])
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    columns = ["", "images/s", "p50 ms", "p99 ms"]
    note = f"{images} JPEGs a line, batches of {service.BATCH}; the load runs on the same host."
    return Table(f"The server, {device}", columns, rows, [hardware(), note])


if __name__ == "__main__":
    main(run)
