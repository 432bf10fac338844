"""The experiment: memories of VisA and MVTec, FT and CLIP by the paper's recipe, every set judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrad.detector import Detector
from mrad.encoder.encoder import Encoder
from mrad.errors import DataError
from mrad.files import sha256_file
from mrad.memory.bank import MemoryBank
from mrad.words import counted
from mrad_indexer.build.build import BuildOptions, Plan, build
from mrad_indexer.build.plan import data_fingerprint
from mrad_indexer.evaluation.runner import METRICS, evaluate
from mrad_indexer.reproduction.sets import Found, PaperSet
from mrad_indexer.reproduction.steps import Step, Steps
from mrad_indexer.training.recipe import CLIPRecipe, ft_recipe
from mrad_indexer.training.run import train


@dataclass(frozen=True)
class Settings:
    """What decides the figures, beside data and encoder; the defaults are the paper's."""

    heads: tuple[str, ...] = ("tf", "ft", "clip")
    fusion: float = 0.7
    sigma: float = 4.0
    batch_size: int = 8
    pretrained: str | None = None


@dataclass(frozen=True)
class Row:
    """One set under one head."""

    set: PaperSet
    head: str
    normal: int
    anomalous: int
    values: dict[str, float | None]
    """`image_auroc` and the others of `METRICS` -> percent, mean over the set's objects; None where
    the set does not allow it."""


@dataclass
class Outcome:
    """Everything that the table and the page show."""

    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Set -> why it has no row."""
    steps: list[Step] = field(default_factory=list)

    @property
    def failed(self) -> list[Step]:
        """Steps that ended with an error."""
        return [step for step in self.steps if step.error]


@dataclass(frozen=True)
class Memory:
    """The memory of one auxiliary set and the heads trained on it."""

    bank: MemoryBank
    checkpoints: dict[str, Path | None]


def reproduce(
    encoder: Encoder,
    found: dict[str, Found],
    missing: dict[str, str],
    out: Path,
    steps: Steps,
    settings: Settings,
    chosen: Sequence[str],
) -> Outcome:
    """Run what is not done yet under `out`.

    Args:
        found, missing: of `mrad_indexer.reproduction.sets.find`.
        chosen: the sets to evaluate, by key; their memories are made in any case.

    Raises what a step raises that is no `MRADError`; those end a step, and are told in the outcome.
    """
    outcome = Outcome(missing={key: why for key, why in missing.items() if key in chosen})
    judged = [found[key] for key in chosen if key in found]
    memories: dict[str, Memory | str] = {}
    for name in dict.fromkeys(item.set.memory for item in judged):
        if name in found:
            memories[name] = _memory(encoder, found[name], out, steps, settings)
        else:
            memories[name] = f"its memory is made of {name}, which is missing: {missing[name]}"
    for item in judged:
        memory = memories[item.set.memory]
        if isinstance(memory, str):
            outcome.missing[item.set.key] = memory
            continue
        step = _judge(encoder, item, memory, steps, settings)
        if step.error:
            outcome.missing[item.set.key] = step.error
        outcome.rows += rows_of(item.set, step)
    outcome.steps = steps.done
    return outcome


def _memory(
    encoder: Encoder, source: Found, out: Path, steps: Steps, settings: Settings
) -> Memory | str:
    """The bank and the trained heads, or why there is no bank. A head that fails is left out."""
    key, dataset = source.set.key, source.dataset
    folder = out / "banks" / key
    options = BuildOptions(
        batch_size=settings.batch_size, thumbnails=False, pretrained=settings.pretrained
    )

    def make_bank() -> dict[str, Any]:
        done = 0

        def report(images: int, skipped: int, old: bool) -> None:
            nonlocal done
            done += images
            steps.watcher.advance(done)

        built = build(encoder, dataset, folder, options, replace=True, progress=report)
        return {
            "entries": len(built.bank.entries),
            "image_keys": len(built.bank.image),
            "patch_keys": len(built.bank.patch),
            "skipped": [f"{item.source}: {item.reason}" for item in built.skipped],
        }

    asked = Plan.of(encoder, dataset, options).asked
    made = steps.run(f"memory-{key}", asked, make_bank, files=[folder], total=len(dataset))
    if made.error:
        return f"the memory of {source.set.name} failed: {made.error}"
    bank = MemoryBank.load(folder, encoder=encoder)
    checkpoints: dict[str, Path | None] = {}
    for head in settings.heads:
        path = None if head == "tf" else out / "heads" / f"{head}-{key}.safetensors"
        if path is None or not _train(encoder, head, source, bank, path, out, steps).error:
            checkpoints[head] = path
    return Memory(bank, checkpoints)


def _train(
    encoder: Encoder,
    head: str,
    source: Found,
    bank: MemoryBank,
    checkpoint: Path,
    out: Path,
    steps: Steps,
) -> Step:
    """One head by the paper's recipe, on the images that fill its memory."""
    recipes = {"ft": ft_recipe("paper", head), "clip": CLIPRecipe()}
    watcher = steps.watcher

    def make() -> dict[str, Any]:
        trained = train(
            head,
            encoder,
            source.dataset.records,
            checkpoint,
            out / "features",
            bank=bank,
            ft=recipes["ft"],
            clip=recipes["clip"],
            encoding=lambda done, of: watcher.advance(done, of, "features"),
            progress=lambda stage, done, of, loss: watcher.advance(
                done, of, f"{stage}, loss {loss:.3f}"
            ),
        )
        history = trained.history
        return {
            "encoded": trained.encoded,
            "last_loss": {s: history.epoch_mean(s, n) for s, n in history.epochs.items()},
        }

    decides = {
        "bank": bank.digest,
        "recipes": {name: recipe.model_dump() for name, recipe in recipes.items()},
        "encoder": str(encoder.identity),
    }
    return steps.run(f"train-{head}-{source.set.key}", decides, make, files=[checkpoint])


