"""One card, in one call of at most eight minutes: CPU = GPU, images a second, retrieval, the server.

    python -m benchmarks gpu [--quick]

For wherever a card is at hand for half an hour; no network is asked. It stops where the GPU's numbers
are not the CPU's. What no time is left for is named. Each table is shown on stderr as soon as it is
done. Without a GPU it says so and runs nothing, but for `--quick`, which walks every step on the CPU.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import service
from benchmarks.geometry import Geometry, surface
from benchmarks.load import drive
from benchmarks.paper_loop import Memory, PaperLoop
from benchmarks.service_worker import samples
from benchmarks.tables import Cell, Table, hardware, middle, paired, ratio, seconds, timed
from mrad import Detector, Encoder, MemoryBank
from mrad.encoder.device import exact_float32
from mrad.maps import anomaly_map
from mrad.memory.level import LevelMemory
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.good_patches import GoodPatches, Views
from mrad.retrieval.nearest import by_blocks, nearest, resources_of

SECONDS = 450.0
"""Of the whole call; eight minutes with the imports and the last step's rest."""
BOUND = 1e-3
"""Largest difference between CPU and GPU, float32, as a share of each quantity's range."""
LEVELS = 2.01 / 255
"""The same for pixels: whole levels, see `Preprocess.resize`."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMPILED = (1, 8)
"""Each batch size is compiled again, half a minute each."""
GOODS = (24_000, 68_000)
"""Single patches of good images: what 50 give with `mrad-mini`, and with ViT-L/14-336."""
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
AIMS = {"paper": 20.0, "gemm": 60.0, "http": 95.0}
"""Times the paper's loop at batch 1; percent of the GEMM rate; percent of the bare rate."""
SERVER_BATCH = 32


@dataclass
class Bench:
    """What the sections share: the device, the clock, the aims' figures."""

    device: str
    quick: bool
    geometry: Geometry
    began: float = field(default_factory=time.monotonic)
    reached: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the call."""
        return SECONDS - (time.monotonic() - self.began)

    def times(self, work: Callable[[], object], budget: float = 0.6) -> list[float]:
        """As many runs as fit into `budget` seconds, three at least, after one that is not counted."""
        work()
        once = seconds(work)
        return timed(work, 2 if self.quick else min(200, max(3, int(budget / once))), warm=False)


def run(quick: bool) -> list[Table]:
    """Raises `SystemExit` when the GPU's numbers are not the CPU's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not quick:
        note = f"{hardware()}. No GPU here: nothing was run, there is no figure to show."
        return [Table("GPU", ["not run"], [["no GPU"]], [note])]
    bench = Bench(device, quick, Geometry.tiny() if quick else Geometry.paper())
    exact_float32()
    clip = bench.geometry.build()
    sections: list[tuple[str, float, Callable[[], Table]]] = [
        ("CPU = GPU", 0, lambda: same_numbers(bench, clip)),
        ("the paper's loop", 30, lambda: against_paper(bench, clip)),
        ("images a second", 60, lambda: by_batch(bench, clip)),
        ("the server", 90, lambda: server(bench)),
        ("the nearest good patch", 50, lambda: nearest_good(bench)),
        ("retrieval", 60, lambda: retrieval(bench)),
        ("compiled", 90, lambda: compiled(bench, clip)),
    ]
    tables, left_out = [], []
    for name, needs, section in sections:
        if bench.left < needs:
            left_out.append(f"{name} (no time left)")
            continue
        try:
            tables.append(section())
        except (RuntimeError, OSError) as error:  # a card too small, no compiler: the others go on
            left_out.append(f"{name}: {(str(error) or repr(error)).splitlines()[0]}")
            continue
        print(tables[-1].markdown(), file=sys.stderr, flush=True)
    return [aims(bench, left_out), *tables]


def aims(bench: Bench, left_out: list[str]) -> Table:
    """What was aimed at beside what was found."""
    texts = {
        "paper": "times the paper's loop on the same card, one image, bf16",
        "gemm": "percent of the card's own bf16 GEMM rate, best batch",
        "http": "percent of the bare detector's rate through HTTP, best shape",
    }
    rows: list[list[Cell]] = [[texts[a], AIMS[a], bench.reached.get(a)] for a in AIMS]
    took = f"The whole took {SECONDS - bench.left:.0f} s."
    return Table("Aims", ["", "aim", "found"], rows, [hardware(), took, *left_out])


