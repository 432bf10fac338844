"""Addresses as a proxy leaves them, and HEAD: what is inside sees plain paths and GET."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Addresses:
    """The outermost ASGI middleware.

    A proxy may strip the prefix or leave it: rules inside that go by path must not depend on that.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """`root_path`: the prefix, as `/inspection`; empty for none."""
        self.app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, root = scope["path"], self._root
        if root and path == root and scope["method"] in ("GET", "HEAD"):
            # Relative, so that no Host header decides where it leads; the page's links need it.
            answer = Response(status_code=307, headers={"Location": f"{root}/"})
            await answer(scope, receive, send)
            return
        if root and path.startswith(f"{root}/"):
            path = path[len(root) :]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message.get("more_body", False):
                    return
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, headers_only)
