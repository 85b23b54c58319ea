"""Logins for programs that take them only on a command line, which every user can read."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envferry.config import network

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)


def write_netrc(path: Path, urls: Iterable[str]) -> Path:
    """Write the logins of channels, then all of the user's netrc: the first of a host counts."""
    lines, site = [], network()
    logins = site.all_logins()
    for url in urls:
        host = urlsplit(url).hostname
        login = logins.find(url, is_channel=True) if host else None
        if login and login.form == "basic":
            user, password = map(_word, login.pair())
            lines.append(f"machine {host} login {user} password {password}\n")
        elif login:
            words = "conda and mamba are not told the token of %s in %s: log in with them, too"
            log.warning(words, host, login.source)
    own = site.netrc
    # The user's own file is replaced by this one, so all of it comes along.
    text = "".join(lines) + (own.read_text(encoding="utf-8") if own else "")
    # Private before it has a login: a mode that is set afterwards leaves a moment for readers.
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def _word(text: str) -> str:
    """Return a user or a password as Python's netrc and curl (7.84 and newer) read it."""
    if re.fullmatch(r"[^\s\"#\\]+", text):
        return text
    escaped = re.sub(r"([\"\\])", r"\\\1", text)
    return f'"{escaped}"'
