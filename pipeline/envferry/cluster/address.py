"""Which schedulers are talked to: Dask's messages are pickles, so a sender can run code."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from envferry.errors import UsageError


def check_scheduler(address: str) -> str:
    """Return the address of a scheduler; raise UsageError unless it uses TLS, or is on loopback."""
    hint = "name it as tls://HOST:PORT, or tcp://127.0.0.1:PORT on this machine"
    try:
        parts = urlsplit(address)
        # `port` raises ValueError for what is not a number of a port.
        is_whole = bool(parts.hostname and parts.port)
    except ValueError:
        is_whole = False
    if not is_whole or parts.scheme not in ("tcp", "tls") or parts.path or parts.username:
        message = f"{address!r} is not the address of a scheduler"
        raise UsageError(message, hint=hint)
    if not is_private(address):
        message = f"{address} is another machine, and not reached by TLS"
        raise UsageError(message, hint="start scheduler and workers with TLS, then use tls://")
    return address


def is_private(address: str) -> bool:
    """Whether no other machine can read or send messages of an address."""
    parts = urlsplit(address)
    # inproc: scheduler and workers are in this process, and no socket is open.
    if parts.scheme in ("tls", "inproc"):
        return True
    if parts.hostname == "localhost":
        return True
    try:
        # No name but `localhost` is looked up: what one resolves to may change after this check.
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
