"""The body of a scoring request, read as it streams: one image file, multipart form, or JSON with
base64. Options stand in the body, or in the query string.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from mrad.errors import MRADError
from mrad_service.errors import (
    BodyTooLargeError,
    ClientGoneError,
    InvalidRequestError,
    TooManyImagesError,
    UnsupportedMediaError,
)
from mrad_service.schemas.score import ScoreBody, ScoreOptions
from mrad_service.scoring.json_body import JsonBody
from mrad_service.settings import Settings

MAX_FIELD_BYTES = 4096
MAX_AREA_BYTES = 1 << 16
"""Of a region of interest: some thousand points."""
AREAS = {"roi", "parts"}
"""Fields that hold JSON."""
MAX_VALUES = 1 << 14
"""JSON values of a request: some for each image, and the points of a region."""
MAX_HEADER_BYTES = 4096
MAX_FIELDS = 64
EXTENDED = re.compile(
    rb"filename\*\s*=\s*([\w.+-]*)'[^']*'([\w.!#$&+^`|~%-]*)", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class Submitted:
    """What a request brought."""

    names: list[str]
    images: list[bytes | MRADError]
    """The error of one that is too large or no base64: it spoils its own result only."""
    options: ScoreOptions


async def read_submission(request: Request, settings: Settings) -> Submitted:
    """Read the body by its Content-Type; as a whole it is limited before it comes here.

    Raises `UnsupportedMediaError`, `InvalidRequestError`, `TooManyImagesError`, `ClientGoneError`.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    query = _query(request)
    try:
        if kind.startswith(b"image/"):
            return await _file(request, query, settings)
        if kind == b"multipart/form-data":
            return await _multipart(request, query, parameters.get(b"boundary", b""), settings)
        if kind == b"application/json":
            body = JsonBody(MAX_VALUES + 4 * settings.max_images)
            async for chunk in request.stream():
                body.feed(chunk)
            return await run_in_threadpool(partial(_json, body, query, settings))
    except ClientDisconnect:
        raise ClientGoneError("the client left while it was sending") from None
    raise UnsupportedMediaError(
        "send multipart/form-data with images, application/json, or one image file as image/png, "
        "image/jpeg or any other image/ type"
    )


