"""One optimisation: shuffled batches, Adam, its schedule, losses recorded and checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mrad.errors import NonFiniteError
from mrad_indexer.training.recipe import Stage, steps_of


@dataclass(frozen=True)
class Step:
    """What one step of one stage did."""

    stage: str
    epoch: int
    step: int
    learning_rate: float
    losses: dict[str, float]
    """Each term, weighted, and their sum `total`."""


@dataclass
class History:
    """What training did, in order."""

    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> wall time of its epochs."""
    epochs: dict[str, int] = field(default_factory=dict)

    def epoch_mean(self, stage: str, epoch: int) -> float:
        """Mean total loss of one epoch."""
        totals = [s.losses["total"] for s in self.steps if s.stage == stage and s.epoch == epoch]
        return sum(totals) / len(totals)


Progress = Callable[[str, int, int, float], None]
"""stage, step done, steps in all, total loss."""


def optimise(
    stage: str,
    recipe: Stage,
    images: int,
    parameters: Iterable[nn.Parameter],
    losses: Callable[[list[int]], dict[str, Tensor]],
    history: History,
    progress: Progress | None = None,
) -> None:
    """Run a stage. `losses(rows)` gives the weighted terms of a batch; their sum is minimised.

    Deterministic by `recipe.seed`. Raises `NonFiniteError` naming the term, epoch and step before
    a weight is touched by it.
    """
    chosen = list(parameters)
    steps = steps_of(recipe, images)
    optimiser = torch.optim.Adam(
        chosen, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True
    )
    schedule = _schedule(recipe, optimiser, steps)
    started = time.perf_counter()
    for done, (epoch, rows) in enumerate(_batches(recipe, images), start=1):
        terms = losses(rows)
        total = torch.stack(list(terms.values())).sum()
        _check(stage, epoch, done, terms)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        _check_gradients(stage, epoch, done, chosen)
        values = {name: float(value.detach()) for name, value in terms.items()}
        rate = optimiser.param_groups[0]["lr"]
        history.steps.append(
            Step(stage, epoch, done, rate, values | {"total": float(total.detach())})
        )
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(stage, done, steps, float(total.detach()))
    history.seconds[stage] = time.perf_counter() - started
    history.epochs[stage] = recipe.epochs


def _schedule(
    recipe: Stage, optimiser: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, T_max=steps, eta_min=recipe.final_learning_rate
    )


def _batches(recipe: Stage, images: int) -> Iterator[tuple[int, list[int]]]:
    generator = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(images, generator=generator).tolist()
        for start in range(0, images, recipe.batch_size):
            yield epoch, order[start : start + recipe.batch_size]


def _check(stage: str, epoch: int, step: int, terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise NonFiniteError(
                f"{stage}: the {name} loss is {float(value.detach())} in epoch {epoch}, step {step}; "
                "lower the learning rate, or look at the features of that batch"
            )


def _check_gradients(stage: str, epoch: int, step: int, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise NonFiniteError(
                f"{stage}: a gradient is not finite in epoch {epoch}, step {step}; lower the "
                "learning rate"
            )
