"""The login to a registry: Basic, or tokens for each repository by the Bearer flow.

https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/; RFC 6750, RFC 7617.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import msgspec

from envferry.base.json import decode_json
from envferry.base.loopback import is_loopback
from envferry.errors import StoreError
from envferry.stores.oci.credentials import Login, find_login

if TYPE_CHECKING:
    from collections.abc import Callable

CHALLENGE_START = re.compile(r"(?:^|,)\s*(?P<scheme>[A-Za-z]+)(?=\s+[A-Za-z_]+\s*=|\s*,|\s*$)")
QUOTED = re.compile(r'"[^"]*"')
PARAMETER = re.compile(r'(?P<name>[A-Za-z_]+)\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s",]+))')
"""RFC 7235, 2.1: a value is quoted, or a word."""
SCHEMES = ("bearer", "basic")
"""What is known; the first that a registry offers is taken."""
CLIENT = "envferry"


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry wants to see (`WWW-Authenticate`)."""

    scheme: str
    """`basic` or `bearer`."""
    realm: str
    service: str
    scope: str

    @classmethod
    def of(cls, header: str) -> Challenge | None:
        """Read a header, which may offer several; None where none of them is known."""
        # Quoted values may hold commas and words that look like a scheme;
        # positions stay as they are.
        masked = QUOTED.sub(lambda found: '"' * len(found[0]), header)
        starts = list(CHALLENGE_START.finditer(masked))
        ends = [*(one.start() for one in starts), len(header)][1:]
        offered = {
            start["scheme"].lower(): header[start.end() : end]
            for start, end in zip(starts, ends, strict=False)
        }
        for scheme in SCHEMES:
            if scheme in offered:
                return cls._of(scheme, offered[scheme])
        return None

    @classmethod
    def _of(cls, scheme: str, parameters: str) -> Challenge:
        found = {
            match["name"].lower(): match["plain"] or match["quoted"] or ""
            for match in PARAMETER.finditer(parameters)
        }
        return cls(
            scheme=scheme,
            realm=found.get("realm", ""),
            service=found.get("service", ""),
            scope=found.get("scope", ""),
        )


class TokenChallenge(msgspec.Struct, frozen=True):
    """A request to a token server."""

    url: str
    authorization: str | None
    form: bytes | None
    """Sent as a form; None: the URL says all."""


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


@dataclass(slots=True)
class Tokens:
    """What was got for each repository and right; threads may share it."""

    host: str
    fetch: Callable[[TokenChallenge], bytes]
    """Asks a token server; raises StoreError for all but an answer of 200."""
    allows_plain: bool
    """Whether credentials may go over http: the user said so, or it stays on this machine."""
    _headers: dict[str, str] = field(default_factory=dict, repr=False)
    _logins: dict[str, Login | None] = field(default_factory=dict, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def header(self, scope: str) -> str | None:
        """Return the `Authorization` header that worked last; None for the first try."""
        return self._headers.get(scope)

    def renew(self, header: str, scope: str, refused: str | None) -> str:
        """Answer a challenge; return the new `Authorization` header.

        `refused` is the header that did not do. Raises StoreError when every login is refused.
        """
        challenge = Challenge.of(header)
        if challenge is None:
            message = f"{self.host} requires a login of an unknown kind: {header[:60]!r}"
            raise StoreError(message, hint="Basic and Bearer are known")
        # One thread asks for a token; those that waited get the one that it was given.
        with self._guard:
            there = self._headers.get(scope)
            if there and there != refused:
                return there  # another thread has just got it
            login = self._login(scope)
            made = (
                self._basic(login)
                if challenge.scheme == "basic"
                else self._bearer(challenge, scope, login)
            )
            # Basic is the same at every try: the registry has answered it already.
            if made == refused:
                raise self._refused(login)
            self._headers[scope] = made
            return made

    def _login(self, scope: str) -> Login | None:
        # `repository:NAME:RIGHTS`; NAME has no colon.
        repository = scope.split(":")[1]
        if repository not in self._logins:
            self._logins[repository] = find_login(self.host, repository)
        return self._logins[repository]

    def _basic(self, login: Login | None) -> str:
        if login is None or login.token:
            raise self._refused(None)
        return login.basic

    def _bearer(self, challenge: Challenge, scope: str, login: Login | None) -> str:
        parts = urlsplit(challenge.realm)
        # Without a login nothing secret is sent: an anonymous token may be asked for by http.
        is_safe = parts.scheme == "https" or self.allows_plain or is_loopback(parts.hostname or "")
        if parts.scheme not in ("http", "https") or not (is_safe or login is None):
            message = f"{self.host} names {challenge.realm!r} to log in at, which is not safe"
            raise StoreError(message, hint="a login goes over https only")
        asked = [("service", challenge.service)] if challenge.service else []
        # The registry's own words, where it says them: these it will accept.
        wanted = challenge.scope or scope
        if login and login.token:
            form = {"grant_type": "refresh_token", "refresh_token": login.token.reveal()}
            words = [*form.items(), ("client_id", CLIENT), *asked, ("scope", wanted)]
            body = urlencode(words).encode()
            data = self.fetch(TokenChallenge(challenge.realm, None, body))
        else:
            # Two repositories, as when a blob is mounted, are two parameters here, and two words
            # of one in the form above: .../auth/token/, "Requesting a Token", and .../auth/oauth/.
            asked += [("scope", one) for one in wanted.split()]
            joint = "&" if parts.query else "?"
            url = f"{challenge.realm}{joint}{urlencode(asked)}"
            data = self.fetch(TokenChallenge(url, login.basic if login else None, None))
        try:
            found = decode_json(data, _Token)
        except msgspec.MsgspecError:
            found = _Token()
        # …/auth/token/ has both names for it, and OAuth 2 the second one alone.
        text = found.token or found.access_token
        if not text:
            message = f"{challenge.realm} answered without a token for {self.host}"
            raise StoreError(message, hint="is a proxy or a login page in between?")
        return f"Bearer {text}"

    def _refused(self, login: Login | None) -> StoreError:
        if login is None:
            message = f"{self.host} requires a login"
            return StoreError(message, hint=f"run `podman login {self.host}`, or `docker login`")
        who = f"the login of {login.user}" if login.user else "the identity token"
        message = f"{self.host} refuses {who}"
        return StoreError(message, hint=f"log in again: `podman login {self.host}`")
