"""Who may come in: host names, origins, API keys and their scopes. Before a body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mrad.errors import MRADError
from mrad_service.errors import (
    AuthenticationError,
    CrossOriginError,
    ForbiddenError,
    InvalidRequestError,
)
from mrad_service.middleware.auth import KeyFile, allows
from mrad_service.problems import respond
from mrad_service.settings import Settings

OPEN_PATHS = ("/", "/health/live", "/health/ready", "/metrics", "/openapi.json")
OPEN_PREFIXES = ("/page/", "/v2/health/")
"""What needs no key: the page (which asks for one), health, figures, the description."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AccessControl:
    """ASGI middleware; leaves `key_name` and `scopes` in the request's state."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyFile | None) -> None:
        """`keys`: None where none are asked for."""
        self.app, self._settings = app, settings
        self._hosts = settings.allowed_hosts
        if settings.auth == "off" and not self._hosts:
            self._hosts = LOOPBACK
        self._keys = keys if settings.auth == "keys" else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except MRADError as error:
                answer = respond(error, scope)
                answer.headers["Connection"] = "close"  # the body was not read
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        state = scope["state"]
        if self._keys is None:
            self._check_origin(scope, headers)
            state["key_name"], state["scopes"] = "", ("admin",)
            return
        path = scope["path"]
        if is_open(path) or scope["method"] == "OPTIONS":
            return
        kind, _, presented = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not presented:
            raise AuthenticationError("send an API key: Authorization: Bearer KEY")
        key = self._keys.find(presented.strip())
        if key is None:
            raise AuthenticationError("this API key is not known, or was revoked")
        state["key_name"], state["scopes"] = key.name, key.scopes

    def _check_host(self, host: str) -> None:
        """Without it a page elsewhere could name this server as its own (DNS rebinding)."""
        if self._hosts and hostname(host) not in self._hosts:
            raise InvalidRequestError(f"this server does not answer to the host {host[:100]!r}")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Browsers say where a request comes from; another origin's pages may not act here.

        Where keys are asked for they protect: a page elsewhere has none, and browsers add none.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        named = origin in self._settings.cors_origins or "*" in self._settings.cors_origins
        if site not in ("none", "same-origin") and not named and not is_open(scope["path"]):
            raise CrossOriginError(
                "a page of another origin may not call this server; see MRAD_CORS_ORIGINS"
            )
        if origin is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        if not named and urlsplit(origin).netloc != headers.get("host"):
            raise CrossOriginError(
                "a page of another origin may not call this server; see MRAD_CORS_ORIGINS"
            )


def is_open(path: str) -> bool:
    """Whether an address needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def require(scope: str) -> Callable[[Request], Awaitable[None]]:
    """The dependency of a route that needs a scope; async, or each request would go through a thread."""

    async def check(request: Request) -> None:
        if not allows(getattr(request.state, "scopes", ()), scope):
            raise ForbiddenError(f"this API key lacks the scope {scope!r}")

    return check


async def known_query(request: Request) -> None:
    """Dependency: refuse a name in the query string that nothing reads, or one that stands there twice.

    A mistyped rate of false alarms would be the usual one in silence. Raises `InvalidRequestError`.
    """
    dependant = request.scope["route"].dependant
    known = {str(parameter.alias) for parameter in dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            may = f"known are {', '.join(sorted(known))}" if known else "there is none here"
            raise InvalidRequestError(f"nothing reads {name!r:.80} in the query string; {may}")
        if given.count(name) > 1:
            raise InvalidRequestError(f"the query string says {name!r} twice")


async def no_body(request: Request) -> None:
    """Dependency: refuse a body where none is read, whose options would be the usual ones in silence.

    Raises `InvalidRequestError`.
    """
    takes_none = request.method in ("POST", "DELETE") and request.scope["route"].body_field is None
    if takes_none and (await request.body()).strip() not in (b"", b"{}", b"null"):
        raise InvalidRequestError("this request takes no body: options stand in the query string")


def hostname(host: str) -> str:
    """`localhost:8000`, `[::1]:8000` -> the name without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
