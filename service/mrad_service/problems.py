"""Errors as RFC 9457 problem documents: one table from `code` to status and title."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from mrad.errors import MRADError
from mrad_service.errors import DeviceMemoryError, StorageError, StorageFullError

log = structlog.get_logger(__name__)
MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED = 499

STATUS: dict[str, int] = {
    # what the caller sent
    "invalid_image": 422,
    "image_too_large": 413,
    "doubtful_image": 422,
    "layout_mismatch": 422,
    "invalid_mask": 422,
    "calibration_error": 422,
    "invalid_request": 422,
    "unsupported_media_type": 415,
    "body_too_large": 413,
    "too_many_images": 413,
    "response_too_large": 413,
    "upload_timeout": 408,
    "unauthenticated": 401,
    "forbidden": 403,
    "cross_origin": 403,
    "read_only": 403,
    # names
    "entry_not_found": 404,
    "unknown_bank": 404,
    "unknown_object": 404,
    # the state of things
    "entry_exists": 409,
    "idempotency_conflict": 409,
    "one_class_memory": 409,
    "no_good_parts": 409,
    "empty_level": 409,
    "bank_rebuilt": 409,
    "bank_not_loaded": 409,
    "calibrating": 409,
    "bank_not_found": 409,
    "bank_corrupt": 409,
    "bank_version": 409,
    "bank_error": 409,
    "log_corrupt": 409,
    "encoder_mismatch": 409,
    "weights_not_found": 409,
    "unsupported_encoder": 409,
    "invalid_checkpoint": 409,
    "head_error": 409,
    "bank_locked": 423,
    # load and failure
    "queue_full": 429,
    "client_gone": CLIENT_CLOSED,
    "deadline_exceeded": 504,
    "draining": 503,
    "device_out_of_memory": 503,
    "device_lost": 503,
    "log_unwritable": 503,
    "keys_file": 503,
    "audit_unwritable": 503,
    "storage_failed": 503,
    "storage_full": 507,
    "bank_unwritable": 507,
    "memory_closed": 503,
}
"""Codes that are not here are 500: an error nobody expected to reach a client."""

RETRY_AFTER = {
    "draining": 5,
    "audit_unwritable": 30,
    "storage_failed": 30,
    "storage_full": 30,
    "device_out_of_memory": 2,
    "device_lost": 30,
    "memory_closed": 5,
}
"""Seconds, where trying again helps; `queue_full` brings its own."""


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(examples=["urn:mrad:problem:invalid_image"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["invalid_image"], description="stable: match on this")
    detail: str = Field(examples=["the image is not an image in a known format"])
    request_id: str | None = None
    errors: list[dict[str, Any]] | None = Field(None, description="where the request is wrong")


def status_of(error: MRADError) -> int:
    """HTTP status of an error; the nearest ancestor with a code of its own decides."""
    return STATUS.get(error.code, 500)


def describe(
    status: int, code: str, detail: str, request_id: str | None = None, **more: Any
) -> dict[str, Any]:
    """A problem document as a dict."""
    title = "Client Closed Request" if status == CLIENT_CLOSED else HTTPStatus(status).phrase
    problem = Problem(
        type=f"urn:mrad:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        request_id=request_id,
        **more,
    )
    return problem.model_dump(exclude_none=True)


def problem_of(error: MRADError, request_id: str | None = None) -> dict[str, Any]:
    """The problem document of an error. What is 500 keeps its text to the log."""
    status = status_of(error)
    detail = str(error) if status != 500 else "the server failed; its log has this request's id"
    return describe(status, error.code, detail, request_id)


def headers_of(error: MRADError) -> dict[str, str]:
    """Retry-After and WWW-Authenticate, where they help."""
    headers = {}
    wait = getattr(error, "retry_after", RETRY_AFTER.get(error.code))
    if wait is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = 'Bearer realm="mrad"'
    return headers


def log_failures(names: Sequence[str], outcomes: Sequence[object]) -> None:
    """Log what failed by no fault of the images, with the traceback; one spoils its own result alone."""
    for name, outcome in zip(names, outcomes):
        if isinstance(outcome, MRADError) and status_of(outcome) == 500:
            log.error("an image failed", image=name, code=outcome.code, exc_info=outcome)


def respond(error: MRADError, scope: Scope) -> JSONResponse:
    """The whole answer to a request that ends with an error."""
    return answer(problem_of(error, _id(scope)), scope, headers_of(error))


def answer(
    body: dict[str, Any], scope: Scope, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem document as an answer; under /v2 with the member that that protocol reads."""
    if scope["path"].startswith("/v2"):
        body = body | {"error": body["detail"]}
    return JSONResponse(body, body["status"], headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem document."""

    @app.exception_handler(MRADError)
    async def known(request: Request, error: MRADError) -> Response:
        if status_of(error) == 500:
            log.error("failed", code=error.code, detail=str(error), exc_info=error)
        return respond(error, request.scope)

    @app.exception_handler(torch.OutOfMemoryError)
    @app.exception_handler(MemoryError)
    async def short(request: Request, error: Exception) -> Response:
        log.error("out of memory", exc_info=error)
        problem = DeviceMemoryError("there was no memory for this image; try again later")
        return respond(problem, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
        detail = "; ".join(f"{e['where']}: {e['what']}" for e in errors) or "invalid request"
        body = describe(422, "invalid_request", detail, _id(request.scope), errors=errors)
        return answer(body, request.scope)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        cause = error.__cause__
        if isinstance(cause, MRADError):  # raised while a form was read
            return respond(cause, request.scope)
        if isinstance(cause, OSError):  # a form's file could not be kept: not the client's fault
            log.error("the folder for temporary files cannot be written", exc_info=cause)
            return respond(storage_error(cause), request.scope)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(allowed(app, request.scope))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
        body = describe(error.status_code, code, str(error.detail), _id(request.scope))
        return answer(body, request.scope, headers)

    @app.exception_handler(OSError)
    async def disk(request: Request, error: OSError) -> Response:
        log.error("failed", exc_info=error)
        return respond(storage_error(error), request.scope)


def storage_error(error: OSError) -> MRADError:
    """What an error of the operating system is for a client."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError("the server's disk is full; nothing was changed")
    return StorageError(
        "the server's disk cannot be read or written; its log has this request's id"
    )


def allowed(app: FastAPI, scope: Scope) -> list[str]:
    """Methods that an address has, of whatever route."""
    found = {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(r.matches({**scope, "method": method})[0] is Match.FULL for r in app.router.routes)
    }
    return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


def _id(scope: Scope) -> str | None:
    return scope.get("state", {}).get("request_id")
