"""Serve the page on this machine alone, until it is interrupted."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from typing import Any

from verifix.errors import UsageError, one_line
from verifix.io.optional_imports import library

ADDRESS = "127.0.0.1"
"""Other machines cannot reach it; see docs/review.md for a tunnel."""


def bound(port: int) -> socket.socket:
    """Return a socket on a port of this machine, which no other program can listen on as well.

    Parameters
    ----------
    port
        The port; 0 for any that is free.

    Returns
    -------
    socket
        Bound, and not yet listening.

    Raises
    ------
    UsageError
        If it is in use, or not allowed.
    """
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((ADDRESS, port))
    except OSError as error:
        opened.close()
        raise UsageError(f"port {port} cannot be used ({one_line(error)}); choose another with --port") from None
    return opened


def serve(app: Callable[[int, str], Any], port: int, tell: Callable[[str], None]) -> None:
    """Serve an application until it is interrupted.

    Parameters
    ----------
    app
        Makes the application from the port and the token.
    port
        The port; 0 for any that is free.
    tell
        Is told the address once it can be opened.
    """
    uvicorn = library("uvicorn", "uvicorn", "review")
    opened, token = bound(port), secrets.token_urlsafe(32)
    own = opened.getsockname()[1]

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        """One that says when it can be reached."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            tell(f"http://{ADDRESS}:{own}/?token={token}")

    config = uvicorn.Config(
        app(own, token), log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none",
        lifespan="off", loop="asyncio", http="h11", timeout_graceful_shutdown=2,
    )  # fmt: skip
    try:
        Server(config).run(sockets=[opened])
    except KeyboardInterrupt:
        pass  # how it is meant to end: everything is saved
    finally:
        opened.close()