def same_numbers(bench: Bench, clip: nn.Module) -> Table:
    """Every step from image to map on both devices, float32; then scores of the bundled boards."""
    image, keys = surface(640, 480), unit(5_000, bench.geometry.width)
    labels = (np.arange(len(keys)) % 2).astype(np.uint8)

    def steps(on: str) -> dict[str, Tensor]:
        encoder = encoder_of(bench, clip, "fp32", on)
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
            "map": anomaly_map(cells, bench.geometry.size),
            "scores of six boards, mrad-mini": board_scores(on, "tf"),
            "the same by head nn": board_scores(on, "nn"),
        }

    rows: list[list[Cell]] = []
    here, there = steps("cpu"), steps(bench.device)
    for name, one in here.items():
        share = float((one - there[name].cpu()).abs().max() / (one.max() - one.min()))
        bound = LEVELS if name == "pixels" else BOUND
        if not share <= bound:
            raise SystemExit(f"{name} on the GPU: off by {share:.1e} of its range, over {bound}")
        rows.append([name, share, bound])
    columns = ["", "largest difference, share of the range", "bound"]
    return Table(f"CPU = {bench.device}, float32", columns, rows, [hardware()])


def board_scores(on: str, head: str) -> Tensor:
    """The shipped encoder from files to scores."""
    boards = samples()
    encoder = Encoder.load("mrad-mini", device=on)
    detector = Detector(encoder, MemoryBank.from_samples(encoder, boards[::4]), head)
    return torch.tensor([found.score for found in detector.predict([b.image for b in boards[:6]])])


def unit(count: int, width: int) -> Tensor:
    """Seeded unit vectors [count, width]."""
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1)


def encoder_of(bench: Bench, clip: nn.Module, precision: str, on: str = "") -> Encoder:
    """The seeded tower; `tf32` is float32 with the switch on, `mini ...` the shipped encoder."""
    on, size, name = on or bench.device, bench.geometry.size, bench.geometry.name
    kind = precision.removeprefix("mini ").removesuffix(" compiled")
    kind = "fp32" if kind == "tf32" else kind
    if precision.startswith("mini "):
        return Encoder.load("mrad-mini", device=on, precision=kind)
    compiled = precision.endswith(" compiled")
    return Encoder.from_clip(clip, size, name=name, device=on, precision=kind, compiled=compiled)


@contextmanager
def switched(precision: str) -> Iterator[None]:
    """TF32 on for as long as it is measured."""
    exact_float32("tf32" not in precision)
    try:
        yield
    finally:
        exact_float32()


def gemm_rates(bench: Bench) -> dict[str, float]:
    """Operations a second of a large product, by precision: what this card really gives."""
    side, rates = 256 if bench.quick else 8_192, {}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        with switched(precision):
            rates[precision] = 2 * side**3 / median(bench.times(lambda a=a, b=b: a @ b, 1.0))
    return rates


def operations(encoder: Encoder) -> float:
    """Multiply-adds, times two, of one image through what the encoder computes, its stem left out."""
    cells, width = encoder.grid**2, encoder.width
    tokens, blocks = cells + 1, len(encoder.tower.middle) + 2
    projections = 24 * tokens * width**2  # qkv 6, out 2, MLP 16
    attention = 4 * tokens**2 * width
    gained = 2 * cells * width**2 + 4 * cells * tokens * width  # V-V: out and attention
    last = tokens * width**2 * 4 + gained  # keys and values for all, the rest for one token
    return (blocks - 1) * (projections + attention) + (blocks - 2) * gained + last


def by_batch(bench: Bench, clip: nn.Module) -> Table:
    """The encoder alone on pixels that lie on the card, every precision and batch."""
    rates = gemm_rates(bench)
    every = ("bf16", "fp32", "tf32", "mini bf16", "mini fp32")
    rows = [row for precision in every for row in _batches(bench, clip, precision, rates)]
    gemm = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    notes = [
        hardware(),
        f"{bench.geometry.name} at {bench.geometry.size} px, seeded weights, unless it says mini "
        "(mrad-mini). CUDA graphs up to batch 64.",
        f"This card's GEMM rates, TFLOP/s: {gemm}. Memory: the most that PyTorch held, weights too.",
    ]
    return Table(f"The encoder, {bench.device}", ENCODER_COLUMNS, rows, notes)


