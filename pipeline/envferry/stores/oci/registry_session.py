"""Requests to a registry on a server: connections, logins, attempts, and what errors mean.

https://github.com/opencontainers/distribution-spec, version 1.1, "API" and "Error Codes".
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import msgspec
import urllib3

from envferry.base.connections import Connections
from envferry.base.json import decode_json
from envferry.base.limits import USUAL_LIMITS, Limits, ResponseTooLarge, ResponseTooSlow
from envferry.base.retry import (
    BUSY_STATUSES,
    POLICY,
    RetryPolicy,
    Transient,
    asked_seconds,
    persistently,
    waiting_words,
)
from envferry.config import network
from envferry.errors import IntegrityError, StoreError
from envferry.stores.http import broken_answer, finish_response
from envferry.stores.oci.tokens import TokenChallenge, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_SECONDS = 60
SHOWN = 200
MOST_TEXT = 32 << 20
CHALLENGE, LOCATION = "WWW-Authenticate", "Location"
VERSION = "Docker-Distribution-Api-Version"
OK, CREATED, ACCEPTED_STATUS, NO_CONTENT, PARTIAL = 200, 201, 202, 204, 206
UNAUTHORIZED, FORBIDDEN, ABSENT, NOT_ALLOWED, GONE = 401, 403, 404, 405, 410
NO_PRECONDITION, TOO_LARGE = 412, 413
QUOTA = re.compile(r"quota|storage resource|storage limit", re.IGNORECASE)
"""How Harbor, GitLab and others say that a project is full; the standard has no code for it."""


class NotOfferedByRegistry(StoreError):
    """The registry does not have that operation, or does not allow it."""


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the API."""

    method: str
    path: str
    """Below the server; or a whole URL that it has named."""
    repository: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: bytes | list[bytes] | None = None
    """A list is sent piece by piece; its length must be among the headers."""
    rights: str = "pull"
    source: str = ""
    """Another repository that is read from."""
    most: int = MOST_TEXT
    """The bytes of an answer, at most."""
    expected: tuple[int, ...] = (OK,)
    what: str = ""
    """What errors say that was asked for."""

    @property
    def scope(self) -> str:
        """The words of the Bearer flow for what is to be done."""
        wanted = f"repository:{self.repository}:{self.rights}"
        return f"{wanted} repository:{self.source}:pull" if self.source else wanted


