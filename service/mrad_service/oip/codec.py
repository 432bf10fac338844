"""The Open Inference Protocol's request and answer (v2), with the binary tensor extension."""

from __future__ import annotations

import base64
import gzip
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mrad.types import FloatArray
from mrad_service.errors import BodyTooLargeError, InvalidRequestError, TooManyImagesError
from mrad_service.scoring.json_body import JsonBody
from mrad_service.scoring.uploads import from_base64, invalid_fields
from mrad_service.settings import Settings

Array = npt.NDArray[Any]
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_VALUES = 1 << 20
"""JSON values of a request: the pixels of some 590 x 590; more of them travel as binary data."""
PARAMETERS = (
    "threshold",
    "target_fpr",
    "object",
    "bit_depth",
    "strict_input",
    "binary_data_output",
)
VERSION = "1"
"""Of every model."""
IMAGES, PIXELS = "images", "pixels"
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "score": ("FP32", [-1]),
    "class_score": ("FP32", [-1]),
    "verdict": ("BYTES", [-1]),
    "probability": ("FP32", [-1]),
    "p_value": ("FP32", [-1]),
    "map": ("BYTES", [-1]),
    "warnings": ("BYTES", [-1]),
}
"""Name -> datatype and shape. `map` holds PNG files of 16 bit, for inputs differ in size;
`warnings` a JSON list for each image."""
INPUTS: dict[str, tuple[str, list[int]]] = {
    IMAGES: ("BYTES", [-1]),
    PIXELS: ("UINT8", [-1, -1, -1, 3]),
}
"""One of them: encoded files, or RGB pixels."""


class Tensor(BaseModel):
    """An input as JSON describes it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=4)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class Wanted(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: dict[str, Any] = {}


class Inference(BaseModel):
    """The JSON part of a request."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, max_length=1000)
    model_name: str | None = None
    """Clients of some servers repeat it; the address decides."""
    parameters: dict[str, Any] = {}
    inputs: list[Tensor] = Field(min_length=1, max_length=16)
    outputs: list[Wanted] | None = Field(None, max_length=16)

    @property
    def wanted(self) -> list[Wanted]:
        """The outputs; those that every bank gives where none are named."""
        if self.outputs is not None:
            return self.outputs
        return [Wanted(name=name) for name in ("score", "class_score", "verdict")]

    def is_binary(self, output: Wanted) -> bool:
        """How this output travels."""
        default = self.parameters.get("binary_data_output", False)
        return bool(output.parameters.get("binary_data", default))


@dataclass(frozen=True)
class Question:
    """A request as it is understood."""

    inference: Inference
    images: list[bytes | Array]


class Body:
    """Collects a request as it streams in: JSON, then binary data."""

    def __init__(self, header_length: str | None) -> None:
        """`header_length`: bytes of JSON; None: all of it. Raises `InvalidRequestError`."""
        self.header = JsonBody(MAX_VALUES, "inference header")
        self.tail = bytearray()
        self._left = None if header_length is None else _length(header_length)
        self.raw = self._left == 0
        """Whether there is no JSON: the body is the one image."""

    def feed(self, chunk: bytes) -> None:
        """More of it. Raises `InvalidRequestError`."""
        if self._left is None:
            self.header.feed(chunk)
            return
        head = chunk[: self._left]
        if head:
            self.header.feed(head)
            self._left -= len(head)
        self.tail += chunk[len(head) :]

    def close(self) -> None:
        """That was all. Raises `InvalidRequestError` where the header is longer than the body."""
        if self._left:
            raise InvalidRequestError(f"{HEADER_LENGTH} does not fit the body")


def read(body: Body, settings: Settings) -> Question:
    """Take a body apart. Raises `InvalidRequestError`, `TooManyImagesError`, `BodyTooLargeError`."""
    body.close()
    if body.raw:
        return _only(bytes(body.tail), settings)
    try:
        inference = Inference.model_validate(body.header.value())
    except ValidationError as error:
        raise InvalidRequestError(invalid_fields(error)) from error
    _check_parameters("request", inference.parameters, PARAMETERS)
    for tensor in inference.inputs:
        _check_parameters(f"input {tensor.name!r}", tensor.parameters, ("binary_data_size",))
    for output in inference.wanted:
        _check_parameters(f"output {output.name!r}", output.parameters, ("binary_data",))
    unknown = [output.name for output in inference.wanted if output.name not in OUTPUTS]
    if unknown:
        raise InvalidRequestError(f"unknown outputs {unknown}; there are {list(OUTPUTS)}")
    if len(inference.inputs) != 1 or inference.inputs[0].name not in INPUTS:
        raise InvalidRequestError(f"send one input, named {' or '.join(INPUTS)}")
    tensor = inference.inputs[0]
    datatype, shape = INPUTS[tensor.name]
    count = tensor.shape[0]
    if tensor.datatype != datatype or len(tensor.shape) not in (len(shape), 2):
        raise InvalidRequestError(f"{tensor.name} is {datatype} {shape}")
    if min(tensor.shape) < 1 or (tensor.name == PIXELS and len(tensor.shape) != 4):
        raise InvalidRequestError(f"{tensor.name} has the shape {tensor.shape}")
    if count > settings.max_images:
        raise TooManyImagesError(f"more than {settings.max_images} images in one request")
    raw = _raw(tensor, bytes(body.tail))
    images = _pixels(tensor, raw) if tensor.name == PIXELS else _files(tensor, raw)
    for image in images:
        if isinstance(image, bytes) and len(image) > settings.max_file_bytes:
            raise BodyTooLargeError.of_file(settings.max_file_bytes)
    return Question(inference, images)