ENCODER_COLUMNS = ["", "batch", "time", "images a second", "percent of the GEMM rate", "GiB"]


def _batches(
    bench: Bench, clip: nn.Module, precision: str, rates: dict[str, float]
) -> list[list[Cell]]:
    encoder, rows = encoder_of(bench, clip, precision), []
    rate = rates[precision.removeprefix("mini ").removesuffix(" compiled")]
    side = encoder.image_size
    sizes = COMPILED if precision.endswith("compiled") else BATCHES
    with switched(precision):
        for batch in sizes[:2] if bench.quick else sizes:
            if bench.left < 20:
                break
            if bench.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            pixels = torch.randn(batch, 3, side, side, device=bench.device)
            times = bench.times(lambda p=pixels: encoder.encode_pixels(p))
            images = batch / median(times)
            share = 100 * images * operations(encoder) / rate
            if precision == "bf16":
                bench.reached["gemm"] = max(share, bench.reached.get("gemm", 0.0))
            held = torch.cuda.max_memory_allocated() / 2**30 if bench.device == "cuda" else None
            rows.append([precision, batch, middle(times), images, share, held])
    return rows


def compiled(bench: Bench, clip: nn.Module) -> Table:
    """The same with the blocks compiled: Triton and a C compiler are needed."""
    rows = _batches(bench, clip, "bf16 compiled", gemm_rates(bench))
    return Table(f"Compiled blocks, {bench.device}", ENCODER_COLUMNS, rows, [hardware()])


def against_paper(bench: Bench, clip: nn.Module) -> Table:
    """One image from pixels in memory to its score, beside the paper's loop on the same card."""
    geometry, image, rows = bench.geometry, surface(640, 480), []
    sizes = (200, 300) if bench.quick else (2_162, 3_360)
    memory = Memory.random(geometry.embed_dim, geometry.width, *sizes, bench.device)
    loop = PaperLoop(clip.visual.to(bench.device), geometry.size, memory)
    for precision in ("bf16", "fp32"):
        encoder = encoder_of(bench, clip, precision)
        detector = Detector(encoder, MemoryBank.from_samples(encoder, samples()))
        slow, fast = paired(
            lambda: loop(image),
            lambda d=detector: d.predict([image]),
            2 if bench.quick else 15,
        )
        found = ratio(slow, fast)
        if precision == "bf16":
            bench.reached["paper"] = found.median
        rows.append([precision, middle(slow), middle(fast), str(found)])
    clip.to("cpu")
    notes = [
        hardware(),
        f"The paper's loop in float32, plainly written, with {sizes[0]} and {sizes[1]} keys; ours with "
        "the bundled boards, and its map at the image's size. In pairs.",
    ]
    columns = ["ours in", "the paper's loop", "ours", "ratio"]
    return Table(f"One image against the paper's loop, {bench.device}", columns, rows, notes)


