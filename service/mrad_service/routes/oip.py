"""`/v2`: the Open Inference Protocol, for clients that were not written for this server."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from mrad import __version__
from mrad.errors import CalibrationError, MRADError
from mrad.images.options import ReadOptions
from mrad.thresholds.verdicts import Verdicts
from mrad.types import Prediction
from mrad_service.errors import ClientGoneError, InvalidRequestError, UnknownBankError
from mrad_service.middleware.access import known_query, require
from mrad_service.models.loading import Model
from mrad_service.oip.codec import (
    HEADER_LENGTH,
    INPUTS,
    OUTPUTS,
    VERSION,
    Body,
    coding_of,
    pack,
    read,
    write,
)
from mrad_service.routes.score import reading_of, runtime_of
from mrad_service.scheduler.queue import Job, Wanted
from mrad_service.scoring.render import png16
from mrad_service.scoring.results import Budget
from mrad_service.scoring.verdict import verdicts_of


def oip_router() -> APIRouter:
    """The routes, each with its scope."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    read_scope = [Depends(require("score"))]
    router.get("", dependencies=read_scope)(server_metadata)
    router.get("/health/live")(server_live)
    router.get("/health/ready", response_class=Response)(server_ready)
    for model in ("/models/{name}", "/models/{name}/versions/{version}"):
        router.get(model, dependencies=read_scope)(model_metadata)
        router.get(f"{model}/ready", dependencies=read_scope, response_class=Response)(model_ready)
        router.post(
            f"{model}/infer",
            dependencies=[*read_scope, Depends(known_query)],
            response_class=Response,
            openapi_extra={"requestBody": _BODY},
        )(infer)
    return router


async def server_metadata() -> dict[str, Any]:
    """Name, version, extensions."""
    return {"name": "mrad", "version": __version__, "extensions": ["binary_tensor_data"]}


async def server_live() -> dict[str, bool]:
    """200 while the process answers at all."""
    return {"live": True}


async def server_ready(request: Request) -> Response:
    """200 when inference requests are welcome, 503 otherwise."""
    why = runtime_of(request).why_not_ready()
    return JSONResponse({"ready": not why}, 503 if why else 200)


def model_of(request: Request, name: str, version: str) -> Model:
    """The bank that a model's name and version mean: there is one version of each.

    Raises `UnknownBankError`, `BankNotLoadedError`, `InvalidRequestError`.
    """
    model = runtime_of(request).model(name)
    if not (version.isascii() and version.isdigit()):
        raise InvalidRequestError(f"a version is a whole number, not {version[:50]!r}")
    if version.lstrip("0") != VERSION:
        raise UnknownBankError(f"there is no version {version[:50]} of model {name!r}, only 1")
    return model


async def model_ready(request: Request, name: str, version: str = VERSION) -> Response:
    """200 for a bank in memory."""
    model_of(request, name, version)
    return JSONResponse({"name": name, "ready": True})


async def model_metadata(request: Request, name: str, version: str = VERSION) -> dict[str, Any]:
    """Inputs (one of them) and outputs of a bank."""
    model_of(request, name, version)
    described = [
        [{"name": n, "datatype": kind, "shape": shape} for n, (kind, shape) in tensors.items()]
        for tensors in (INPUTS, OUTPUTS)
    ]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "mrad",
        "inputs": described[0],
        "outputs": described[1],
    }


