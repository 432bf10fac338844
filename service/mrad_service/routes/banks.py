"""`/v1/bank` and `/v1/banks`: what judges, what could, and switching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from mrad.calibration import Rule
from mrad.memory.level import LevelMemory
from mrad.thresholds.calibrate import TARGET
from mrad_service.errors import InvalidRequestError
from mrad_service.middleware.access import known_query, no_body, require
from mrad_service.models.following import Calibrating
from mrad_service.models.loading import Model
from mrad_service.routes.score import runtime_of
from mrad_service.runtime import Runtime
from mrad_service.schemas.score import Bank, BankList, CalibrationJob, Keys


def banks_router() -> APIRouter:
    """The routes, each with its scope."""
    router = APIRouter(
        prefix="/v1", tags=["banks"], dependencies=[Depends(known_query), Depends(no_body)]
    )
    read, admin = [Depends(require("score"))], [Depends(require("admin"))]
    router.get("/bank", dependencies=read)(get_bank)
    router.get("/banks", dependencies=read)(list_banks)
    switch = [*admin, Depends(turn_to_switch)]
    router.post("/banks/{name}/activate", dependencies=switch)(activate_bank)
    router.post("/banks/{name}/calibrate", dependencies=admin, status_code=202)(calibrate_bank)
    router.get("/banks/{name}/calibrate", dependencies=admin)(calibrating)
    return router


def turn_to_switch(request: Request) -> Iterator[None]:
    """Dependency of what loads a bank: one after the other, and few that wait."""
    runtime = runtime_of(request)
    with runtime.switches.turn(runtime.deadline(request)):
        yield


def get_bank(
    request: Request,
    bank: Annotated[str | None, Query(description="a loaded bank; the active one")] = None,
    product: Annotated[
        str | None,
        Query(alias="object", max_length=200, description="product: what is held of it alone"),
    ] = None,
) -> Bank:
    """The memory in use: encoder, counts, thresholds."""
    runtime = runtime_of(request)
    model = runtime.model(bank)
    return described(runtime, model if product is None else runtime.objects.get(model, product))


def list_banks(request: Request) -> BankList:
    """Every bank by name."""
    banks = runtime_of(request).banks
    return BankList(active=banks.active, loaded=banks.loaded(), known=sorted(banks.known()))


def activate_bank(request: Request, name: str) -> Bank:
    """Load, verify, warm, switch. Requests in flight finish on the old bank; a failure leaves it."""
    runtime = runtime_of(request)
    return described(runtime, runtime.activate(name))


def calibrate_bank(
    request: Request,
    name: str,
    rule: Annotated[
        Rule | None,
        Query(
            description="`f1`, or `fpr` for a rate of false alarms; `fpr` where `target_fpr` is given, else "
            "by what the memory holds"
        ),
    ] = None,
    target_fpr: Annotated[
        float | None,
        Query(
            gt=0,
            lt=1,
            description=f"share of good images to come that may be flagged; {TARGET} by default",
        ),
    ] = None,
    object_name: Annotated[
        str | None,
        Query(
            alias="object",
            max_length=200,
            description="product: its own thresholds, beside those of all",
        ),
    ] = None,
) -> CalibrationJob:
    """Choose thresholds again on the images that the memory holds, each left out. 202 at once.

    The same asked again while it runs gives the job that runs; anything else is refused (409) until it is done.
    Scoring goes on; the thresholds come into force together, and are on disk, when `state` is `done`.
    """
    if rule == "f1" and target_fpr is not None:
        raise InvalidRequestError("rule=f1 knows no target_fpr: leave one of the two out")
    if target_fpr is not None:
        rule = "fpr"
    wanted = TARGET if target_fpr is None else target_fpr
    job = runtime_of(request).banks.following(name).calibrate(rule, wanted, object_name)
    return job_of(name, job)


def calibrating(request: Request, name: str) -> CalibrationJob:
    """How far the bank's latest calibration has come."""
    return job_of(name, runtime_of(request).banks.following(name).job)


def job_of(name: str, job: Calibrating | None) -> CalibrationJob:
    """For clients."""
    job = job or Calibrating(None, TARGET, state="none")
    held = job.calibration
    return CalibrationJob(
        bank=name,
        object=job.product,
        state=job.state,
        done=job.done,
        images=job.images,
        why=job.why,
        threshold=None if held is None else held.image_threshold,
        pixel_threshold=None if held is None or held.pixel is None else held.pixel.value,
    )


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
        objects=list(bank.objects),
        image=_keys(bank.image),
        patch=_keys(bank.patch),
        writable=runtime.settings.writable,
        threshold=held.image_threshold if held is not None else None,
        pixel_threshold=pixel,
        calibration=found,
        weakness=held.weakness if held is not None else "",
        score_range=span,
        map_range=held.map_range() if held is not None else None,
        drift=None if model.part else runtime.drift.report(model),
    )


def _keys(level: LevelMemory) -> Keys:
    anomalous = int(level.labels.sum())
    return Keys(keys=len(level), normal=len(level) - anomalous, anomalous=anomalous)
