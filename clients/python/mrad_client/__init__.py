"""Client for the MRAD server.

from mrad_client import Client

with Client("http://127.0.0.1:8000") as client:
    result = client.score_image("board.jpg", map="png16", evidence=3)
    print(result.score, result.verdict, result.anomaly_map.shape)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrad_client._settings import __version__
    from mrad_client.async_client import AsyncClient
    from mrad_client.client import Client
    from mrad_client.errors import (
        APIError,
        AuthenticationError,
        CalibrationError,
        ConflictError,
        ConnectionFailedError,
        ForbiddenError,
        ImageError,
        InputError,
        InvalidRequestError,
        MaskError,
        MRADClientError,
        NotFoundError,
        OverloadedError,
        ServerError,
        TimedOutError,
        TooLargeError,
        UnavailableError,
        UnexpectedResponseError,
        UnreadableFileError,
        VersionError,
    )
    from mrad_client.images import ImageInput
    from mrad_client.retry import Retry
    from mrad_client.types import (
        Bank,
        Calibration,
        Entry,
        EntryPage,
        Evidence,
        LessonEffect,
        Map,
        Region,
        Removed,
        Result,
        Scores,
    )

__all__ = [
    "APIError",
    "AsyncClient",
    "AuthenticationError",
    "Bank",
    "Calibration",
    "CalibrationError",
    "Client",
    "ConflictError",
    "ConnectionFailedError",
    "Entry",
    "EntryPage",
    "Evidence",
    "ForbiddenError",
    "ImageError",
    "ImageInput",
    "InputError",
    "InvalidRequestError",
    "LessonEffect",
    "MRADClientError",
    "Map",
    "MaskError",
    "NotFoundError",
    "OverloadedError",
    "Region",
    "Removed",
    "Result",
    "Retry",
    "Scores",
    "ServerError",
    "TimedOutError",
    "TooLargeError",
    "UnavailableError",
    "UnexpectedResponseError",
    "UnreadableFileError",
    "VersionError",
    "__version__",
]

_MODULES = ("errors", "_settings", "retry", "images", "types", "client", "async_client")
"""Where the names are, in the order in which they import each other."""


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a batch judged in this process needs no HTTP."""
    for module in _MODULES if name in __all__ else ():
        found = import_module(f"{__name__}.{module}")
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
