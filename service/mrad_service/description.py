"""The OpenAPI description, completed so that other people's generators make working clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from mrad_service.middleware.access import is_open

BINARY = {"type": "string", "format": "binary"}
CONTENT = {
    "/v1/memory/entries/{entry_id}/thumbnail": {"image/jpeg": {"schema": BINARY}},
    "/v1/memory/export": {"application/x-tar": {"schema": BINARY}},
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
}
"""What answers 200 with something that is no JSON."""
ANY = {"application/json": {"schema": {"type": "object", "additionalProperties": True}}}
PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
STATUSES = {
    400: "no HTTP, or a form that cannot be read",
    401: "no API key, or one that is not known",
    403: "the key lacks the scope, or a page of another origin asked",
    404: "no such entry, bank, version or address",
    405: "the address has other methods; Allow names them",
    408: "the headers or the body did not arrive in time",
    409: "the state of a bank or an entry forbids it",
    413: "a body, a file or an answer over a limit",
    415: "a body of a kind that is not read here",
    422: "a request that makes no sense",
    423: "another process writes to this memory",
    429: "the queue is full; there is room after Retry-After seconds",
    431: "headers over their limit",
    500: "the server failed; its log has the request's id",
    503: "starting, stopping, out of memory on the device, or unable to write",
    504: "not done by the deadline",
    507: "the server's disk is full",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": PROBLEM}}
    for status, text in {**STATUSES, "default": "any other problem"}.items()
}
for _status in (429, 503, 507):
    PROBLEMS[_status]["headers"] = {
        "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
    }


def operation_id(route: APIRoute) -> str:
    """The function's name; the addresses with a model's version have one of their own."""
    return f"{route.name}_version" if "/versions/" in route.path_format else route.name


def complete(app: FastAPI) -> None:
    """Give the application a description with keys, files and every kind of answer."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain())
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _completed(found: dict[str, Any]) -> dict[str, Any]:
    found["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "made by `mrad keys add`"}
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            # Without keys (--no-auth) none is needed, so none is an alternative.
            operation["security"] = [] if is_open(path) else [{"key": []}, {}]
            success = operation["responses"].get("200")
            if success is not None and not success.get("content"):
                success["content"] = CONTENT.get(path, ANY)
    added = found["paths"].get("/v1/memory/entries", {}).get("post", {}).get("responses", {})
    if "201" in added:
        added["201"]["description"] = "added, on disk, and scored with"
        added["200"] = {
            "description": "a repeat: this idempotency key had added it before",
            "content": added["201"]["content"],
        }
    for schema in _schemas(found):
        if schema.pop("contentMediaType", None) == "application/octet-stream":
            schema["format"] = "binary"
        options = schema.get("anyOf", [])
        if {"type": "null"} in options and BINARY in (
            {key: value for key, value in option.items() if key != "contentMediaType"}
            | ({"format": "binary"} if "contentMediaType" in option else {})
            for option in options
        ):  # a form has no null: what is left out is left out
            del schema["anyOf"]
            schema.update(BINARY)
    return found


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Every object of the description, outer ones first."""
    if isinstance(part, dict):
        yield part
        for value in list(part.values()):
            yield from _schemas(value)
    elif isinstance(part, list):
        for value in part:
            yield from _schemas(value)
