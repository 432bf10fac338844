"""What can go wrong, as one tree. Every error of the server keeps its stable `code`.

MRADClientError
├── InputError                  an image that this side cannot encode
│   └── UnreadableFileError     a path from which nothing can be read
├── ConnectionFailedError       no answer; TimedOutError when it took too long
├── UnexpectedResponseError     an answer that is not this API's
│   └── VersionError            an API version that this client does not speak
└── APIError                    the server said no: status, code, detail, request_id
    ├── InvalidRequestError     400, 415, 422; ImageError, MaskError, CalibrationError
    ├── AuthenticationError     401      ├── ConflictError      409, 412, 423
    ├── ForbiddenError          403      ├── TooLargeError      413
    ├── NotFoundError           404      ├── OverloadedError    429
    └── ServerError             5xx;     └── UnavailableError   503 (a ServerError)
"""

from __future__ import annotations

from typing import Any


class MRADClientError(Exception):
    """Root of the tree."""

    code = "client_error"
    """Stable: programs may match on it."""


class InputError(MRADClientError, ValueError):
    """An input that cannot be sent: unreadable, or of a kind that has no meaning as an image."""

    code = "invalid_input"


class UnreadableFileError(InputError):
    """A path from which nothing can be read."""

    code = "unreadable_file"


class ConnectionFailedError(MRADClientError):
    """No answer came: refused, reset, name not found."""

    code = "connection_failed"


class TimedOutError(ConnectionFailedError):
    """The answer did not come within the client's timeout."""

    code = "timed_out"


class UnexpectedResponseError(MRADClientError):
    """An answer that is not of this API: a proxy's page, another server, a broken body."""

    code = "unexpected_response"


class VersionError(UnexpectedResponseError):
    """The server speaks another version of the API."""

    code = "api_version"


class APIError(MRADClientError):
    """An answer of the server that says no (RFC 9457 problem+json)."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        request_id: str | None = None,
        retry_after: float | None = None,
        problem: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{detail} [{code}]")
        self.status = status
        self.code = code
        """Stable: match on this, never on the text."""
        self.detail = detail
        self.request_id = request_id
        """What to quote to the operator; it stands in the server's log."""
        self.retry_after = retry_after
        """Seconds after which the server asked to be tried again."""
        self.problem = problem or {}
        """The whole problem document."""


class InvalidRequestError(APIError):
    """A parameter or a body that the server cannot use."""


class ImageError(InvalidRequestError):
    """One image is not usable: not an image, truncated, or too many pixels."""


class MaskError(InvalidRequestError):
    """A mask that does not fit its image or marks nothing."""


class CalibrationError(InvalidRequestError):
    """A threshold or probability that the bank's calibration cannot give."""


class AuthenticationError(APIError):
    """No API key, or one that the server does not know."""


class ForbiddenError(APIError):
    """The key lacks the scope (score, write, admin)."""


class NotFoundError(APIError):
    """No such entry, bank or path."""


class ConflictError(APIError):
    """The state of the server forbids it, e.g. an idempotency key with another body."""


class TooLargeError(APIError):
    """The body, a file or the number of images is over the server's limit."""


class OverloadedError(APIError):
    """The queue is full; `retry_after` says when there is likely room."""


class ServerError(APIError):
    """The server failed."""


class UnavailableError(ServerError):
    """Starting, draining, or out of memory on the device; try again."""


BY_CODE: dict[str, type[APIError]] = {
    "invalid_image": ImageError,
    "image_too_large": ImageError,
    "doubtful_image": ImageError,
    "invalid_mask": MaskError,
    "calibration_error": CalibrationError,
}
"""Codes that say more than their status."""

BY_STATUS: dict[int, type[APIError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    413: TooLargeError,
    423: ConflictError,
    429: OverloadedError,
    503: UnavailableError,
}


def api_error(
    problem: dict[str, Any],
    *,
    status: int = 0,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> APIError:
    """The exception for a problem document, of a whole answer or of one image in it."""
    status = status or int(problem.get("status") or 0)
    code = str(problem.get("code") or f"http_{status}")
    detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    default = ServerError if status >= 500 else InvalidRequestError
    kind = BY_CODE.get(code) or BY_STATUS.get(status, default)
    return kind(
        status,
        code,
        detail,
        request_id=request_id or problem.get("request_id"),
        retry_after=retry_after,
        problem=problem,
    )
