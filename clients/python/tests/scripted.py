"""A server that answers from a script, and clients that never really wait."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from email.message import Message
from email.parser import BytesParser
from typing import Any

import httpx
import numpy as np
from mrad_client import Client, Retry
from PIL import Image

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """Hands out answers in turn (the last one for ever) and keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return answer(request)

    def client(self, **options: Any) -> Client:
        """A client of this server."""
        options = {"api_key": "key", "retry": Retry(attempts=4, base=0.5)} | options
        transport = httpx.MockTransport(self)
        return Client("http://server", transport=transport, sleep=self.waits.append, **options)


def form_of(request: httpx.Request) -> list[Message]:
    """The parts of a multipart request."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + request.content)
    assert message.is_multipart()
    return list(message.get_payload())


def field(request: httpx.Request, name: str) -> list[bytes]:
    """The bodies of the parts with that name."""
    parts = form_of(request)
    return [
        part.get_payload(decode=True)
        for part in parts
        if part.get_param("name", header="content-disposition") == name
    ]


def ok_results(request: httpx.Request, **extra: Any) -> httpx.Response:
    """A judgement for each image sent; the score is that of its first byte."""
    results = [
        {"index": i, "name": f"{i}", "status": "ok", "score": data[0] / 255, "class_score": 0.5}
        for i, data in enumerate(field(request, "images"))
    ]
    return httpx.Response(200, json={"results": [result | extra for result in results]})


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """A refusal as the server writes it."""
    body = {"status": status, "code": code, "title": code, "detail": f"about {code}"}
    headers = {"content-type": "application/problem+json", "x-request-id": "r-1"} | (headers or {})
    return httpx.Response(status, json=body, headers=headers)


def png16(values: np.ndarray) -> dict[str, str]:
    """A map as the server sends it."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(values * 65535).astype(np.uint16)).save(buffer, "PNG")
    return {"format": "png16", "data": base64.b64encode(buffer.getvalue()).decode()}
