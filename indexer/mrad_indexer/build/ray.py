"""The encoding of a build on a Ray cluster: the same shards, made by many processes (extra `ray`).

Ray Data hands each shard's records to a pool of actors that hold the encoder; the shards come back as
bytes and are kept by this process, in the order they are ready. An actor, a worker process or a machine
that dies costs the shards it was at: Ray gives them to another. A driver that dies costs what was in
flight: the same command goes on, on Ray or not, for the shards are those of a local build.

Images are read by the workers, so their paths must mean the same on every machine; nothing else is
shared.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mrad_client.batch.journal import Journal

from mrad import errors
from mrad.encoder.encoder import Encoder
from mrad.encoder.identity import EncoderIdentity
from mrad.errors import EncoderMismatchError, MRADError
from mrad_indexer.build.build import BuildOptions, Plan, keep_shard
from mrad_indexer.build.encode import Shard, decoded_ahead, encode_shard, from_bytes, to_bytes
from mrad_indexer.datasets import Record

try:
    import ray
    import ray.data
except ImportError as error:
    raise MRADError(
        f"building on Ray needs what is not installed ({error}): pip install 'mrad[ray]'"
    ) from error

Batch = dict[str, Any]


class ShardEncoder:
    """An actor: holds the encoder, turns the records of one shard into its bytes.

    An `MRADError` comes back as a row, since Ray hands on the text of what a worker raises, not the
    error.
    """

    def __init__(
        self, load: Callable[[], Encoder], identity: EncoderIdentity, options: BuildOptions
    ) -> None:
        self.load, self.identity, self.options = load, identity, options

    def __call__(self, batch: Batch) -> Batch:
        """One shard: `number` [1], `records` [1] -> `number` [1], `data` [1] or `error` [1]."""
        data, error = b"", ["", ""]
        try:
            data = to_bytes(self.shard(read_records(batch["records"][0])))
        except MRADError as raised:
            error = [type(raised).__name__, str(raised)]
        return {"number": batch["number"], "data": [data], "error": [json.dumps(error)]}

    def shard(self, records: list[Record]) -> Shard:
        """Decode ahead in threads, encode."""
        options = self.options
        with closing(decoded_ahead(self.encoder, options, options.reading, records)) as decoded:
            return encode_shard(self.encoder, decoded, options)

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded once for each actor. Raises `EncoderMismatchError` when it is not the driver's."""
        encoder = self.load()
        if encoder.identity != self.identity:
            raise EncoderMismatchError(
                f"a worker loaded {encoder.identity}, the build began with {self.identity}; "
                "give every machine the same weights"
            )
        return encoder


class RayEngine:
    """Encodes what a build misses on the cluster that RAY_ADDRESS names, else on this machine."""

    def __init__(self, load: Callable[[], Encoder], workers: int | None = None) -> None:
        """`load` makes a worker's encoder; `workers`: None for one a GPU, or one a CPU without."""
        self.load, self.workers = load, workers

    def __call__(
        self,
        encoder: Encoder,
        plan: Plan,
        options: BuildOptions,
        work: Path,
        journal: Journal,
        ready: set[int],
        report: Callable[[int, int, bool], None],
    ) -> int:
        """See `mrad_indexer.build.build.encode_missing`."""
        missing = [number for number in range(len(plan.shards)) if number not in ready]
        for number, data in self.shards(encoder, plan, options, missing):
            shard = from_bytes(data, f"shard {number}")
            keep_shard(work, journal, number, shard, data)
            report(len(shard.entries) + len(shard.skipped), len(shard.skipped), False)
        return sum(len(plan.shards[number]) for number in missing)

    def shards(
        self, encoder: Encoder, plan: Plan, options: BuildOptions, missing: list[int]
    ) -> Iterator[tuple[int, bytes]]:
        """The bytes of each missing shard, as they are done. Raises what `encode_shard` raises."""
        if not missing:
            return
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        quiet()
        resources, workers = self.share()
        rows = [{"number": n, "records": write_records(plan.shards[n])} for n in missing]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardEncoder,
            fn_constructor_args=(
                self.load,
                encoder.identity,
                replace(options, reading=plan.reading),
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(rows))),
            **resources,
        )
        for row in dataset.iter_rows():
            name, message = json.loads(row["error"])
            if name:
                raise getattr(errors, name, MRADError)(message)
            yield row["number"], row["data"]

    def share(self) -> tuple[dict[str, float], int]:
        """Resources of one worker, and how many workers there are."""
        total = ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
        workers = self.workers or gpus or cpus
        share = {"num_cpus": max(1, cpus // workers) if workers <= cpus else cpus / workers}
        return share | ({"num_gpus": min(1, gpus / workers)} if gpus else {}), workers


def write_records(records: Sequence[Record]) -> str:
    """Records as JSON, to travel."""
    return json.dumps([asdict(record) for record in records], default=str)


def read_records(text: str) -> list[Record]:
    """Inverse of `write_records`."""
    rows = json.loads(text)
    for row in rows:
        row["image"], row["mask"] = Path(row["image"]), row["mask"] and Path(row["mask"])
    return [Record(**row) for row in rows]


def quiet() -> None:
    """Ray Data's own progress and plans to warnings: the build has a progress bar."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
