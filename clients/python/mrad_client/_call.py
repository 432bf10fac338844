"""One HTTP call as data: what to send and how to read the answer. The clients only do I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
import pydantic

from mrad_client.errors import (
    ConnectionFailedError,
    TimedOutError,
    UnexpectedResponseError,
    VersionError,
    api_error,
)
from mrad_client.retry import retry_after

T = TypeVar("T")
API_VERSION = 1
VERSION_HEADER = "X-MRAD-API-Version"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the reading of its answer. Sending it twice does no more than once."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, tuple[str, bytes, str]]] = ()
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    settled: T | None = None
    """The answer, where there is nothing to ask the server."""
    missing: T | None = None
    """The answer to a 404 on a repeated try: an earlier one, whose answer was lost, did the work."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `httpx.Client.request`."""
        given = {
            "params": dict(self.params) or None,
            "data": dict(self.data) or None,
            "files": list(self.files) or None,
            "json": self.json,
            "headers": dict(self.headers) or None,
        }
        present = {name: value for name, value in given.items() if value is not None}
        return {"method": self.method, "url": self.path, **present}

    def conclude(self, outcome: httpx.Response | httpx.TransportError, tries: int) -> T:
        """The parsed answer. Raises what the outcome stands for, from the client's error tree."""
        if isinstance(outcome, httpx.TransportError):
            raise _connection_error(outcome, tries) from outcome
        if outcome.status_code == 404 and self.missing is not None and tries > 1:
            return self.missing
        check_version(outcome)
        if outcome.is_success:
            return self._parsed(outcome)
        raise _error_of(outcome)

    def _parsed(self, response: httpx.Response) -> T:
        try:
            return self.parse(response)
        except (ValueError, KeyError, pydantic.ValidationError) as error:
            raise UnexpectedResponseError(
                f"{response.url} answered {response.status_code} with a body that is not this "
                f"API's: {error}. Is this an MRAD server, and as new as this client?"
            ) from error


def check_version(response: httpx.Response) -> None:
    """Refuse an answer that says it is of another API version; silence is accepted.

    Raises `VersionError`.
    """
    version = response.headers.get(VERSION_HEADER)
    if version is None:
        return
    major = re.match(r"v?(\d+)", version)
    if major is None or int(major.group(1)) != API_VERSION:
        raise VersionError(
            f"{response.url.host} speaks version {version} of the API, this client {API_VERSION}; "
            "install the mrad-client of the server's release"
        )


def _error_of(response: httpx.Response) -> Exception:
    """The `APIError` for a problem document, or `UnexpectedResponseError` for a stranger's page."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        if response.status_code not in (429, 502, 503, 504):
            start = response.text[:200]
            return UnexpectedResponseError(
                f"{response.url} answered {response.status_code}, not as an MRAD server: {start!r}"
            )
        problem = {"title": f"{response.status_code} {response.reason_phrase}"}
    return api_error(
        problem,
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after(response),
    )


def _connection_error(error: httpx.TransportError, tries: int) -> ConnectionFailedError:
    where = error.request.url if error._request is not None else "the server"
    after = f" after {tries} tries" if tries > 1 else ""
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(
            f"{where} did not answer in time{after}: {error or type(error).__name__}"
        )
    return ConnectionFailedError(f"{where} cannot be reached{after}: {error}")
