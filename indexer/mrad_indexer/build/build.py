"""A dataset -> a bank on disk, through a work folder that survives a kill.

OUT.building/ holds `journal.jsonl` (what was asked, then a line for each shard with its digest) and
the shards. Running the same build again goes on with the shards that are missing. The bank appears
whole under OUT, then the work folder goes. Where too many images could not be used there is no bank, and
of the shards those stay in which no image is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from mrad_client.batch.journal import Journal, JournalError

from mrad.encoder.encoder import Encoder
from mrad.encoder.named import name_in_bank
from mrad.errors import BankCorruptError, BankError, BankNotFoundError, DataError, LayoutError
from mrad.files import atomic_write_bytes, sha256_file
from mrad.images.guard import InputProfile
from mrad.memory.bank import INPUT, PRECISION, TRIAL, MemoryBank, layout_metadata
from mrad.memory.coreset import bounded, reduced
from mrad.memory.store import MANIFEST
from mrad.types import ANOMALOUS
from mrad.words import counted
from mrad_indexer.build.encode import (
    Shard,
    Skipped,
    bank_of,
    decoded_ahead,
    encode_shards,
    from_bytes,
    to_bytes,
)
from mrad_indexer.build.plan import BuildOptions, Plan
from mrad_indexer.datasets import Dataset


@dataclass(frozen=True)
class Built:
    """What a build gave."""

    bank: MemoryBank
    skipped: tuple[Skipped, ...]
    encoded: int
    """Images encoded now."""
    resumed: int
    """Images that an earlier run had encoded."""
    doubtful: tuple[Skipped, ...] = ()
    """Used all the same: a row for each warning."""
    already: bool = False
    """Whether the bank stood there from the same images and settings: nothing was done."""


JOURNAL = "journal.jsonl"
Progress = Callable[[int, int, bool], None]
Engine = Callable[[Encoder, Plan, BuildOptions, Path, Journal, set[int], Progress], int]
"""See `encode_missing`."""


def work_folder(out: Path) -> Path:
    """Where a build of `out` keeps its shards until the bank stands."""
    return out.with_name(out.name + ".building")


def shard_path(work: Path, number: int) -> Path:
    """The file of shard `number`."""
    return work / f"{number:06}.safetensors"


def build(
    encoder: Encoder,
    dataset: Dataset,
    out: Path,
    options: BuildOptions | None = None,
    *,
    replace: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Built:
    """Encode a dataset and write the bank to `out`; goes on where an earlier run was cut off.

    Args:
        replace: take the place of another bank that stands at `out`.
        restart: forget the shards of an earlier run.
        progress: called with images done, images skipped, and whether they come from an earlier run.
        engine: what encodes the missing shards; None: this process.

    Raises `BankError` (`out` is taken), `JournalError` (another build is under way there, or was
    begun with other images or settings), `DataError` (fewer than half of the images can be used: no bank, but
    shards from which no image is missing stay for a later run), `NonFiniteError`; with `strict` also
    `ImageError`, `MaskError`.
    """
    options = options or BuildOptions()
    plan = Plan.of(encoder, dataset, options)
    work = work_folder(out)
    if (found := _standing(out, plan, replace)) is not None:
        _discard(work)
        return Built(found, noted(found, "skipped"), 0, 0, noted(found, "doubtful"), already=True)
    hint = (
        "Its shards cannot be mixed with this build's (data: images, masks and labels): run it as "
        "it was, use --restart to begin again, or choose another --out"
    )
    # Opening the journal takes its lock: until then nothing of another build's is touched.
    with Journal(work / JOURNAL, plan.asked, hint=hint, restart=restart) as journal:
        ready = [n for n in range(len(plan.shards)) if is_ready(work, journal, n)]
        report = progress or (lambda done, skipped, old: None)
        for number in ready:
            row = journal.row(str(number))
            report(row["images"] + row["skipped"], row["skipped"], True)
        encode = engine or encode_missing
        encoded = encode(encoder, plan, options, work, journal, set(ready), report)
        try:
            bank, skipped = finish(encoder, plan, options, work, out, replace=replace)
        except DataError as error:
            kept = keep_whole_shards(work, journal, len(plan.shards))
            if not kept:  # nothing to go on from, and other images or settings need not be told so
                shutil.rmtree(work)
                raise
            raise DataError(
                f"{error}. What was encoded without a fault is kept ({counted(kept, 'image')}): run the same "
                "build again where images could not be read for a time; with others, add --restart"
            ) from error
        shutil.rmtree(work)
    resumed = len(bank.entries) + len(skipped) - encoded
    return Built(bank, tuple(skipped), encoded, resumed, noted(bank, "doubtful"))


def keep_whole_shards(work: Path, journal: Journal, shards: int) -> int:
    """Forget the shards from which an image is missing, so that it is read again; images in the others."""
    kept = 0
    for number in range(shards):
        row = journal.row(str(number)) if str(number) in journal else None
        if row is not None and not row["skipped"]:
            kept += row["images"]
        else:
            shard_path(work, number).unlink(missing_ok=True)
    return kept


def _discard(work: Path) -> None:
    """Remove what a finished build left, unless another one is under way there."""
    if work.exists():
        with suppress(JournalError), Journal(work / JOURNAL, {}, restart=True):
            shutil.rmtree(work, ignore_errors=True)


def _standing(out: Path, plan: Plan, replace: bool) -> MemoryBank | None:
    """The bank at `out` if this very build made it. Raises `BankError` when something else is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        made = json.loads((out / MANIFEST).read_bytes())["metadata"]["build"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        made = None
    if made == plan.fingerprint:
        return MemoryBank.load(out)
    if not replace:
        what = "another bank" if (out / MANIFEST).is_file() else "something that is no bank"
        raise BankError(f"{out} holds {what}; choose another --out, or --replace it")
    if not (out / MANIFEST).is_file():
        raise BankNotFoundError(f"{out} is no bank, so it is not replaced; choose another --out")
    return None


def noted(bank: MemoryBank, what: str) -> tuple[Skipped, ...]:
    """What its build left out (`skipped`), or took with a warning (`doubtful`), as the bank keeps it."""
    return tuple(Skipped(**row) for row in bank.metadata.get("build", {}).get(what, []))


def is_ready(work: Path, journal: Journal, number: int) -> bool:
    """Whether a shard is journalled and on disk as it was written."""
    path = shard_path(work, number)
    return path.is_file() and journal.has(str(number), sha256_file(path))


def encode_missing(
    encoder: Encoder,
    plan: Plan,
    options: BuildOptions,
    work: Path,
    journal: Journal,
    ready: set[int],
    report: Progress,
) -> int:
    """Encode the shards that are not ready, without a pause between them; each is written meanwhile.

    Keeps each with `keep_shard`, tells `report`, and gives the number of images looked at. An engine
    does the same elsewhere (`mrad_indexer.build.ray`).
    """
    missing = [n for n in range(len(plan.shards)) if n not in ready]
    records = [record for n in missing for record in plan.shards[n]]
    decoded = decoded_ahead(encoder, options, plan.reading, records)
    written: Future[None] | None = None

    def taken(count: int) -> Iterator[Any]:
        for item in islice(decoded, count):
            if written is not None and written.done():
                written.result()  # a disk that is full ends the build now, not a shard later
            yield item
            report(1, int(isinstance(item, Skipped)), False)

    groups = (taken(len(plan.shards[number])) for number in missing)
    shards = encode_shards(encoder, groups, options)
    # One thread, so that shards are journalled in order, and one shard, so that few are held.
    with ThreadPoolExecutor(1) as writer, closing(decoded), closing(shards):
        for number, shard in zip(missing, shards, strict=True):
            if written is not None:
                written.result()
            written = writer.submit(keep_shard, work, journal, number, shard)
        if written is not None:
            written.result()
    return len(records)


def keep_shard(
    work: Path, journal: Journal, number: int, shard: Shard, data: bytes | None = None
) -> None:
    """Write a shard, then journal it: in this order nothing is claimed that is not there.

    `data`: its bytes, where they are made already.
    """
    path = shard_path(work, number)
    data = to_bytes(shard) if data is None else data
    atomic_write_bytes(path, data)
    row = {
        "name": str(number),
        "stamp": hashlib.sha256(data).hexdigest(),
        "images": len(shard.entries),
        "skipped": len(shard.skipped),
    }
    journal.append([row])


def finish(
    encoder: Encoder,
    plan: Plan,
    options: BuildOptions,
    work: Path,
    out: Path,
    *,
    replace: bool = False,
) -> tuple[MemoryBank, list[Skipped]]:
    """Join all shards and write the bank.

    Raises `DataError` when most images could not be used, `MRADError` when `coreset` leaves a class empty.
    """
    skipped: list[Skipped] = []
    doubtful: list[Skipped] = []
    profile = InputProfile(depths=plan.reading.assume, bit_depth=plan.reading.bit_depth)

    def shards() -> Iterator[Shard]:
        nonlocal profile
        for number in range(len(plan.shards)):
            path = shard_path(work, number)
            if not path.is_file():
                raise BankCorruptError(f"{path} has gone while the build ran; run it again")
            shard = from_bytes(path.read_bytes(), str(path))
            skipped.extend(shard.skipped)
            doubtful.extend(shard.doubtful)
            profile = profile.joined(shard.profile)
            yield shard

    bank = bank_of(shards(), encoder.identity, (encoder.embed_dim, encoder.width))
    if not bank.entries:
        first = f", the first: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{plan.dataset.root} holds no image that can be used{first}")
    if len(skipped) > len(bank.entries):
        raise DataError(_mostly_skipped(skipped, len(bank.entries), plan, options))
    bank = bounded(bank, encoder.grid**2)
    small = too_small(bank, plan.dataset)
    if options.coreset is not None and options.coreset < len(bank.patch):
        bank = dataclasses.replace(bank, patch=reduced(bank.patch, options.coreset))
    bank.metadata["pretrained"] = name_in_bank(options.pretrained)
    bank.metadata["patch_keys"] = options.patch_keys
    bank.metadata.update(layout_metadata(options.layout))
    bank.metadata[INPUT] = profile.as_json()
    bank.metadata[PRECISION] = encoder.precision
    if options.trial is not None:
        bank.metadata[TRIAL] = options.trial
    bank.metadata["build"] = {
        "fingerprint": plan.fingerprint,
        "data": plan.dataset.root.name,
        "layout": plan.dataset.name,
        "origin": options.origin,
        "precision": plan.asked["precision"],
        "coreset": options.coreset,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mrad": version("mrad"),
        "skipped": [asdict(item) for item in skipped],
        "doubtful": [asdict(item) for item in doubtful],
        "too_small": small,
    }
    return bank.save(out, replace=replace), skipped


def _mostly_skipped(skipped: list[Skipped], kept: int, plan: Plan, options: BuildOptions) -> str:
    """What is wrong where a memory would hold the lesser part of its images, and what to do about it."""
    ((code, _),) = Counter(item.code for item in skipped).most_common(1)
    remedy = "mend them, or take them out of the folder"
    if code == LayoutError.code:
        remedy = "draw the region or the parts again"
        if options.layout.align is not None:
            remedy = (
                'align with a picture that shows more of what they share ("align": "picture.png" in '
                'parts.json), or, where parts do not move, leave "align" out'
            )
    return (
        f"{len(skipped)} of {kept + len(skipped)} images of {plan.dataset.root} cannot be used, so no memory "
        f"was written: {remedy}. The first: {skipped[0].source}: {skipped[0].reason}"
    )


def too_small(bank: MemoryBank, dataset: Dataset) -> list[str]:
    """Sources of the defects whose mask covers no patch wholly: they add no anomalous patch key."""
    known = set(bank.patch.entry[bank.patch.labels == ANOMALOUS].tolist())
    masked = {record.source for record in dataset.records if record.anomalous and record.mask}
    found = (entry.source for row, entry in enumerate(bank.entries) if row not in known)
    return [source for source in found if source in masked]