def _judge(encoder: Encoder, item: Found, memory: Memory, steps: Steps, settings: Settings) -> Step:
    """Every head that there is, one encoding for all; pixels at the encoder's size, as the paper."""
    dataset = item.dataset

    def make() -> dict[str, Any]:
        detectors = {
            head: Detector(
                encoder,
                memory.bank,
                head,
                checkpoint=checkpoint,
                fusion=settings.fusion,
                sigma=settings.sigma,
            )
            for head, checkpoint in memory.checkpoints.items()
        }
        evaluation = evaluate(
            detectors,
            dataset,
            batch_size=settings.batch_size,
            resolution=encoder.image_size,
            progress=steps.watcher.advance,
        )
        if skipped := evaluation.dataset["skipped"]:  # figures of fewer images are not the paper's
            raise DataError(
                f"cannot read {counted(len(skipped), 'image')}, the first: {skipped[0]}"
            )
        return {
            "normal": dataset.counts["normal"],
            "anomalous": dataset.counts["anomalous"],
            "heads": {
                one.name: {f"{a}_{b}": one.mean(a, b) for a, b in METRICS}
                for one in evaluation.candidates
            },
            "in_memory": max(one.in_memory for one in evaluation.candidates),
        }

    decides = {
        "data": data_fingerprint(dataset.records),
        "bank": memory.bank.digest,
        "heads": {h: c and sha256_file(c) for h, c in memory.checkpoints.items()},
        "settings": [settings.fusion, settings.sigma, settings.batch_size],
        "device": str(encoder.device),
        "precision": str(encoder.dtype),
    }
    return steps.run(f"evaluate-{item.set.key}", decides, make, total=len(dataset))


def rows_of(item: PaperSet, step: Step) -> list[Row]:
    """The rows of a set, one for each head; none where its step failed."""
    return [
        Row(
            item,
            head,
            step.result["normal"],
            step.result["anomalous"],
            {name: None if value is None else 100 * value for name, value in values.items()},
        )
        for head, values in step.result.get("heads", {}).items()
    ]
