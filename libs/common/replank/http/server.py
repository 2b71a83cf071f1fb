"""Running a service: one process, one event loop, shared by HTTP, the relay and the consumers."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from replank.errors import ConfigurationError, ReplankError

_log = logging.getLogger(__name__)


class StartFailed(ReplankError):
    """The application's lifespan raised while starting; the log has its error."""


def run(app: ASGIApp, *, host: str = "127.0.0.1", port: int, shutdown_timeout: float = 20.0) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight and the lifespan, and return.

    ``port`` 0 takes any free one; the log says which. Requests that take longer than ``shutdown_timeout`` seconds to
    finish are cut. Raises `ConfigurationError` when the address cannot be listened on, `StartFailed` when the
    application does not start.
    """
    asyncio.run(serve(app, listening_socket(host, port), shutdown_timeout=shutdown_timeout))


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `ConfigurationError` that names the address and what is wrong with it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}", fix="check HTTP_HOST") from error
    try:
        # A restart must not wait for the last run's connections to time out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            fix="choose another HTTP_HOST or HTTP_PORT, or stop what listens there",
        ) from error
    return sock


async def serve(app: ASGIApp, sock: socket.socket, *, shutdown_timeout: float = 20.0) -> None:
    """As `run`, on a bound socket, inside a running event loop."""
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            loop="none",
            lifespan="on",
            # Logging is set up by telemetry, and requests are logged by the application.
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
        )
    )
    # After its shutdown uvicorn raises the signal once more for whoever handled it before: that is us, and we are done.
    loop = asyncio.get_running_loop()
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, _log.debug, "stopped by %s", number.name)
    try:
        await server.serve(sockets=[sock])
    except SystemExit as error:
        # This is how uvicorn says it, after it has logged why; an exit code is for `main` to choose.
        raise StartFailed("the application did not start", fix="the error is in the log, above") from error
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or []:
            _log.info("listening on %s:%d", *sock.getsockname()[:2])
