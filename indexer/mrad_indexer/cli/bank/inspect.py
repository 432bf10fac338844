"""`mrad bank inspect`: what a memory holds and whether it is whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrad.words import counted
from mrad_indexer.cli.common.advice import heads_of, within_bound
from mrad_indexer.cli.common.console import console, say, table
from mrad_indexer.cli.common.tiles import describe as describe_layout

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank
    from mrad.memory.level import LevelMemory

SHOWN = 20
LEVELS = {"image": "images", "patch": "regions", "local": "single patches, for nn"}
"""Levels of a memory, and what people call their keys."""


def inspect_command(
    bank: Annotated[Path, typer.Argument(help="the bank's folder")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    every: Annotated[bool, typer.Option("--all", help="list every skipped image")] = False,
) -> None:
    """Verify every digest, then say what the memory holds. A damaged bank is an error."""
    from mrad.memory.bank import MemoryBank

    memory = MemoryBank.load(bank)
    facts = describe(memory, bank)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        show(facts, every)


def describe(bank: MemoryBank, path: Path) -> dict[str, Any]:
    """Everything that is shown, as plain JSON values."""
    from mrad.memory.store import read_manifest

    manifest = read_manifest(path)
    changes = bank.changes
    heads = heads_of(bank)
    problem = _problem(bank) or (heads["why"] if heads["default"] is None else None)
    build = bank.metadata.get("build", {})
    return {
        "path": str(path),
        "format_version": manifest["format_version"],
        "verified": True,
        "digest": bank.digest,
        "encoder": manifest["encoder"],
        "pretrained": bank.metadata.get("pretrained"),
        "precision": bank.precision,
        "precision_trial": bank.metadata.get("precision_trial"),
        "entries": len(bank.entries),
        "composition": bank.composition,
        "changes": None
        if changes is None
        else {"added": changes.added, "removed": changes.removed, "operations": changes.sequence},
        "labels": _named(Counter(entry.label for entry in bank.entries)),
        "levels": {name: _level(getattr(bank, name)) for name in LEVELS},
        "patch_keys": bank.patch_keys,
        "layout": bank.layout.to_json(),
        "indexes": _indexes(bank, path),
        "objects": {
            name: _named(Counter(e.label for e in bank.entries if e.object_name == name))
            for name in dict.fromkeys(entry.object_name for entry in bank.entries)
        },
        "defects": dict(Counter(e.defect for e in bank.entries if e.label).most_common()),
        "usable": problem is None,
        "problem": problem,
        "heads": heads,
        "bound": within_bound(bank) if heads["default"] in ("nn", "combined") else "",
        "calibration": {
            head: {
                "image_threshold": facts.get("image", {}).get("value"),
                "pixel_threshold": (facts.get("pixel") or {}).get("value"),
                "normal": facts.get("normal"),
                "anomalous": facts.get("anomalous"),
                "scored": facts.get("scored"),
                "made_at": facts.get("made_at"),
                "settings": facts.get("settings"),
                "objects": {
                    name: own.get("image", {}).get("value")
                    for name, own in (facts.get("objects") or {}).items()
                },
            }
            for head, facts in (bank.calibration or {}).items()
        },
        "thumbnails": len(bank.thumbnails),
        "build": {name: value for name, value in build.items() if name != "skipped"},
        "skipped": build.get("skipped", []),
        "files": manifest["files"],
    }


def _named(labels: Counter[int]) -> dict[str, int]:
    return {"normal": labels[0], "anomalous": labels[1]}


def _level(level: LevelMemory) -> dict[str, int]:
    return {
        "keys": len(level),
        "dim": level.dim,
        **_named(Counter(level.labels.tolist())),
        "bytes": level.keys.nbytes,
    }


def _indexes(bank: MemoryBank, path: Path) -> list[dict[str, Any]]:
    """Approximate indexes in the bank's folder, and their error against exact retrieval."""
    if not any(one.is_dir() for one in path.glob("derived/*")):
        return []  # nothing to import torch for: distances of `nn` are files
    from mrad.retrieval.approximate.derived import fingerprint, stored

    found = []
    for index in stored(path):
        of = "a head's projection, or an earlier memory"
        for name in ("image", "patch"):
            level, keys = getattr(bank, name), index["keys"]
            if 0 < keys <= len(level) and fingerprint(level, keys) == index["source"]:
                of = name
        kept = {name: index[name] for name in ("keys", "dim", "cells", "storage", "bytes")}
        found.append({"of": of, **kept, "accuracy": index["accuracy"], "path": str(index["path"])})
    return found


