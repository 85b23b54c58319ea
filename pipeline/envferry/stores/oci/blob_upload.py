"""Uploads of blobs in chunks, which go on where they were cut.

https://github.com/opencontainers/distribution-spec, version 1.1, "Pushing a blob in chunks".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from envferry.base.retry import Transient, persistently
from envferry.errors import IntegrityError, StoreError
from envferry.stores.oci.registry_session import (
    ABSENT,
    ACCEPTED_STATUS,
    CREATED,
    LOCATION,
    NO_CONTENT,
    OK,
    ApiRequest,
    RegistrySession,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RANGE = re.compile(r"(?:bytes=)?0-(?P<last>\d{1,18})")


class UploadGone(StoreError):
    """The registry does not know an upload any more, or not at this place."""


class HttpUpload(msgspec.Struct):
    """An upload in chunks; each goes on where the last one has ended."""

    session: RegistrySession
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
            # `_patch` asks what has arrived before it lets another attempt follow.
            body = _without(pieces, self.sent - start)
            if body:
                self._patch(body)

        persistently(attempt, self.session.policy)

    def _patch(self, body: list[bytes]) -> None:
        size = sum(map(len, body))
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            # Without a unit, unlike RFC 9110: the specification has `<start>-<end>`.
            "Content-Range": f"{self.sent}-{self.sent + size - 1}",
        }
        call = self._call("PATCH", self.place, headers=headers, body=body)
        try:
            answer = self.session.once(call)
        except Transient as failure:
            before = self.sent
            self.ask()  # raises UploadGone when the registry does not know what has arrived
            # Fewer: the registry has lost what it had. More: someone else sends to this upload.
            if not before <= self.sent <= before + size:
                msg = f"{self.sent} bytes are there"
                raise self._gone(msg) from failure
            raise
        self.place = self.session.location(answer, call.what)
        self.sent += size

    def ask(self) -> None:
        """Find out what has arrived; raise UploadGone when the registry cannot say."""
        call = self._call("GET", self.place, expected=(NO_CONTENT, OK, ACCEPTED_STATUS))
        try:
            answer = self.session.call(call)
        except (StoreError, IntegrityError) as error:
            raise self._gone(error.message) from error
        found = RANGE.fullmatch(answer.headers.get("Range", ""))
        if not found:
            msg = "it does not say what has arrived"
            raise self._gone(msg)
        # Some say 0-0 of an upload that has nothing: one byte alone is not believed.
        last = int(found["last"])
        self.sent = last + 1 if last else 0
        # Optional here: without it, the upload stays where it was.
        if answer.headers.get(LOCATION):
            self.place = self.session.location(answer, call.what)

    def finish(self, digest: str, last: bytes = b"") -> None:
        """Close the upload under its digest."""
        # The place may have a query, which is the upload's and has to stay.
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
            self.session.call(call)
        except StoreError as error:
            # The answer may have been lost, and the upload is closed by then.
            if not has_blob(self.session, self.repository, digest):
                raise self._gone(error.message) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        expected: tuple[int, ...] = (ACCEPTED_STATUS, CREATED, NO_CONTENT),
        headers: Mapping[str, str] | None = None,
        body: bytes | list[bytes] | None = None,
    ) -> ApiRequest:
        return ApiRequest(
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
        message = f"an upload to {self.repository} at {self.session.name} was lost: {why}"
        return UploadGone(message, hint="run the command again")


def _without(pieces: Sequence[bytes], count: int) -> list[bytes]:
    """Return pieces without their first bytes."""
    left = []
    for piece in pieces:
        if count < len(piece):
            left.append(piece[count:] if count else piece)
        count = max(count - len(piece), 0)
    return left


def has_blob(session: RegistrySession, repository: str, digest: str) -> bool:
    """Whether a registry has a blob."""
    call = ApiRequest(
        method="HEAD",
        path=f"/v2/{repository}/blobs/{digest}",
        repository=repository,
        expected=(OK, ABSENT),
        what=f"{digest} in {repository}",
    )
    return session.call(call).status == OK
