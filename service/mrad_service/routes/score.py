"""`POST /v1/score`: images in, a result for each out, in the order submitted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from mrad.errors import MRADError
from mrad.images.options import ReadOptions
from mrad.types import Prediction
from mrad_service.middleware.access import require
from mrad_service.models.loading import Model
from mrad_service.problems import log_failures
from mrad_service.runtime import Runtime
from mrad_service.scheduler.queue import Job
from mrad_service.schemas.score import (
    AreaBody,
    EncodedImage,
    PartsBody,
    ScoreBody,
    ScoreOptions,
    Scores,
)
from mrad_service.scoring.results import Judge, result_of, whole_failure
from mrad_service.scoring.uploads import read_submission

SMALL = 1 << 20
"""Bytes of maps up to which the answer is written on the event loop."""


def runtime_of(request: Request) -> Runtime:
    """The application's runtime."""
    return cast(Runtime, request.app.state.runtime)


def score_router() -> APIRouter:
    """The routes, each with its scope."""
    router = APIRouter(prefix="/v1", tags=["score"])
    router.post(
        "/score",
        dependencies=[Depends(require("score"))],
        response_model=Scores,
        openapi_extra={"requestBody": _request_body(), "parameters": [_TIMEOUT, *_query_options()]},
    )(score)
    return router


async def score(request: Request) -> Response:
    """Judge images. One that cannot be read gets a problem of its own; the others are judged.

    Multipart: files in the field `images`, options as form fields. JSON: base64 in `images`. Any
    `image/` type: the body is one image file, which costs least. Options may also stand in the query
    string, where an image file has them, and its `name`.
    Scores and map values are raw probabilities in [0, 1]; their order counts. `verdict` needs a
    threshold: the request's, or the bank's calibration.
    """
    runtime = runtime_of(request)
    deadline = runtime.deadline(request)
    settings = runtime.settings
    sent = await read_submission(request, settings)
    model = await runtime.model_of(sent.options.bank, sent.options.object)
    judge = Judge(model, sent.options, settings.max_response_bytes)

    def finish(index: int, prediction: Prediction, image: Image.Image) -> dict[str, Any]:
        runtime.watch(model, prediction)
        return judge(index, prediction, image)

    job = Job(
        sent.images,
        model,
        finish,
        wanted=judge.wanted,
        deadline=deadline,
        layout=judge.layout,
        reading=reading_of(model, sent.options.bit_depth, sent.options.strict_input),
    )
    outcomes = await runtime.run(job, request)
    for outcome in outcomes:
        runtime.metrics.judged(outcome.code if isinstance(outcome, MRADError) else "ok")
    failure = whole_failure(outcomes)
    if failure is not None:
        raise failure
    log_failures(sent.names, outcomes)
    results = [
        result_of(index, name, outcome)
        for index, (name, outcome) in enumerate(zip(sent.names, outcomes))
    ]
    body = {"results": results, "bank": model.name}
    heavy = judge.wanted.maps and len(results) > 1
    text = await run_in_threadpool(_dump, body) if heavy else _dump(body)
    return Response(text, media_type="application/json")


def reading_of(model: Model, bit_depth: int | None, strict: bool | None) -> ReadOptions:
    """How a request's images are read: as the server is set, but for what the request says."""
    options = model.detectors[0].reading
    if bit_depth is not None:
        options = replace(options, bit_depth=bit_depth)
    return options if strict is None else replace(options, strict=strict)


def _dump(body: dict[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "required": False,
    "description": "Seconds after which the answer is of no use; 504 then.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def _options_as_text() -> dict[str, Any]:
    """The schema of the options as form fields and as parameters of the query string."""
    form = ScoreOptions.model_json_schema()
    del form["$defs"]  # the models inside are written out: nothing else brings them in
    form["properties"]["fields"] = {"type": "string", "examples": ["score,verdict"]}
    size, box = [3840, 3200], {"box": [0, 0, 1920, 3200]}
    examples = {"roi": {"size": size, **box}, "parts": {"size": size, "parts": {"lid": box}}}
    for name, example in examples.items():
        form["properties"][name] = {
            "type": "string",
            "description": form["properties"][name]["description"],
            "examples": [json.dumps(example)],
        }
    return form


def _query_options() -> list[dict[str, Any]]:
    """Without defaults: a generated client would send them beside those of the body."""
    name = {"type": "string", "description": "Of a single image file, as results show it."}
    properties = {"name": name} | _options_as_text()["properties"]
    for schema in properties.values():
        schema.pop("default", None)
    return [
        {"name": option, "in": "query", "required": False, "schema": schema}
        for option, schema in properties.items()
    ]


def _request_body() -> dict[str, Any]:
    form = _options_as_text()
    form["properties"]["images"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
    }
    form["required"] = ["images"]
    form["properties"]["images"]["description"] = "image files, one part each"
    body = ScoreBody.model_json_schema()
    del body["$defs"]
    body["properties"]["roi"]["anyOf"][0] = AreaBody.model_json_schema()
    parts = PartsBody.model_json_schema()
    parts["properties"]["parts"]["additionalProperties"] = parts.pop("$defs")["ShapeBody"]
    body["properties"]["parts"]["anyOf"][0] = parts
    body["properties"]["images"]["items"]["anyOf"][0] = EncodedImage.model_json_schema()
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": body,
                "examples": {
                    "one": {"value": {"images": [{"name": "dot.png", "data": pixel}]}},
                    "map": {"value": {"images": [pixel], "map": "png16", "evidence": 3}},
                },
            },
        },
    }