def _query(request: Request) -> dict[str, str]:
    """Options of the query string. Raises `InvalidRequestError` for one that is said twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise InvalidRequestError(f"the query string says {name!r} twice")
        found[name] = value
    return found


def _once(query: dict[str, str], body: Iterable[str]) -> None:
    """Raise `InvalidRequestError` for an option that stands in the query string and in the body."""
    both = sorted(query.keys() & set(body))
    if both:
        raise InvalidRequestError(
            f"{both} stand in the query string and in the body; say them once"
        )


async def _file(request: Request, query: dict[str, str], settings: Settings) -> Submitted:
    """The body is the image; nothing is parsed."""
    name = query.pop("name", "")[:500]
    options = _options(query)
    data, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= settings.max_file_bytes:
            data.append(chunk)
    if not size:
        raise InvalidRequestError("the body is empty: send the bytes of an image file")
    image = b"".join(data) if size <= settings.max_file_bytes else _too_large(settings)
    return Submitted([name], [image], options)


async def _multipart(
    request: Request, query: dict[str, str], boundary: bytes, settings: Settings
) -> Submitted:
    if not boundary:
        raise InvalidRequestError("multipart/form-data without a boundary")
    form = FormReader(boundary, settings)
    async for chunk in request.stream():
        form.feed(chunk)
    return form.submitted(query)


class FormReader:
    """Collects fields and files chunk by chunk; what is over a limit is never kept."""

    def __init__(self, boundary: bytes, settings: Settings) -> None:
        self._settings = settings
        self._fields: dict[str, str] = {}
        self._names: list[str] = []
        self._images: list[bytes | MRADError] = []
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = bytearray(), bytearray()
        self._field: str | None = None
        self._data = bytearray()
        self._too_large = False
        self._ended = False
        take: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_header_field": partial(self._collect, self._header),
            "on_header_value": partial(self._collect, self._value),
            "on_header_end": self._header_done,
            "on_headers_finished": self._headers_done,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        try:
            self._parser = MultipartParser(boundary, take)  # type: ignore[arg-type]
        except Exception as error:
            raise InvalidRequestError(f"the multipart boundary is not usable: {error}") from error

    def feed(self, chunk: bytes) -> None:
        """The next bytes. Raises `InvalidRequestError`, `TooManyImagesError`."""
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise InvalidRequestError(f"the multipart body is broken: {error}") from error

    def submitted(self, query: dict[str, str]) -> Submitted:
        """All of it, with the options of the query string. Raises `InvalidRequestError` for a body that was cut or holds no image."""
        if not self._ended:
            raise InvalidRequestError("the multipart body ends too early")
        if not self._images:
            raise InvalidRequestError("no image: send files in the form field `images`")
        _once(query, self._fields)
        return Submitted(self._names, self._images, _options(query | self._fields))

    def _begin(self) -> None:
        self._headers = {}
        self._data = bytearray()
        self._too_large = False

    def _collect(self, into: bytearray, data: bytes, start: int, end: int) -> None:
        into += data[start:end]
        if len(into) > MAX_HEADER_BYTES:
            raise InvalidRequestError("a part's header is too long")

    def _header_done(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()
        if len(self._headers) > MAX_FIELDS:
            raise InvalidRequestError("a part has too many headers")

    def _headers_done(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field != "images":
            if b"filename" in options or EXTENDED.search(disposition):
                raise InvalidRequestError(
                    f"form field {self._field!r} holds a file: send images in the field `images`"
                )
            if len(self._fields) >= MAX_FIELDS:
                raise InvalidRequestError("too many form fields")
            if self._field in self._fields:
                raise InvalidRequestError(f"the form says {self._field!r} twice")
            return
        if len(self._images) >= self._settings.max_images:
            raise TooManyImagesError(f"more than {self._settings.max_images} images in one request")
        self._names.append(file_name(disposition, options)[:500])

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._too_large:
            return
        self._data += data[start:end]
        if self._field == "images":
            if len(self._data) > self._settings.max_file_bytes:
                self._too_large, self._data = True, bytearray()
        elif len(self._data) > (MAX_AREA_BYTES if self._field in AREAS else MAX_FIELD_BYTES):
            raise InvalidRequestError(f"form field {self._field!r} is too long")

    def _end(self) -> None:
        if self._field == "images":
            self._images.append(
                _too_large(self._settings) if self._too_large else bytes(self._data)
            )
        elif self._field:
            self._fields[self._field] = self._data.decode("utf-8", "replace")
        self._data = bytearray()

    def _finish(self) -> None:
        self._ended = True


def _json(body: JsonBody, query: dict[str, str], settings: Settings) -> Submitted:
    given = body.value()
    images = given.get("images") if isinstance(given, dict) else None
    if isinstance(images, list) and len(images) > settings.max_images:
        raise TooManyImagesError(f"more than {settings.max_images} images in one request")
    try:
        sent = ScoreBody.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError(invalid_fields(error)) from error
    names, images = [], []
    for image in sent.images:
        data, name = (image, "") if isinstance(image, str) else (image.data, image.name)
        names.append(name[:500])
        images.append(_decode(data, settings))
    own = sent.model_dump(exclude={"images"}, exclude_unset=True)
    _once(query, own)
    options = _options(query).model_dump(exclude_unset=True)
    return Submitted(names, images, ScoreOptions.model_validate(options | own))


def _decode(data: str, settings: Settings) -> bytes | MRADError:
    if (
        len(data) > settings.max_file_bytes * 4 // 3 * 79 // 76 + 256
    ):  # line breaks, and a data: URI
        return _too_large(settings)
    try:
        return from_base64(data)
    except (binascii.Error, ValueError) as error:
        return InvalidRequestError(f"the image is not base64: {error}")


def from_base64(text: str) -> bytes:
    """A file's bytes; line breaks (of the program `base64`) and `data:` URIs (of browsers) are fine.

    Raises `ValueError`.
    """
    if text[:5].lower() == "data:":
        kind, comma, text = text.partition(",")
        if not comma or not kind.lower().rstrip().endswith(";base64"):
            raise ValueError("a data: URI without ;base64,")
    return base64.b64decode("".join(text.split()), validate=True)


def file_name(disposition: bytes, options: dict[bytes, bytes]) -> str:
    """The name that a part gives its file; `filename*=` (RFC 5987) wins over `filename=`."""
    found = EXTENDED.search(disposition)
    if found is not None:
        charset, quoted = found.group(1).decode("ascii"), found.group(2).decode("ascii")
        with suppress(
            LookupError
        ):  # of a character set that nobody knows `filename=` is what is left
            return unquote(quoted, encoding=charset or "utf-8", errors="replace")
    return options.get(b"filename", b"").decode("utf-8", "replace")


def _options(fields: dict[str, str]) -> ScoreOptions:
    given: dict[str, Any] = {name: value for name, value in fields.items() if value != ""}
    if "fields" in given:
        given["fields"] = [part.strip() for part in given["fields"].split(",") if part.strip()]
    for name in AREAS & given.keys():
        area = JsonBody(MAX_VALUES, f"field {name}")
        area.feed(given[name].encode())
        given[name] = area.value()
    try:
        return ScoreOptions.model_validate(given)
    except ValidationError as error:
        raise InvalidRequestError(invalid_fields(error)) from error


def _too_large(settings: Settings) -> BodyTooLargeError:
    return BodyTooLargeError.of_file(settings.max_file_bytes)


def invalid_fields(error: ValidationError) -> str:
    """What pydantic found, in a line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in found)
