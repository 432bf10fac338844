"""How a client is set up; the same for both."""

from __future__ import annotations

import ipaddress
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import httpx

from mrad_client._call import API_VERSION, VERSION_HEADER

try:
    __version__ = version("mrad-client")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"

DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
DEFAULT_URL = "http://127.0.0.1:8000"


def http_arguments(
    base_url: str | None,
    api_key: str | None,
    timeout: float | httpx.Timeout | None,
    max_connections: int,
) -> dict[str, Any]:
    """Keyword arguments for `httpx.Client` and `httpx.AsyncClient`.

    MRAD_URL and MRAD_API_KEY stand in for what is not given. Redirects are not followed: a key
    must not travel to a host that the caller did not name. HTTP_PROXY and its kin are heeded, but
    for this machine itself, which no proxy could reach.
    """
    url = base_url or os.environ.get("MRAD_URL") or DEFAULT_URL
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url!r} is not a server's address: write http://host:port or https://…")
    host = urlsplit(url).hostname or ""
    key = api_key or os.environ.get("MRAD_API_KEY")
    headers = {
        "User-Agent": f"mrad-client/{__version__}",
        "Accept": "application/json, application/problem+json",
        VERSION_HEADER: str(API_VERSION),
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": DEFAULT_TIMEOUT if timeout is None else timeout,
        "limits": httpx.Limits(max_connections=max_connections),
        "mounts": {f"all://{_bracketed(host)}": None} if is_loopback(host) else None,
    }


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
