"""A registry on a server, by the OCI distribution API.

https://github.com/opencontainers/distribution-spec, version 1.1. What Debian's docker-registry 2.8
does not know of it (referrers, conditions) is made up for in `store.py`.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
import urllib3

from envferry.base.connections import Connections
from envferry.base.json import decode_json
from envferry.base.limits import USUAL_LIMITS, Limits, TooMuch, TooSlow, limited
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
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.stores.http import broken_answer, settle
from envferry.stores.oci.documents import DOCKER_MANIFESTS, INDEX, MANIFEST, ImageIndex, digest_of
from envferry.stores.oci.port import FoundContent
from envferry.stores.oci.tokens import TokenChallenge, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.stores.oci.documents import Descriptor

log = logging.getLogger(__name__)

T = TypeVar("T")
READ_SECONDS = 60
SHOWN = 200
MOST_MANIFEST = 4 << 20
"""Registries refuse larger ones: https://github.com/opencontainers/distribution-spec, "Pushing"."""
MOST_TEXT = 32 << 20
TAGS_AT_ONCE = 1000
ACCEPTED = ", ".join((MANIFEST, INDEX, *DOCKER_MANIFESTS))
CHALLENGE, DIGEST, LOCATION = "WWW-Authenticate", "Docker-Content-Digest", "Location"
SUBJECT, VERSION = "OCI-Subject", "Docker-Distribution-Api-Version"
OK, CREATED, ACCEPTED_STATUS, NO_CONTENT, PARTIAL = 200, 201, 202, 204, 206
UNAUTHORIZED, FORBIDDEN, ABSENT, NOT_ALLOWED, GONE = 401, 403, 404, 405, 410
LINK = re.compile(r'<(?P<url>[^>]*)>\s*;\s*rel="?next"?')
RANGE = re.compile(r"(?:bytes=)?0-(?P<last>\d{1,18})")


class NotOfferedByRegistry(StoreError):
    """The registry does not have that operation, or does not allow it."""


class UploadGone(StoreError):
    """The registry does not know an upload any more, or not at this place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request of the API."""

    method: str
    path: str
    """Below the server; or a whole URL that it has named."""
    repository: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | list[bytes] | None = None
    """A list is sent piece by piece; its length must be among the headers."""
    rights: str = "pull"
    most: int = MOST_TEXT
    """The bytes of an answer, at most."""
    expected: tuple[int, ...] = (OK,)
    what: str = ""
    """What errors say that was asked for."""

    @property
    def scope(self) -> str:
        """The words of the Bearer flow for what is to be done."""
        return f"repository:{self.repository}:{self.rights}"


