"""`/v1/bank` and `/v1/banks`: what judges, what could, and switching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from mrad.memory.level import LevelMemory
from mrad_service.models.loading import Model
from mrad_service.routes.score import runtime_of
from mrad_service.runtime import Runtime
from mrad_service.schemas.score import Bank, BankList, Keys


def banks_router(require: Callable[[str], Callable[..., Any]]) -> APIRouter:
    """The routes; `require(scope)` is the dependency that checks the API key."""
    router = APIRouter(prefix="/v1", tags=["banks"])
    read, admin = [Depends(require("score"))], [Depends(require("admin"))]
    router.get("/bank", dependencies=read)(get_bank)
    router.get("/banks", dependencies=read)(list_banks)
    switch = [*admin, Depends(turn_to_switch)]
    router.post("/banks/{name}/activate", dependencies=switch)(activate_bank)
    return router


def turn_to_switch(request: Request) -> Iterator[None]:
    """Dependency of what loads a bank: one after the other, and few that wait."""
    runtime = runtime_of(request)
    with runtime.switches.turn(runtime.deadline(request)):
        yield


def get_bank(
    request: Request,
    bank: Annotated[str | None, Query(description="a loaded bank; the active one")] = None,
) -> Bank:
    """The memory in use: encoder, counts, thresholds."""
    runtime = runtime_of(request)
    return described(runtime, runtime.model(bank))


def list_banks(request: Request) -> BankList:
    """Every bank by name."""
    banks = runtime_of(request).banks
    return BankList(active=banks.active, loaded=banks.loaded(), known=sorted(banks.known()))


def activate_bank(request: Request, name: str) -> Bank:
    """Load, verify, warm, switch. Requests in flight finish on the old bank; a failure leaves it."""
    runtime = runtime_of(request)
    return described(runtime, runtime.activate(name))


def described(runtime: Runtime, model: Model) -> Bank:
    """A model for people and clients."""
    bank, held = model.bank, model.calibration
    pixel = held.pixel.value if held is not None and held.pixel is not None else None
    found = f"{held.scored}, {held.made_at}" if held is not None else model.why_uncalibrated
    span = None
    if held is not None:
        seen = (held.scores_normal, held.scores_anomalous)
        ends = [summary.quantiles for summary in seen if summary is not None]
        span = (min(q[0] for q in ends), max(q[-1] for q in ends))
    return Bank(
        name=model.name,
        active=runtime.banks.active == model.name,
        head=model.detectors[0].head.name,
        digest=bank.digest,
        encoder=asdict(bank.identity),
        entries=len(bank.entries),
        image=_keys(bank.image),
        patch=_keys(bank.patch),
        writable=runtime.settings.writable,
        threshold=held.image_threshold if held is not None else None,
        pixel_threshold=pixel,
        calibration=found,
        score_range=span,
        map_range=held.map_range() if held is not None else None,
        drift=runtime.drift.report(model),
    )


def _keys(level: LevelMemory) -> Keys:
    anomalous = int(level.labels.sum())
    return Keys(keys=len(level), normal=len(level) - anomalous, anomalous=anomalous)
