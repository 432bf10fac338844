"""Whether it lives, whether it takes work, and its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from mrad_service.problems import MEDIA_TYPE, describe
from mrad_service.routes.score import runtime_of


def health_router(*, metrics: bool) -> APIRouter:
    """No key is asked for: orchestrators have none."""
    router = APIRouter(tags=["health"])
    router.get("/health/live", responses={503: {"description": "broken until started again"}})(live)
    router.get("/health/ready", responses={503: {"description": "not yet, or stopping"}})(ready)
    if metrics:
        router.get("/metrics", response_class=Response)(figures)
    return router


async def live(request: Request) -> Any:
    """200 while a restart would heal nothing; 503 once a device is lost or a worker thread ended."""
    why = runtime_of(request).why_not_live()
    if why:
        return JSONResponse(describe(503, "not_live", why), 503, media_type=MEDIA_TYPE)
    return {"status": "live"}


async def ready(request: Request) -> Any:
    """200 when scoring requests are welcome, 503 while loading, draining or broken."""
    runtime = runtime_of(request)
    why = runtime.why_not_ready()
    if why:
        return JSONResponse(describe(503, "not_ready", why), 503, media_type=MEDIA_TYPE)
    return {"status": "ready", "bank": runtime.banks.active}


async def figures(request: Request) -> Response:
    """Prometheus exposition."""
    return Response(runtime_of(request).figures(), media_type=CONTENT_TYPE_LATEST)
