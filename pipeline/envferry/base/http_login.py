"""One login of a web server, and the forms in which a request says it."""

from __future__ import annotations

import base64
import functools
import logging
import stat
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

from envferry.base.secret import Secret

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

HttpLoginForm = Literal["basic", "bearer", "conda_token"]


class HttpLogin(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is told of who asks."""

    form: HttpLoginForm
    secret: Secret
    """A token; for `basic`, `user:password` as URLs have it."""
    source: str
    """Where it is from, for messages."""

    @classmethod
    def basic(cls, user: str, password: str, source: str) -> HttpLogin:
        """Return the login of a user with a password."""
        # Percent-encoded, because a colon in the name would end it.
        both = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return cls(form="basic", secret=Secret(both), source=source)

    def pair(self) -> tuple[str, str]:
        """Return user and password, of a login that has them."""
        user, _, password = self.secret.reveal().partition(":")
        return unquote(user), unquote(password)

    def headers(self) -> dict[str, str]:
        """Return what a request says in its headers."""
        if self.form == "basic":
            words = base64.b64encode(":".join(self.pair()).encode()).decode()
            return {"authorization": f"Basic {words}"}
        # A conda token has no header: it is in the URL (`place`).
        return {"authorization": f"Bearer {self.secret.reveal()}"} if self.form == "bearer" else {}

    def place(self, url: str) -> str:
        """Return the URL to ask for: a conda token stands in it, right after the host."""
        if self.form != "conda_token":
            return url
        parts = urlsplit(url)
        path = f"/t/{quote(self.secret.reveal(), safe='')}{parts.path}"
        return urlunsplit(parts._replace(path=path))


@functools.cache
def warn_if_readable(path: Path) -> None:
    """Warn, once, of a file with logins that every user of this machine can read."""
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("every user of this machine can read the logins in %s: chmod 600 it", path)
