"""The server of the pages: one process, one port, no way to write."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import uvicorn

from envferry.errors import HostError, TargetOccupied, UsageError
from envferry.web.app import make_app

if TYPE_CHECKING:
    from envferry.web.site import RegistryView

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
GRACE_SECONDS = 3
"""How long answers that are under way may take when the server is stopped."""


def serve_site(site: RegistryView, listener: socket.socket, host: str) -> None:
    """Answer at a port that is open, until a signal ends it; with `-v` each request is logged."""
    is_logged = logging.getLogger("envferry").isEnabledFor(logging.INFO)
    level = logging.INFO if is_logged else logging.WARNING
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(level)
    config = uvicorn.Config(
        # Reached from elsewhere, it goes by names that it cannot know.
        make_app(site, LOCAL_NAMES if is_local(host) else None),
        # Else uvicorn would set up loggers of its own beside ours.
        log_config=None,
        access_log=is_logged,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with suppress(KeyboardInterrupt):  # the usual end of a server
        uvicorn.Server(config).run(sockets=[listener])


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open the port before anything is said; raise TargetOccupied when it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except PermissionError as error:
        message = f"this user is not allowed to open port {port}"
        raise HostError(message, hint="choose one above 1023: --port 8000") from error
    except socket.gaierror as error:
        msg = f"{host} is not an address of this machine"
        raise UsageError(msg, hint="--host 127.0.0.1") from error
    except OSError as error:
        message = f"cannot listen at {host} port {port}: {error.strerror}"
        raise TargetOccupied(
            message, hint="choose another port: --port 0 finds a free one"
        ) from error