async def infer(request: Request, name: str, version: str = VERSION) -> Response:
    """Judge images: `images`, encoded files, or `pixels`, uint8 [n, height, width, 3].

    Parameters: `threshold` or `target_fpr`, `object`, `bit_depth`, `strict_input`. Warnings stand in the
    answer's parameters too, whatever outputs were asked for. Without a threshold the verdict is empty; `p_value`
    needs a calibration, `probability` one with defects. One image that cannot be read fails the request: the protocol has no place
    for the problem of a single element.
    """
    runtime = runtime_of(request)
    deadline = runtime.deadline(request)
    model = model_of(request, name, version)
    body = Body(request.headers.get(HEADER_LENGTH))
    try:
        async for chunk in request.stream():
            body.feed(chunk)
    except ClientDisconnect:
        raise ClientGoneError("the client left while it was sending") from None
    settings = runtime.settings
    question = await run_in_threadpool(partial(read, body, settings))
    inference = question.inference
    model = await runtime.model_of(name, _object(inference.parameters))
    verdicts = _verdicts(model, inference.parameters)
    notes = [verdicts.note] if verdicts.note else []
    outputs = {output.name for output in inference.wanted}
    if "probability" in outputs and model.calibrated().model is None:
        raise CalibrationError(
            "the bank was calibrated on good images alone, which give no probability of a defect: ask "
            "for the output p_value, or calibrate with defective images too"
        )
    if "p_value" in outputs:
        model.calibrated()
    wanted, budget = Wanted(maps="map" in outputs), Budget(settings.max_response_bytes)

    def finish(index: int, prediction: Prediction, image: Image.Image) -> dict[str, Any]:
        runtime.watch(model, prediction)
        prediction = verdicts.as_taught(prediction)
        values, taught = prediction.anomaly_map, prediction.recognised
        known = [] if taught is None else [taught.text]
        shown = png16(values) if values is not None else b""
        budget.spend(len(shown))
        return {
            "score": prediction.score,
            "class_score": prediction.class_score,
            "verdict": (verdicts.verdict(prediction.score) or "").encode(),
            "probability": verdicts.probability(prediction.score),
            "p_value": verdicts.p_value(prediction.score),
            "map": shown,
            "warnings": json.dumps([*prediction.warnings, *notes, *known]).encode(),
        }

    job = Job(
        question.images,
        model,
        finish,
        wanted=wanted,
        deadline=deadline,
        reading=_reading(model, inference.parameters),
    )
    outcomes = await runtime.run(job, request)
    for index, outcome in enumerate(outcomes):
        runtime.metrics.judged(outcome.code if isinstance(outcome, MRADError) else "ok")
        if isinstance(outcome, MRADError):
            raise type(outcome)(f"image {index}: {outcome}") from outcome
    doubtful = {i: o["warnings"].decode() for i, o in enumerate(outcomes) if o["warnings"] != b"[]"}
    columns = {output: [outcome[output] for outcome in outcomes] for output in outputs}
    text, header = await run_in_threadpool(partial(write, inference, model.name, columns, doubtful))
    headers = {} if header is None else {HEADER_LENGTH: str(header)}
    coding = coding_of(request.headers.get("accept-encoding", ""))
    if coding:
        text = await run_in_threadpool(partial(pack, text, coding))
        headers["Content-Encoding"] = coding
    kind = "application/json" if header is None else "application/octet-stream"
    return Response(text, media_type=kind, headers=headers)


def _object(parameters: dict[str, Any]) -> str | None:
    name = parameters.get("object")
    if name is not None and not isinstance(name, str):
        raise InvalidRequestError("the parameter object is a text: a product's name")
    return name


def _reading(model: Model, parameters: dict[str, Any]) -> ReadOptions:
    depth, strict = parameters.get("bit_depth"), parameters.get("strict_input")
    if depth is not None and (type(depth) is not int or not 1 <= depth <= 32):
        raise InvalidRequestError("the parameter bit_depth is a number from 1 to 32")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequestError("the parameter strict_input is true or false")
    return reading_of(model, depth, strict)


def _verdicts(model: Model, parameters: dict[str, Any]) -> Verdicts:
    given = {name: parameters.get(name) for name in ("threshold", "target_fpr")}
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidRequestError(f"the parameter {name} is a number")
        if value is not None and not abs(value) < 1e300:
            raise InvalidRequestError(f"the parameter {name} is a finite number")
    return verdicts_of(model, **given)


_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["inputs"]},
            "example": {
                "inputs": [
                    {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 2, 3],
                     "data": [0, 0, 0, 255, 255, 255]}
                ],
                "outputs": [{"name": "score"}],
            },
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}  # fmt: skip
