"""What one connection may cost: how many there are, how long they may stay silent, send or read.

uvicorn reads HTTP; it has no such limits of its own. Here they are kept beside its parser, where
bytes come in, so that they hold before a request is whole and before an API key was seen.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mrad_service.problems import MEDIA_TYPE, describe
from mrad_service.settings import Settings

log = structlog.get_logger(__name__)
MAX_HEADERS = 100
SPARE_FILES = 256
"""Open files beside the connections."""
PIPELINED = 16
"""Requests that may wait on one connection behind the one that is answered."""
HEADERS_TOO_LARGE = (431, "headers_too_large", "the headers are larger than this server reads")
FRAMING = 64 << 10
"""Bytes of chunk sizes, extensions and trailers that a body may bring beside itself."""
STALL_BYTES = 16 << 10
"""Bytes of an answer that a client has to take within `stall_seconds`."""
STOPPING_SECONDS = 5.0
"""After SIGTERM: time for a body to arrive whole, and between two looks at who reads."""


class Connections:
    """All connections of a server. Used on the event loop alone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._most = room_for(settings.max_connections)
        self.on_cut: Callable[[str], None] = lambda reason: None
        """Called with the reason whenever a connection is refused or cut."""
        self._peers: Counter[str] = Counter()
        self._open: dict[GuardedProtocol, str] = {}
        self._proxies = [ip_network(name, strict=False) for name in settings.trusted_proxies]

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: GuardedProtocol, peer: str) -> str:
        """Count it in; why there is no room for it, or nothing. Idle ones give way, oldest first."""
        if self._peers[peer] >= self.settings.max_peer_connections and not self._is_proxy(peer):
            if not self._evict(one for one, whose in self._open.items() if whose == peer):
                return "peer_connections"
        elif len(self._open) >= self._most and not self._evict(self._open):
            return "connections"
        self._open[connection] = peer
        self._peers[peer] += 1
        return ""

    def _evict(self, among: Iterable[GuardedProtocol]) -> bool:
        idle = next((one for one in among if one.idle), None)
        if idle is not None:
            self.leave(idle)
            idle.cut("evicted")
        return idle is not None

    def leave(self, connection: GuardedProtocol) -> None:
        """It is gone, or as good as gone."""
        peer = self._open.pop(connection, None)
        if peer is not None:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:  # a Unix socket
            return True
        return any(address in network for network in self._proxies)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. `guarded(connections)` binds it to a server."""

    guard: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal: tuple[int, str, str] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reading_headers = True
        self._begun = 0
        """Bytes received of headers that are not complete."""
        self._counted = 0
        """Bytes of complete headers of this request."""
        self._fed = self._body = 0
        """Bytes received since the headers were complete, and those of them that are the body."""
        self._left_to_send = 0

    # -- its life -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counted; its headers are awaited for so long only."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        why = self.guard.enter(self, peer)
        if why:
            self._refuse(503, why, "too many connections; close idle ones, or come back later")
            return
        self._start("headers", self.guard.settings.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        for name in list(self._timers):
            self._stop(name)
        self.guard.leave(self)
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered: closing it loses nothing."""
        return self.cycle is None or (self.cycle.response_complete and not self._begun)

    def cut(self, why: str) -> None:
        """Close it now, whatever is unsent."""
        self.guard.on_cut(why)
        if self.transport is not None:
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: what is being answered is finished; what does not come is not awaited."""
        super().shutdown()
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self._start("stopping", STOPPING_SECONDS, self._stopping)

    def _stopping(self) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and cycle.more_body:
            self.cut("stopping")
        elif self._stalled():
            self.cut("stalled")
        else:
            self._start("stopping", STOPPING_SECONDS, self._stopping)

    # -- what comes in ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """More bytes; those of headers and of framing are limited before they are parsed."""
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._reading_headers:
            self._begun += len(data)
            if "headers" not in self._timers:
                self._start("headers", self.guard.settings.header_seconds, self._too_slow)
            if self._begun - len(data) > self.guard.settings.max_header_bytes:
                self._refuse(*HEADERS_TOO_LARGE)
                return
        else:
            self._fed += len(data)
            if self._fed - len(data) - self._body > FRAMING + 8 * self._body:
                self._refuse(400, "framing", "the body's framing is larger than the body")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._counted = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._raise_over()

    def on_headers_complete(self) -> None:
        """The request is known; its body may follow."""
        self._reading_headers, self._begun, self._fed, self._body = False, 0, 0, 0
        self._stop("headers")
        if len(self.pipeline) >= PIPELINED:
            self._refusal = (429, "pipelined", "too many requests wait on this connection")
            raise ValueError("refused")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._reading_headers = True
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._counted += size
        if self._counted > self.guard.settings.max_header_bytes:
            self._raise_over()

    def _raise_over(self) -> None:
        """In a callback of the parser, which makes an error of it that uvicorn answers."""
        self._refusal = HEADERS_TOO_LARGE
        raise ValueError("refused")

    # -- what goes out ------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        self._left_to_send = self.transport.get_write_buffer_size()
        self._start("stall", self.guard.settings.stall_seconds, self._look)
        if "answer" not in self._timers:
            self._start(
                "answer", self.guard.settings.answer_seconds, lambda: self.cut("answer_time")
            )

    def resume_writing(self) -> None:
        """It has read what there was."""
        super().resume_writing()
        self._stop("stall")

    def on_response_complete(self) -> None:
        """An answer is written; the next request's headers are awaited by uvicorn's keep-alive."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self._stop("answer")

    def _look(self) -> None:
        if self._stalled():
            self.cut("stalled")
        else:
            self._start("stall", self.guard.settings.stall_seconds, self._look)

    def _stalled(self) -> bool:
        before, self._left_to_send = self._left_to_send, self.transport.get_write_buffer_size()
        return self._left_to_send > 0 and before - self._left_to_send < STALL_BYTES

    # -- refusals -----------------------------------------------------------------------------

    def _too_slow(self) -> None:
        self._timers.pop("headers", None)
        if self._begun:
            self._refuse(408, "header_timeout", "the headers did not arrive in time")
        else:
            self.cut("silent")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._refusal = (status, code, detail)
        self.send_400_response(detail)

    def send_400_response(self, msg: str) -> None:
        """What was refused here, or what the parser does not understand, as a problem document."""
        status, code, detail = self._refusal or (400, "bad_request", "this is not HTTP")
        self._refusal = (status, code, detail)
        self.guard.on_cut(code)
        body = json.dumps(describe(status, code, detail)).encode()
        head = [STATUS_LINE[status], b"content-type: ", MEDIA_TYPE.encode(), b"\r\n"]
        if status in (429, 503):
            head.append(b"retry-after: 5\r\n")
        head.append(b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"".join([*head, body]))
        self.transport.close()
        self._start("closing", STOPPING_SECONDS, self.transport.abort)

    def _start(self, name: str, seconds: float, then: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, then)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def guarded(connections: Connections) -> type[GuardedProtocol]:
    """The protocol class of one server."""
    return type("Guarded", (GuardedProtocol,), {"guard": connections})


def room_for(connections: int) -> int:
    """Raise this process's limit of open files so that so many connections fit; how many do."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    fits = connections if soft == resource.RLIM_INFINITY else max(16, soft - SPARE_FILES)
    if fits < connections:
        log.warning("few open files are allowed: raise `ulimit -n`", connections=fits)
    return min(connections, fits)
