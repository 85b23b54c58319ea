"""Logins for programs that take them only on a command line, which every user can read."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envferry.config import network

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def write_netrc(path: Path, urls: Iterable[str]) -> Path:
    """Write the logins in URLs, then those of the user's own netrc: the first of a host counts."""
    lines = []
    for url in urls:
        parts = urlsplit(url)
        if parts.hostname and parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
            lines.append(f"machine {parts.hostname} login {user} password {password}\n")
    own = network().netrc
    text = "".join(lines) + (own.read_text(encoding="utf-8") if own else "")
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path
