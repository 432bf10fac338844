"""uvicorn around the application: readiness off first, then no new work, then the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn

from mrad_service.app import create_app
from mrad_service.connections import Connections, guarded
from mrad_service.errors import AddressError, NotReadyError
from mrad_service.models.loading import EncoderOf
from mrad_service.runtime import Runtime
from mrad_service.settings import Settings, mistyped

log = structlog.get_logger(__name__)
GRACE = 5.0
"""Seconds beyond the drain limit after which connections are cut."""


class DrainingServer(uvicorn.Server):
    """On SIGTERM: readiness off; `notice_seconds` later the socket closes and requests finish."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self.runtime = runtime

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGHUP too: files are opened again, no request is lost."""
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread():
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, self.runtime.reload)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal does not wait for the notice."""
        first = not self.runtime.why_not_ready() and not self.should_exit
        self.runtime.announce_stop()
        notice = self.runtime.settings.notice_seconds
        if first and notice > 0 and self.started:
            log.info("stopping", signal=sig, notice_seconds=notice)
            loop, end = asyncio.get_running_loop(), super().handle_exit
            loop.call_soon_threadsafe(loop.call_later, notice, end, sig, frame)
        else:
            super().handle_exit(sig, frame)


def make_server(settings: Settings, encoder_of: EncoderOf | None = None) -> DrainingServer:
    """A server that is ready to `run`; see `create_app`."""
    app = create_app(settings, encoder_of=encoder_of)
    connections = Connections(settings)
    app.state.runtime.metrics.follow(connections)
    config = uvicorn.Config(
        app,
        http=guarded(connections),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds + GRACE),
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        proxy_headers=False,  # the application believes `trusted_proxies` alone
        ws="none",
    )
    return DrainingServer(config, app.state.runtime)


def _refuse_taken(host: str, port: int) -> None:
    """Before a bank is loaded. Raises `AddressError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise AddressError(
            f"{host}, port {port} cannot be listened on: {error.strerror}; stop what does, or give another --port"
        ) from error


def run(settings: Settings) -> None:
    """Serve until a signal comes. Raises `MRADError` for what would keep the server from being ready."""
    _refuse_taken(settings.host, settings.port)
    if settings.bank_root is not None and not settings.bank_root.is_dir():
        raise NotReadyError(f"the bank root {settings.bank_root} is no folder")
    server = make_server(settings)
    for name in mistyped(os.environ):
        log.warning("an environment variable that is no setting", name=name)
    server.runtime.check_files()  # keys that nobody can read would leave it unready for good
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to open again
    server.runtime.start()  # here, so that what is wrong with a bank is one line, not a traceback
    server.run()
    if not server.started:
        raise SystemExit(1)
