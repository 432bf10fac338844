"""How much may be sent and answered, and for how long: counted while it streams."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrad.errors import MRADError
from mrad_service.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedMediaError,
    UploadTimeoutError,
)
from mrad_service.problems import respond
from mrad_service.scheduler.room import Room
from mrad_service.settings import Settings

SLACK = 1 << 20
"""Bytes of form fields and boundaries beside the files."""
SMALL = 64 << 10
"""Bytes of a request to a route that takes no images."""
PIECE = 256 << 10
"""Bytes of an answer that are handed to the connection at once: the rest waits until they are read."""
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyLimits:
    """ASGI middleware. Bytes count until the request is over: that is how long they are held."""

    def __init__(self, app: ASGIApp, settings: Settings, room: Room) -> None:
        """`room`: for bytes of bodies and answers of all requests."""
        self.app, self._settings, self._room = app, settings, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit(scope["method"], scope["path"])
        body = _Body(self._room, receive, limit, self._settings.upload_seconds)
        answer = _Answer(self._room, body, scope, send)
        try:
            try:
                body.announce(headers)
            except MRADError as error:
                # Of a wrong address the size is no matter: 404 and 405 come from the application.
                refusal = respond(error, scope) if _is_routed(scope) else self.app
                await refusal(scope, receive, answer)
                return
            if body.packed:
                # In place: a copy would keep the route from what is outside, which counts by it.
                scope["headers"] = _unpacked(scope["headers"])
            await self.app(scope, body.receive, answer)
        finally:
            self._room.give(body.held + answer.held)

    def _limit(self, method: str, path: str) -> int:
        """Images come in three places; an addition to the memory is one image and one mask."""
        settings = self._settings
        if method == "POST":
            if path == "/v1/memory/entries":
                return min(settings.max_body_bytes, 2 * settings.max_file_bytes + SLACK)
            if path == "/v1/score" or (path.startswith("/v2/models/") and path.endswith("/infer")):
                return settings.max_body_bytes
        return min(settings.max_body_bytes, SMALL)


class _Answer:
    """What is sent: counted before it is begun, handed over piece by piece."""

    def __init__(self, room: Room, body: _Body, scope: Scope, send: Send) -> None:
        self._room, self._body, self._scope, self._send = room, body, scope, send
        self._start: Message | None = None
        self._started = self._refused = False
        self.held = 0

    async def __call__(self, message: Message) -> None:
        """As ASGI's. Where there is no room for an answer, a refusal goes out instead."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        data: bytes = message.get("body", b"")
        if not self._started and len(data) > PIECE:
            try:
                self._room.take(len(data))
            except QueueFullError as error:
                problem = respond(error, self._scope)
                await problem(self._scope, self._body.receive, self)
                self._refused = True
                return
            self.held += len(data)
        await self._begin()
        view, last = memoryview(data), not message.get("more_body", False)
        for at in range(0, max(1, len(view)), PIECE):
            more = not last or at + PIECE < len(view)
            piece = bytes(view[at : at + PIECE])
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _begin(self) -> None:
        if self._started or self._start is None:
            return
        self._started = True
        if not self._body.complete:
            # Nobody reads the rest: without this it would be taken in and thrown away.
            MutableHeaders(scope=self._start)["Connection"] = "close"
        await self._send(self._start)


class _Body:
    def __init__(self, room: Room, receive: Receive, limit: int, seconds: float) -> None:
        self._room, self._receive, self._limit = room, receive, limit
        self._until = time.monotonic() + seconds
        self._unpack: Any = None
        self.complete = False
        self.held = 0

    @property
    def packed(self) -> bool:
        """Whether it comes compressed; what the application reads does not."""
        return self._unpack is not None

    def announce(self, headers: Headers) -> None:
        """Refuse by the headers alone, before a byte is read."""
        length = headers.get("content-length")
        self.complete = "transfer-encoding" not in headers and length in (None, "0")
        if length is not None and (len(length) > 18 or int(length) > self._limit):
            raise self._too_large()
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding in WINDOWS:
            self._unpack = zlib.decompressobj(WINDOWS[coding])
        elif coding not in ("identity", ""):
            raise UnsupportedMediaError(
                f"the body's encoding is {coding[:50]!r}; send it as it is, or gzip or deflate"
            )

    async def receive(self) -> Message:
        """As ASGI's.

        Raises `BodyTooLargeError`, `UploadTimeoutError`, `QueueFullError`, `InvalidRequestError`.
        """
        if self.complete:
            return await self._receive()
        try:
            left = max(0.0, self._until - time.monotonic())
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            raise UploadTimeoutError("the body did not arrive in time") from None
        if message["type"] != "http.request":
            return message
        data: bytes = message.get("body", b"")
        self.complete = not message.get("more_body", False)
        if self._unpack is not None:
            data = self._unpacked(data)
            message = {**message, "body": data}
        self._room.take(len(data))
        self.held += len(data)
        if self.held > self._limit:
            raise self._too_large()
        return message

    def _unpacked(self, data: bytes) -> bytes:
        """Never more than the limit allows, whatever a small body says that it would become."""
        try:
            found: bytes = self._unpack.decompress(data, self._limit - self.held + 1)
        except zlib.error as error:
            raise InvalidRequestError(f"the body is not compressed as it says: {error}") from error
        if self.complete and not self._unpack.eof and self.held + len(found) <= self._limit:
            raise InvalidRequestError("the compressed body ends too early")
        return found

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body has more than {self._limit} bytes")


def _is_routed(scope: Scope) -> bool:
    """Whether a route takes the request, which may read its body then."""
    routes = scope["app"].routes
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


def _unpacked(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0] not in (b"content-encoding", b"content-length")]