@dataclass(frozen=True, slots=True)
class RegistryAnswer:
    """What a registry said."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    """Where it came from in the end."""


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Error, ...] = ()


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RegistryClient:
    """A `Space` on a server."""

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

    def manifest(self, repository: str, reference: str) -> FoundContent | None:
        """Return a manifest, compared with its digest."""
        return persistently(lambda: self._manifest_once(repository, reference), self.policy)

    def _manifest_once(self, repository: str, reference: str) -> FoundContent | None:
        answer = self._once(_manifest_call("GET", repository, reference))
        if answer.status == ABSENT:
            return None
        digest = digest_of(answer.body)
        said = answer.headers.get(DIGEST, digest)
        wanted = reference if ":" in reference else said
        if (said, wanted) != (digest, digest):
            message = f"{self.name} sends another manifest of {repository}:{reference} than it says"
            error = IntegrityError(f"{message}: {digest}, not {wanted}", hint="ask who runs it")
            raise Transient(error)
        return FoundContent(answer.body, digest)

    def manifest_digest(self, repository: str, tag: str) -> str | None:
        """Return the digest of a tag, by HEAD where that says it."""
        answer = self.call(_manifest_call("HEAD", repository, tag))
        if answer.status == ABSENT:
            return None
        if said := answer.headers.get(DIGEST):
            return said
        found = self.manifest(repository, tag)
        return found.digest if found else None

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> bool:
        """Write a manifest; the registry must say the digest that it has."""
        answer = self.call(
            Call(
                method="PUT",
                path=f"/v2/{repository}/manifests/{tag}",
                repository=repository,
                headers={"Content-Type": media_type},
                body=data,
                rights="pull,push",
                expected=(CREATED, OK, ACCEPTED_STATUS),
                what=f"{repository}:{tag}",
            )
        )
        said, digest = answer.headers.get(DIGEST), digest_of(data)
        if said and said != digest:
            message = f"{self.name} says that {repository}:{tag} is {said}, {digest} was sent"
            raise IntegrityError(message, hint="something on the way changes it: use https")
        return SUBJECT in answer.headers

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest by its digest."""
        call = Call(
            method="DELETE",
            path=f"/v2/{repository}/manifests/{digest}",
            repository=repository,
            rights="pull,push,delete",
            expected=(OK, ACCEPTED_STATUS, NO_CONTENT, ABSENT),
            what=f"removing from {repository}",
        )
        try:
            self.call(call)
        except NotOfferedByRegistry as error:
            hint = "allow it there (docker-registry: `storage: delete: enabled: true`)"
            raise NotOfferedByRegistry(error.message, hint=hint) from error

    def tags(self, repository: str) -> Iterator[str]:
        """Yield tags, a page of a thousand at a time."""
        return limited(self._tags(repository), f"{self.name}/{repository}")

    def _tags(self, repository: str) -> Iterator[str]:
        path = f"/v2/{repository}/tags/list?n={TAGS_AT_ONCE}"
        while path:
            what = f"the tags of {repository}"
            call = Call(
                method="GET", path=path, repository=repository, expected=(OK, ABSENT), what=what
            )
            answer, found = self._decoded(call, _Tags)
            if found is None:
                return
            yield from found.tags or ()
            following = LINK.search(answer.headers.get("Link", ""))
            path = urljoin(answer.url, following["url"]) if following else ""

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor] | None:
        """Return what the registry lists; None where it does not know the question."""
        found: list[Descriptor] = []
        path = f"/v2/{repository}/referrers/{digest}"
        while path:
            what = f"what refers to {digest} in {repository}"
            call = Call(
                method="GET",
                path=path,
                repository=repository,
                headers={"Accept": INDEX},
                expected=(OK, ABSENT, NOT_ALLOWED),
                what=what,
            )
            answer, index = self._decoded(call, ImageIndex)
            if index is None:
                return None
            found += index.manifests
            following = LINK.search(answer.headers.get("Link", ""))
            path = urljoin(answer.url, following["url"]) if following else ""
        return found

    def _decoded(self, call: Call, type_: type[T]) -> tuple[RegistryAnswer, T | None]:
        """Ask for a listing until it is one; None where the answer is not 200."""

        def attempt() -> tuple[RegistryAnswer, T | None]:
            answer = self._once(call)
            if answer.status != OK:
                return answer, None
            try:
                return answer, decode_json(answer.body, type_)
            except msgspec.MsgspecError as error:
                raise self._no_registry(call.what, answer.status) from error

        return persistently(attempt, self.policy)

    def has_blob(self, repository: str, digest: str) -> bool:
        """Ask by HEAD."""
        call = Call(
            method="HEAD",
            path=f"/v2/{repository}/blobs/{digest}",
            repository=repository,
            expected=(OK, ABSENT),
            what=f"{digest} in {repository}",
        )
        return self.call(call).status == OK

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Ask for a blob of another repository; a registry may begin an upload instead."""
        call = Call(
            method="POST",
            path=f"/v2/{repository}/blobs/uploads/?mount={digest}&from={source}",
            repository=repository,
            headers={"Content-Length": "0"},
            rights="pull,push",
            expected=(CREATED, ACCEPTED_STATUS, ABSENT, NOT_ALLOWED),
            what=f"{digest} in {repository}",
        )
        answer = self.call(call)
        if answer.status == ACCEPTED_STATUS and (place := answer.headers.get(LOCATION)):
            self._forget(repository, urljoin(answer.url, place))
        return answer.status == CREATED

    def _forget(self, repository: str, place: str) -> None:
        """End an upload that is not needed; one that stays is the registry's to remove."""
        call = Call(method="DELETE", path=place, repository=repository, rights="pull,push",
                    expected=(NO_CONTENT, OK, ACCEPTED_STATUS, ABSENT, NOT_ALLOWED))  # fmt: skip
        try:
            self.call(call)
        except StoreError as error:
            log.info("an upload that was not wanted stays: %s", error)

    def read_blob(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        """Return a part of a blob, or all of it compared with its digest."""
        if length == 0:
            return b""
        return persistently(lambda: self._read_once(repository, blob, offset, length), self.policy)

    def _read_once(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        is_all = offset == 0 and length == blob.size
        headers = {} if is_all else {"Range": f"bytes={offset}-{offset + length - 1}"}
        what = f"{blob.digest} in {repository}"
        call = Call(
            method="GET",
            path=f"/v2/{repository}/blobs/{blob.digest}",
            repository=repository,
            headers=headers,
            most=length,
            expected=(OK, PARTIAL, ABSENT, GONE),
            what=what,
        )
        answer = self._once(call)
        if answer.status in (ABSENT, GONE):
            message = f"{what} is not at {self.name}"
            raise NotFound(message, hint="push the artifact again")
        if answer.status == OK and offset:
            message = f"{self.name} ignores range requests: it sent {what} from its beginning"
            raise StoreError(message, hint="fetch the artifact and install it from the file")
        # Who ignores ranges sends all of it: its beginning is what was asked for.
        body = answer.body if is_all or answer.status == PARTIAL else answer.body[:length]
        if len(body) != length:
            message = f"{what} at {self.name}: {len(body)} of {length} bytes came"
            raise Transient(IntegrityError(f"{message} from {offset} on", hint="push it again"))
        if is_all and digest_of(body) != blob.digest:
            message = f"{self.name} sends something else for {what}: {digest_of(body)}"
            raise IntegrityError(message, hint="push the artifact again, or ask who runs it")
        return body

    def upload(self, repository: str, resumed: str | None = None) -> HttpUpload:
        """Begin an upload, or go on with one; UploadGone where that is not possible."""
        if resumed:
            upload = HttpUpload(self, repository, resumed)
            upload.ask()
            return upload
        call = Call(
            method="POST",
            path=f"/v2/{repository}/blobs/uploads/",
            repository=repository,
            headers={"Content-Length": "0"},
            rights="pull,push",
            expected=(ACCEPTED_STATUS,),
            what=f"an upload to {repository}",
        )
        answer = self.call(call)
        return HttpUpload(self, repository, self.location(answer, call.what))

    def location(self, answer: RegistryAnswer, what: str) -> str:
        """Return where an upload goes on; only the registry itself is believed.

        Other hosts are legal, and get no login: no token of ours is for them.
        """
        place = answer.headers.get(LOCATION)
        if not place:
            message = f"{self.base} is not an OCI registry: {what} has no {LOCATION}"
            raise StoreError(message, hint="is a proxy or a login page in between?")
        return urljoin(answer.url, place)

    def call(self, call: Call) -> RegistryAnswer:
        """Ask persistently."""
        return persistently(lambda: self._once(call), self.policy)

    def _once(self, call: Call) -> RegistryAnswer:
        """Ask once, with a login if one is wanted."""
        self._require_registry(call.repository)
        header = self.tokens.header(call.scope)
        answer = self._send(call, header)
        if answer.status == UNAUTHORIZED and (challenge := answer.headers.get(CHALLENGE)):
            header = self.tokens.renew(challenge, call.scope, header)
            answer = self._send(call, header)
            if answer.status == UNAUTHORIZED and answer.headers.get(CHALLENGE):
                # A token that has just run out, or a login that does not do: only one is new.
                header = self.tokens.renew(answer.headers[CHALLENGE], call.scope, header)
                answer = self._send(call, header)
        if answer.status in call.expected:
            self._require_words(call, answer)
            return answer
        raise self._explain(call, answer)

    def _send(self, call: Call, authorization: str | None) -> RegistryAnswer:
        url = urljoin(self.base, call.path)
        headers = dict(call.headers)
        if authorization and urlsplit(url).netloc == self.name:
            headers["Authorization"] = authorization
        return self._ask(url, headers, call)

    def _ask(self, url: str, headers: Mapping[str, str], call: Call) -> RegistryAnswer:
        shown, way = url.partition("?")[0], self.connections.way_to(url)
        try:
            response = self.connections.open(url, headers, call.method, call.body)
            try:
                body = b"" if call.method == "HEAD" else response.read(call.most + 1)
                final = urljoin(url, response.url or url)
                return RegistryAnswer(response.status, response.headers, body or b"", final)
            finally:
                settle(response, call.method)
        except (urllib3.exceptions.HTTPError, TooMuch, TooSlow) as error:
            raise broken_answer(shown, way, error) from error

    def _fetch_token(self, asked: TokenChallenge) -> bytes:
        """Ask a token server."""
        headers = {"Accept": "application/json"}
        if asked.authorization:
            headers["Authorization"] = asked.authorization
        if asked.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        method = "POST" if asked.form else "GET"
        call = Call(method=method, path=asked.url, repository="", body=asked.form, most=1 << 20)
        answer = self._ask(asked.url, headers, call)
        place = asked.url.partition("?")[0]
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
        call = Call(method="GET", path="/v2/", repository=repository, most=1 << 20, what=what)
        answer = self._ask(urljoin(self.base, call.path), {}, call)
        is_registry = answer.status == OK and not _is_page(answer)
        is_registry |= answer.status == UNAUTHORIZED and CHALLENGE in answer.headers
        is_registry |= VERSION in answer.headers
        if answer.status in BUSY_STATUSES:
            raise self._explain(call, answer)
        if not is_registry:
            raise self._no_registry(what, answer.status)
        self.known.set()

    def _require_words(self, call: Call, answer: RegistryAnswer) -> None:
        """Raise for a page of a proxy, which says 200 to everything."""
        if answer.status == OK and _is_page(answer):
            raise self._no_registry(call.what, answer.status)

    def _no_registry(self, what: str, status: int) -> Exception:
        message = f"{self.base} is not an OCI registry: {what} was answered with HTTP {status}"
        hint = "check oci://HOST:PORT/REPOSITORY; is a proxy or a login page in between?"
        error = StoreError(message if status != OK else f"{message} and a page", hint=hint)
        return Transient(error) if status == OK or status in BUSY_STATUSES else error

    def _explain(self, call: Call, answer: RegistryAnswer) -> Exception:
        """Return what to raise for an answer that was not expected."""
        codes, said = _errors(answer.body)
        status, words = answer.status, said or f"HTTP {answer.status}"
        what = call.what or f"{call.method} {call.path.partition('?')[0]}"
        if status in (UNAUTHORIZED, FORBIDDEN) or "DENIED" in codes:
            message = f"{self.name} denies access to {what} ({words})"
            hint = f"who may do that? log in with `podman login {self.name}`, or ask for the right"
            return StoreError(message, hint=hint)
        if status == NOT_ALLOWED or "UNSUPPORTED" in codes:
            message = f"{self.name} does not offer {what} ({words})"
            return NotOfferedByRegistry(message, hint="ask who runs it")
        if any(code.endswith("BLOB_UNKNOWN") for code in codes):
            message = f"{self.name} lacks a blob of {what} ({words})"
            return StoreError(message, hint="run the command again: what is missing is sent")
        if "DIGEST_INVALID" in codes or "SIZE_INVALID" in codes:
            message = f"{what} does not arrive at {self.name} as it was sent ({words})"
            return IntegrityError(message, hint="something on the way changes bytes: use https")
        asked = asked_seconds(answer.headers.get("Retry-After"))
        message = f"{self.name} failed for {what}: {words}{waiting_words(asked)}"
        error = StoreError(message, hint="look at the registry's log, or try again")
        return Transient(error, asked=asked) if status in BUSY_STATUSES else error


@dataclass(slots=True)
class HttpUpload:
    """An upload in chunks; each goes on where the last one has ended."""

    client: RegistryClient
    repository: str
    place: str
    """Where the next chunk goes: another URL after each."""
    sent: int = 0

    @property
    def token(self) -> str:
        """The URL of the next chunk."""
        return self.place

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send a chunk; what of it has arrived when that breaks is not sent again."""
        start = self.sent

        def attempt() -> None:
            body = _without(pieces, self.sent - start)
            if body:
                self._patch(body)

        persistently(attempt, self.client.policy)

    def _patch(self, body: list[bytes]) -> None:
        size = sum(map(len, body))
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{self.sent}-{self.sent + size - 1}",
        }
        call = self._call("PATCH", self.place, headers=headers, body=body)
        try:
            answer = self.client._once(call)
        except Transient as failure:
            before = self.sent
            self.ask()  # raises UploadGone when nobody knows what has arrived
            if not before <= self.sent <= before + size:
                msg = f"{self.sent} bytes are there"
                raise self._gone(msg) from failure
            raise
        self.place = self.client.location(answer, call.what)
        self.sent += size

    def ask(self) -> None:
        """Find out what has arrived; raise UploadGone when the registry cannot say."""
        call = self._call("GET", self.place, expected=(NO_CONTENT, OK, ACCEPTED_STATUS))
        try:
            answer = self.client.call(call)
        except (StoreError, IntegrityError) as error:
            raise self._gone(error.message) from error
        found = RANGE.fullmatch(answer.headers.get("Range", ""))
        if not found:
            msg = "it does not say what has arrived"
            raise self._gone(msg)
        # Some say 0-0 of an upload that has nothing: one byte alone is not believed.
        last = int(found["last"])
        self.sent = last + 1 if last else 0
        if answer.headers.get(LOCATION):
            self.place = self.client.location(answer, call.what)

    def finish(self, digest: str, last: bytes = b"") -> None:
        """Close the upload under its digest."""
        joint = "&" if urlsplit(self.place).query else "?"
        call = self._call(
            "PUT",
            f"{self.place}{joint}digest={digest}",
            headers={
                "Content-Length": str(len(last)),
                "Content-Type": "application/octet-stream",
            },
            body=last,
            expected=(CREATED, NO_CONTENT),
        )
        try:
            self.client.call(call)
        except StoreError as error:
            # The answer may have been lost, and the upload is closed by then.
            if not self.client.has_blob(self.repository, digest):
                raise self._gone(error.message) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        expected: tuple[int, ...] = (ACCEPTED_STATUS, CREATED, NO_CONTENT),
        headers: Mapping[str, str] | None = None,
        body: bytes | list[bytes] | None = None,
    ) -> Call:
        return Call(
            method=method,
            path=path,
            repository=self.repository,
            headers=headers or {},
            body=body,
            rights="pull,push",
            expected=expected,
            what=f"an upload to {self.repository}",
        )

    def _gone(self, why: str) -> UploadGone:
        message = f"an upload to {self.repository} at {self.client.name} was lost: {why}"
        return UploadGone(message, hint="run the command again")


def _without(pieces: Sequence[bytes], count: int) -> list[bytes]:
    """Return pieces without their first bytes."""
    left = []
    for piece in pieces:
        if count < len(piece):
            left.append(piece[count:] if count else piece)
        count = max(count - len(piece), 0)
    return left


def _manifest_call(method: str, repository: str, reference: str) -> Call:
    return Call(
        method=method,
        path=f"/v2/{repository}/manifests/{reference}",
        repository=repository,
        headers={"Accept": ACCEPTED},
        most=MOST_MANIFEST,
        expected=(OK, ABSENT),
        what=f"{repository}:{reference}",
    )


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
