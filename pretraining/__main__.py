"""`python -m pretraining --out runs/mini`: train the shipped small CLIP, on a GPU if there is one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from mrad.encoder.encoder import resolve_device
from pretraining.export import curves, export, export_tower
from pretraining.train import Recipe, Training


def main(
    out: Annotated[Path, typer.Option(help="Checkpoint, log, curves and weights go here.")],
    steps: Annotated[int, typer.Option(help="Batches of the whole recipe.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Decides initial weights and every picture.")] = 0,
    device: Annotated[str, typer.Option(help="auto: a GPU if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the arithmetic; 0: all cores.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that make pictures.")] = 1,
) -> None:
    """Train mrad-mini by contrast of made pictures and captions. Run again to resume."""
    # Denormal numbers, in tails of Gaussians and in fading optimiser states, are slow to multiply. Set
    # before the first product, for threads and workers inherit it.
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=seed, steps=steps)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    training = Training(recipe, out, resolve_device(device))
    training.run(workers)
    training.finish()
    curves(out / "log.jsonl", out / "curves.png")
    print(f"weights: {export(training.clip, out)}")
    print(f"its tower, for inference without open_clip: {export_tower(training.clip, out)}")


if __name__ == "__main__":
    typer.run(main)
