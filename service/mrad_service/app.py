"""The application: settings in, FastAPI out. The one place that wires the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mrad import __version__
from mrad_service import problems
from mrad_service.description import PROBLEMS, complete, operation_id
from mrad_service.middleware.access import AccessControl
from mrad_service.middleware.addresses import Addresses
from mrad_service.middleware.auth import KeyFile
from mrad_service.middleware.limits import BodyLimits
from mrad_service.middleware.observability import Observability
from mrad_service.models.loading import EncoderOf
from mrad_service.routes.banks import banks_router
from mrad_service.routes.health import health_router
from mrad_service.routes.memory import memory_router
from mrad_service.routes.oip import oip_router
from mrad_service.routes.page import page_router
from mrad_service.routes.score import score_router
from mrad_service.runtime import Runtime
from mrad_service.settings import Settings
from mrad_service.telemetry.audit import Audit

ABOUT = """Images go in; a score, a map, a verdict and the evidence come out.

Errors are problem documents (RFC 9457); match on `code`. Send an API key as `Authorization: Bearer
KEY`. Coordinates are pixels of the input image after its EXIF orientation, origin top left.
"""


def create_app(settings: Settings, *, encoder_of: EncoderOf | None = None) -> FastAPI:
    """Build the application; its lifespan loads the first bank and drains at the end.

    `encoder_of(bank, device)` gives the encoder of a bank, where it is not to be loaded by the
    name that the bank says.
    """
    runtime = Runtime(settings, encoder_of)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await run_in_threadpool(runtime.start)
            yield
        finally:
            await run_in_threadpool(runtime.stop)

    app = FastAPI(
        title="MRAD",
        version=__version__,
        description=ABOUT,
        root_path=settings.root_path,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the host that the caller says
        docs_url=None,  # Swagger's page comes from a CDN
        redoc_url=None,
        responses=PROBLEMS,
        generate_unique_id_function=operation_id,
    )
    app.state.runtime = runtime
    problems.install(app)
    app.include_router(score_router())
    app.include_router(banks_router())
    app.include_router(memory_router())
    app.include_router(health_router(metrics=settings.metrics))
    app.include_router(oip_router())
    app.include_router(page_router())
    complete(app)
    audit = Audit(settings.audit_file, settings.audit_closed)
    audit.on_failure = runtime.metrics.audit_failures.inc
    keys = None
    if settings.auth == "keys" and settings.api_keys_file is not None:
        keys = KeyFile(settings.api_keys_file)
    runtime.watch_over(audit, keys)
    # The last one added is the outermost.
    app.add_middleware(BodyLimits, settings=settings, room=runtime.room)
    app.add_middleware(AccessControl, settings=settings, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Timeout"],
            expose_headers=["Retry-After", "X-Request-ID", "X-MRAD-API-Version"],
        )
    app.add_middleware(
        Observability,
        metrics=runtime.metrics,
        audit=audit,
        tracing=runtime.tracing,
    )
    app.add_middleware(Addresses, root_path=settings.root_path)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))  # type: ignore[arg-type]
    return app
