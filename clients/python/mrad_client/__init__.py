"""Client for the MRAD server.

from mrad_client import Client

with Client("http://127.0.0.1:8000") as client:
    result = client.score_image("board.jpg", map="png16", evidence=3)
    print(result.score, result.verdict, result.anomaly_map.shape)
"""

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
from mrad_client.types import Bank, Entry, EntryPage, Evidence, Map, Region, Result, Scores

__all__ = [
    "APIError",
    "AsyncClient",
    "AuthenticationError",
    "Bank",
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
    "MRADClientError",
    "Map",
    "MaskError",
    "NotFoundError",
    "OverloadedError",
    "Region",
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