def _only(file: bytes, settings: Settings) -> Question:
    """A body without JSON: one encoded file; the answer is binary, as that of Triton is."""
    if len(file) > settings.max_file_bytes:
        raise BodyTooLargeError.of_file(settings.max_file_bytes)
    tensor = Tensor(name=IMAGES, datatype="BYTES", shape=[1])
    return Question(Inference(inputs=[tensor], parameters={"binary_data_output": True}), [file])


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidRequestError(f"{HEADER_LENGTH} is a number of bytes")
    return int(text)


def _check_parameters(where: str, given: dict[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise InvalidRequestError(
            f"unknown parameters {unknown[:5]} of the {where}; there are {list(known)}"
        )


def _raw(tensor: Tensor, tail: bytes) -> bytes | None:
    """The bytes behind the JSON, None where the data stand inside it."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None:
            raise InvalidRequestError(f"{tensor.name} brings no data")
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size != len(tail):
        raise InvalidRequestError(f"{tensor.name}: binary_data_size does not fit the body")
    return tail


def _files(tensor: Tensor, raw: bytes | None) -> list[bytes | Array]:
    count = math.prod(tensor.shape)
    if count != tensor.shape[0]:
        raise InvalidRequestError(f"{IMAGES} has the shape {tensor.shape}, not [n]")
    files: list[bytes | Array]
    if raw is not None:
        files = list(islice(split_bytes(raw), count + 1))
    else:
        try:
            texts = islice(flat(tensor.data or []), count + 1)
            files = [from_base64(text) for text in texts]
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"inside JSON, {IMAGES} are base64; send them as binary data instead: {error}"
            ) from error
    if len(files) != count:
        found = f"more than {count}" if len(files) > count else len(files)
        raise InvalidRequestError(f"{IMAGES} has the shape {tensor.shape} but {found} elements")
    return files


def _pixels(tensor: Tensor, raw: bytes | None) -> list[bytes | Array]:
    try:
        if raw is not None:
            values = np.frombuffer(raw, np.uint8)
        else:
            values = np.frombuffer(bytes(list(flat(tensor.data or []))), np.uint8)
        if len(values) != math.prod(tensor.shape):
            raise ValueError(f"there are {len(values)} values")
        return list(values.reshape(tensor.shape))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidRequestError(f"{PIXELS} does not fit its shape: {error}") from error


def flat(data: Sequence[Any]) -> Iterator[Any]:
    """The elements of nested lists."""
    for element in data:
        if isinstance(element, list):
            yield from flat(element)
        else:
            yield element


def split_bytes(raw: bytes) -> Iterator[bytes]:
    """BYTES elements: each its length (uint32, little endian), then its bytes."""
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise InvalidRequestError("a BYTES tensor ends inside a length")
        (size,) = struct.unpack_from("<I", raw, place)
        if place + 4 + size > len(raw):
            raise InvalidRequestError("a BYTES tensor ends inside an element")
        yield raw[place + 4 : place + 4 + size]
        place += 4 + size


def write(
    inference: Inference,
    model: str,
    columns: dict[str, list[Any]],
    doubtful: dict[int, str] | None = None,
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where binary data follow.

    `doubtful`: index of an image -> its warnings, JSON; they become a parameter of the answer.
    """
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output in inference.wanted:
        datatype, values = OUTPUTS[output.name][0], columns[output.name]
        facts: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": [len(values)]}
        if inference.is_binary(output):
            tail.append(_packed(datatype, values))
            facts["parameters"] = {"binary_data_size": len(tail[-1])}
        elif datatype == "BYTES":
            facts["data"] = [_text(output.name, value) for value in values]
        else:
            facts["data"] = values
        described.append(facts)
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": described}
    if doubtful:
        head["parameters"] = {f"warnings_{index}": text for index, text in doubtful.items()}
    if inference.id is not None:
        head["id"] = inference.id
    text = json.dumps(head, allow_nan=False).encode()
    return b"".join([text, *tail]), len(text) if tail else None


def coding_of(accepted: str) -> str:
    """`gzip`, `deflate` or nothing: how the answer is compressed for an Accept-Encoding."""
    known = [part.split(";")[0].strip().lower() for part in accepted.split(",")]
    return next((coding for coding in ("gzip", "deflate") if coding in known), "")


def pack(data: bytes, coding: str) -> bytes:
    """Compressed, quickly rather than small."""
    return gzip.compress(data, 1) if coding == "gzip" else zlib.compress(data, 1)


def _packed(datatype: str, values: list[Any]) -> bytes:
    if datatype == "FP32":
        packed: FloatArray = np.asarray(values, dtype="<f4")
        return packed.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def _text(name: str, value: bytes) -> str:
    return base64.b64encode(value).decode() if name == "map" else value.decode()