class RegistryAnswer(msgspec.Struct, frozen=True):
    """What a registry said."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    """The final URL, after redirects."""


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Error, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrySession:
    """What all requests to one registry share."""

    base: str
    """Scheme, host and port."""
    limits: Limits = USUAL_LIMITS
    policy: RetryPolicy = field(default=POLICY, compare=False)
    connections: Connections = field(init=False, repr=False, compare=False)
    tokens: Tokens = field(init=False, repr=False, compare=False)
    known: threading.Event = field(
        init=False, repr=False, compare=False, default_factory=threading.Event
    )
    """Set when it is clear that there is a registry."""

    def __post_init__(self) -> None:
        """Share connections and logins among all requests."""
        site = network()
        connections = Connections(site.certificates, site.proxies, READ_SECONDS, self.limits)
        object.__setattr__(self, "connections", connections)
        is_plain = urlsplit(self.base).scheme == "http"
        object.__setattr__(self, "tokens", Tokens(self.name, self._fetch_token, is_plain))

    @property
    def name(self) -> str:
        """The host, and its port."""
        return urlsplit(self.base).netloc

    def location(self, answer: RegistryAnswer, what: str) -> str:
        """Return the URL at which an upload goes on.

        It may be on another host, which gets no login (`_send`): no token of ours is for it.
        """
        place = answer.headers.get(LOCATION)
        if not place:
            message = f"{self.base} is not an OCI registry: {what} has no {LOCATION}"
            raise StoreError(message, hint="is a proxy or a login page in between?")
        return urljoin(answer.url, place)

    def call(self, call: ApiRequest) -> RegistryAnswer:
        """Ask persistently."""
        return persistently(lambda: self.once(call), self.policy)

    def once(self, call: ApiRequest) -> RegistryAnswer:
        """Ask once, with a login if one is wanted."""
        self._require_registry(call.repository)
        header = self.tokens.header(call.scope)
        answer = self._send(call, header)
        if answer.status == UNAUTHORIZED and (challenge := answer.headers.get(CHALLENGE)):
            header = self.tokens.renew(challenge, call.scope, header)
            answer = self._send(call, header)
            if answer.status == UNAUTHORIZED and answer.headers.get(CHALLENGE):
                # `renew` may have returned another thread's header, which has run out as well.
                header = self.tokens.renew(answer.headers[CHALLENGE], call.scope, header)
                answer = self._send(call, header)
        if answer.status in call.expected:
            self._refuse_page(call, answer)
            return answer
        raise self._explain(call, answer)

    def _send(self, call: ApiRequest, authorization: str | None) -> RegistryAnswer:
        url = urljoin(self.base, call.path)
        headers = dict(call.headers)
        # Blobs and uploads may be elsewhere, and a login is for this host only.
        if authorization and urlsplit(url).netloc == self.name:
            headers["Authorization"] = authorization
        return self._ask(url, headers, call)

    def _ask(self, url: str, headers: Mapping[str, str], call: ApiRequest) -> RegistryAnswer:
        # Without the query: storage behind a registry puts signatures there that give access.
        shown, way = url.partition("?")[0], self.connections.proxy_note(url)
        try:
            response = self.connections.open(url, headers, call.method, call.body)
            try:
                body = b"" if call.method == "HEAD" else response.read(call.most + 1)
                final = urljoin(url, response.url or url)
                return RegistryAnswer(response.status, response.headers, body or b"", final)
            finally:
                finish_response(response, call.method)
        except (urllib3.exceptions.HTTPError, ResponseTooLarge, ResponseTooSlow) as error:
            raise broken_answer(shown, way, error) from error

    def _fetch_token(self, asked: TokenChallenge) -> bytes:
        """Ask a token server."""
        headers = {"Accept": "application/json"}
        if asked.authorization:
            headers["Authorization"] = asked.authorization
        if asked.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        method = "POST" if asked.form else "GET"
        call = ApiRequest(
            method=method, path=asked.url, repository="", body=asked.form, most=1 << 20
        )
        answer = self._ask(asked.url, headers, call)
        place = asked.url.partition("?")[0]
        # 400, too: RFC 6749, 5.2 has it for credentials that are not valid.
        if answer.status in (UNAUTHORIZED, FORBIDDEN, 400):
            message = f"{place} refuses the login for {self.name} (HTTP {answer.status})"
            raise StoreError(message, hint=f"log in again: `podman login {self.name}`")
        if answer.status != OK:
            message = f"{place}, where {self.name} sends clients for a login, failed"
            error = StoreError(f"{message} with HTTP {answer.status}", hint="try again later")
            raise Transient(error) if answer.status in BUSY_STATUSES else error
        return answer.body

    def _require_registry(self, repository: str) -> None:
        """Find out once whether there is a registry; raise StoreError for anything else."""
        if self.known.is_set():
            return
        what = "GET /v2/"
        call = ApiRequest(method="GET", path="/v2/", repository=repository, most=1 << 20, what=what)
        answer = self._ask(urljoin(self.base, call.path), {}, call)
        is_registry = answer.status == OK and not _is_page(answer)
        is_registry |= answer.status == UNAUTHORIZED and CHALLENGE in answer.headers
        is_registry |= VERSION in answer.headers
        # Not known yet: a registry that is busy answers like anything else.
        if answer.status in BUSY_STATUSES:
            raise self._explain(call, answer)
        if not is_registry:
            raise self.no_registry(what, answer.status)
        self.known.set()

    def _refuse_page(self, call: ApiRequest, answer: RegistryAnswer) -> None:
        """Raise for a page of a proxy, which says 200 to everything."""
        if answer.status == OK and _is_page(answer):
            raise self.no_registry(call.what, answer.status)

    def no_registry(self, what: str, status: int) -> Exception:
        """Return what to raise where something else answers; a page may be gone at the next try."""
        message = f"{self.base} is not an OCI registry: {what} was answered with HTTP {status}"
        hint = "check oci://HOST:PORT/REPOSITORY; is a proxy or a login page in between?"
        error = StoreError(message if status != OK else f"{message} and a page", hint=hint)
        return Transient(error) if status == OK or status in BUSY_STATUSES else error

    def _explain(self, call: ApiRequest, answer: RegistryAnswer) -> Exception:
        """Return what to raise for an answer that was not expected."""
        codes, said = _errors(answer.body)
        status, words = answer.status, said or f"HTTP {answer.status}"
        what = call.what or f"{call.method} {call.path.partition('?')[0]}"
        if "NAME_UNKNOWN" in codes:
            message = f"{self.name} has no repository {call.repository} ({words})"
            hint = "create it there first: this registry makes none by itself"
            return StoreError(message, hint=hint)
        # Before DENIED: to log in as another user does not help where a project is full.
        if QUOTA.search(words) and status in (FORBIDDEN, TOO_LARGE, NO_PRECONDITION):
            message = f"{self.name} has no room for {what} ({words})"
            hint = "free some: `envferry prune`, then the registry's own cleanup; or get more"
            return StoreError(message, hint=hint)
        if status in (UNAUTHORIZED, FORBIDDEN) or "DENIED" in codes:
            message = f"{self.name} denies access to {what} ({words})"
            hint = f"log in as another user (`podman login {self.name}`), or ask for access"
            return StoreError(message, hint=hint)
        if status == NOT_ALLOWED or "UNSUPPORTED" in codes:
            message = f"{self.name} does not offer {what} ({words})"
            return NotOfferedByRegistry(message, hint="ask the administrator of that registry")
        if any(code.endswith("BLOB_UNKNOWN") for code in codes):
            # Registries of several servers, and busy ones, see a blob a moment after they took it.
            message = f"{self.name} lacks a blob of {what} ({words})"
            hint = "run the command again: what is missing is sent"
            return Transient(StoreError(message, hint=hint))
        if "DIGEST_INVALID" in codes or "SIZE_INVALID" in codes:
            message = f"{what} does not arrive at {self.name} as it was sent ({words})"
            return IntegrityError(message, hint="something on the way changes bytes: use https")
        asked = asked_seconds(answer.headers.get("Retry-After"))
        message = f"{self.name} failed for {what}: {words}{waiting_words(asked)}"
        error = StoreError(message, hint="look at the registry's log, or try again")
        return Transient(error, asked=asked) if status in BUSY_STATUSES else error


def _errors(body: bytes) -> tuple[tuple[str, ...], str]:
    """Return the codes and the words of an answer that is an error."""
    try:
        found = decode_json(body, _Errors).errors
    except msgspec.MsgspecError:
        return (), ""
    words = "; ".join(f"{one.code} {one.message}".strip() for one in found)
    return tuple(one.code for one in found), words[:SHOWN]


def _is_page(answer: RegistryAnswer) -> bool:
    return answer.headers.get("Content-Type", "").lower().startswith("text/html")