def _problem(bank: MemoryBank) -> str | None:
    """What keeps any encoder from querying this memory."""
    from mrad.errors import MRADError

    try:
        bank.image.check("image", bank.image.dim)
        bank.patch.check("patch", bank.patch.dim)
    except MRADError as error:
        return str(error)
    return None


def show(facts: dict[str, Any], every: bool) -> None:
    """For people."""
    encoder = facts["encoder"]
    say((facts["path"], "bold"), " ", ("every digest holds", "green"))
    say(facts["composition"])
    say(
        f"encoder {encoder['architecture']} at {encoder['image_size']} px, "
        f"weights {encoder['digest'][:12]}"
        + (f" ({facts['pretrained']})" if facts["pretrained"] else "")
        + (f", {facts['precision']}" if facts["precision"] else "")
    )
    if facts["precision_trial"]:
        say(f"  measured when it was built: {facts['precision_trial']['why']}", style="dim")
    counts = table("keys of", "keys", "normal", "anomalous", "wide", "MB")
    for level, found in facts["levels"].items():
        numbers = [found[key] for key in ("keys", "normal", "anomalous", "dim")]
        counts.add_row(LEVELS[level], *map(str, numbers), f"{found['bytes'] / 1e6:.1f}")
    from mrad.images.layout import Layout

    console.print(counts)
    adds = {"regions": "one key a region", "all": "every patch a key"}
    granularity = facts["patch_keys"]
    say(
        "an image adds to the patch level: "
        + adds.get(granularity, f"at most {granularity} patches of each region")
    )
    say(f"looks at {describe_layout(Layout.from_json(facts['layout']))}")
    _show_indexes(facts["indexes"])
    objects = table("object", "good", "defective")
    for item, found in facts["objects"].items():
        objects.add_row(item or "–", str(found["normal"]), str(found["anomalous"]))
    console.print(objects)
    if facts["defects"]:
        kinds = ", ".join(f"{kind or '–'} {count}" for kind, count in facts["defects"].items())
        say(f"defects: {kinds}")
    _show_calibration(facts)
    size = sum(file["bytes"] for file in facts["files"].values())
    say(
        f"{counted(len(facts['files']), 'file')}, {size / 1e6:.1f} MB, digest {facts['digest'][:12]}"
    )
    heads = facts["heads"]
    if facts["problem"]:
        say(("cannot score yet", "yellow"), f" {facts['problem']}")
    else:
        say(("head ", ""), (heads["default"], "bold"), f" by default: {heads['why']}")
        if facts["bound"]:
            say(facts["bound"], style="yellow")
        for why, names in _by_reason(heads["unfit"]).items():
            say(f"  not {', '.join(names)}: {why}", style="dim")
    skipped = facts["skipped"]
    if skipped:
        say(f"skipped when it was built: {counted(len(skipped), 'image')}", style="yellow")
    for item in skipped if every else skipped[:SHOWN]:
        say(f"  {item['source']}: {item['reason']}")


def _by_reason(unfit: dict[str, str]) -> dict[str, list[str]]:
    """The first clause of each reason -> the heads that it holds for."""
    found: dict[str, list[str]] = {}
    for name, why in unfit.items():
        clause = re.split("[:;]", why.replace(f"head {name!r}", "it"), maxsplit=1)[0]
        found.setdefault(clause, []).append(name)
    return found


def _show_indexes(indexes: list[dict[str, Any]]) -> None:
    """What approximate retrieval keeps, and how far it was from exact when that was built."""
    if not indexes:
        return
    columns = ("keys", "cells", "kept as", "MB", "largest error", "rank", "on queries")
    shown = table("index of", *columns)
    for index in indexes:
        error = index["accuracy"]
        measured = ["not measured", "", ""]
        if error is not None:
            measured = [f"{error['largest_error']:.1e}", f"{error['spearman']:.5f}"]
            measured.append(str(error["queries"]))
        shown.add_row(
            index["of"],
            *(str(index[name]) for name in ("keys", "cells", "storage")),
            f"{index['bytes'] / 1e6:.1f}",
            *measured,
        )
    console.print(shown)


def _show_calibration(facts: dict[str, Any]) -> None:
    if not facts["calibration"]:
        say("not calibrated: scores come without verdicts; see mrad calibrate")
    for head, found in facts["calibration"].items():
        pixel = found["pixel_threshold"]
        say(
            f"calibration of {head}: image threshold {found['image_threshold']:.5f}, pixel "
            f"threshold {'none' if pixel is None else format(pixel, '.5f')}, on {found['normal']} "
            f"good and {counted(found['anomalous'], 'defective image')} ({found['scored']}), "
            f"{found['made_at']}"
        )
        for name, threshold in found["objects"].items():
            say(f"  its own of {name}: image threshold {threshold:.5f}")