def retrieval(bench: Bench) -> Table:
    """Exact retrieval of one image's patches: probabilities, and the ten nearest keys both ways."""
    width, rows, notes = bench.geometry.width, [], [hardware()]
    cells = (bench.geometry.size // bench.geometry.patch) ** 2
    queries = unit(cells, width).to(bench.device)
    by_faiss = bench.device == "cuda" and resources_of(queries.device) is not None
    for count in SIZES[:1] if bench.quick else SIZES:
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        if bench.device == "cuda" and 1.5 * count * width * 4 > torch.cuda.mem_get_info()[0]:
            notes.append(f"{count:,} keys of width {width} do not fit this card.")
            break
        if bench.left < 45:
            notes.append(f"No time was left for {count:,} keys.")
            break
        keys = torch.empty(count, width, device=bench.device)
        for start in range(0, count, 1_000_000):  # in place: no second copy of the largest
            part = keys[start : start + 1_000_000].normal_()
            part /= part.norm(dim=1, keepdim=True)
        labels = (np.arange(count) >= count // 2).astype(np.uint8)
        retriever = ExactRetriever(keys, labels, device=bench.device)
        asked = bench.times(lambda r=retriever: r.probability(queries))
        blocks = bench.times(lambda k=keys: by_blocks(queries, k, 10))
        found = middle(bench.times(lambda k=keys: nearest(queries, k, 10))) if by_faiss else None
        rows.append([count, middle(asked), middle(blocks), found])
        del keys, part, retriever
    if not by_faiss:
        notes.append("FAISS does not search on this card: its log line says why.")
    columns = [
        "keys",
        "probabilities",
        "10 nearest, PyTorch in blocks",
        "10 nearest, FAISS on the GPU",
    ]
    return Table(f"Exact retrieval of {cells} patches, {bench.device}", columns, rows, notes)


def nearest_good(bench: Bench) -> Table:
    """Head `nn`: how far one image's patches are from the nearest of all good ones, and its evidence."""
    width, rows, notes = bench.geometry.width, [], [hardware()]
    cells = (bench.geometry.size // bench.geometry.patch) ** 2
    for count in GOODS[:1] if bench.quick else GOODS:
        images = max(1, count // cells)
        row = np.repeat(np.arange(images), cells)
        keys = unit(len(row), width).numpy()
        whole = np.full(len(row), "normal"), np.ones(len(row), np.int32)
        local = LevelMemory(keys, np.zeros(len(row), np.uint8), row, *whole)
        good_patches = GoodPatches(
            local, Views.of(local, cells), torch.arange(images), bench.device
        )
        for batch in (1, 8):
            queries = unit(batch * cells, width).to(bench.device)
            search = middle(bench.times(lambda g=good_patches, q=queries: g.nearest(q)))
            named = middle(bench.times(lambda g=good_patches, q=queries: g.several(q[:1], 5)))
            rows.append([len(row), batch, search, named])
    columns = ["keys", "images at once", "nearest good patch of each", "evidence of one patch"]
    notes.append("PyTorch, in blocks of keys; seeded keys, as many as 50 good images have.")
    return Table(f"Head nn, {cells} patches an image, {bench.device}", columns, rows, notes)


def server(bench: Bench) -> Table:
    """Rate and latency through HTTP, JPEGs in, scores out, beside the bare detector in a process."""
    rows: list[list[Cell]] = []
    threads = len(os.sched_getaffinity(0))
    batch = 8 if bench.quick else SERVER_BATCH
    shapes = [
        (f"{batch} images a request, 3 clients", batch, 3),
        ("1 image a request, 64 clients", 1, 64),
        ("1 image a request, 1 client", 1, 1),
    ]
    wanted = {"MRAD_BENCH_DEVICE": bench.device, "MRAD_BENCH_QUICK": str(int(bench.quick))}
    with patch.dict(os.environ, wanted), service.worker("mrad", threads, batch) as (_, port):
        with service.worker("bare", threads) as (bare, _):
            service.judge_bare(bare, 2 * batch, batch)
            rate = batch / service.judge_bare(bare, batch, batch)
            images = batch * max(1, round(rate * (0 if bench.quick else 6) / batch))
            alone = images / service.judge_bare(bare, images, batch)
            rows.append([f"bare detector, batches of {batch}", alone, None, None, None])
        for name, each, clients in shapes:
            asked = images if clients > 1 else max(1, images // 8)
            requests = service.requests_of("form", asked, each)
            drive(port, requests[: 2 * clients], each, clients)
            found = drive(port, requests, each, clients)
            if found.failed or found.refused:
                raise SystemExit(f"{name}: {found.failed} failed, {found.refused} refused")
            share = 100 * found.rate / alone
            bench.reached["http"] = max(share, bench.reached.get("http", 0.0))
            quantiles = [1_000 * found.quantile(q) for q in (0.5, 0.99)]
            rows.append([name, found.rate, share if clients > 1 else None, *quantiles])
    columns = ["", "images/s", "percent of the bare rate", "p50 ms", "p99 ms"]
    note = f"{images} JPEGs of 640 x 640 a line, {bench.geometry.name}; the load runs on the same host."
    return Table(f"The server, {bench.device}", columns, rows, [hardware(), note])
