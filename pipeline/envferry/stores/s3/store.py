"""A registry in object storage: S3 itself, or a server that speaks it."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from botocore import exceptions as boto_errors
from msgspec.structs import replace

from envferry.base.limits import USUAL_LIMITS, Limits, limited, most_bytes, require_sane
from envferry.base.retry import Transient, persistently
from envferry.config import allows_races
from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.port import KeyTaken, Listed, LostRace, Stat, check_key, check_prefix, ignore
from envferry.stores.receive import content_of_file
from envferry.stores.s3.answers import NAMES_HINT, Conflict, Empty, NotOffered
from envferry.stores.s3.calls import S3Calls, close_body, open_client
from envferry.stores.s3.conditions import require_conditions
from envferry.stores.s3.multipart import PART_BYTES, receive_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from envferry.stores.port import KnownRange
    from envferry.stores.source import ContentSource

log = logging.getLogger(__name__)

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""What requests can be made for: some servers have names that Amazon does not allow."""


class S3Store(msgspec.Struct, frozen=True):
    """A `Store` in a bucket, below a prefix."""

    compares_while_sending: ClassVar[bool] = True
    disk: ClassVar[None] = None
    images: ClassVar[None] = None
    """It keeps values, not images."""

    call: S3Calls

    @classmethod
    def open(cls, url: str, limits: Limits = USUAL_LIMITS) -> S3Store:
        """Open `s3://BUCKET/PREFIX` with the standard AWS configuration."""
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            message = f"{url} names no bucket"
            raise UsageError(message, hint="write s3://BUCKET or s3://BUCKET/PREFIX")
        if not BUCKET_NAME.fullmatch(bucket):
            message = f"{bucket!r} cannot be the name of a bucket"
            raise UsageError(message, hint=NAMES_HINT)
        if prefix:
            check_key(prefix)
        client = open_client(url, limits)
        return cls(S3Calls(client, bucket, f"{prefix}/" if prefix else "", allows_races()))

    @property
    def url(self) -> str:
        """The URL that it was opened with."""
        return self.call.url

    @property
    def place(self) -> str:
        """The URL on its server: many servers may have a bucket of that name."""
        return f"{self.call.endpoint} {self.url}"

    def stat(self, key: str) -> Stat | None:
        """Ask for the object's size and ETag."""
        try:
            head = self.call("head_object", **self._object(key))
        except NotFound:
            return None
        return Stat(
            size=head["ContentLength"], version=head["ETag"], modified=head.get("LastModified")
        )

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of an object; what broke while it was read is read again."""
        if length == 0:
            return b""
        return persistently(lambda: self._read_once(key, offset, length))

    @property
    def writable(self) -> S3Store:
        """Itself."""
        return self

    def create(self, key: str, data: bytes) -> None:
        """Put an object with `If-None-Match: *`."""
        with self._creating(key):
            self._put(key, data)

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Put an object with `If-None-Match: *`, a large file as a multipart upload."""
        with content_of_file(path) as content:
            self.receive(key, content, advance)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Put an object with `If-None-Match: *`, a large one as a multipart upload."""
        with self._creating(key):
            if content.size <= PART_BYTES:
                self._put(key, content.read())
                advance(content.size)
                return
            there = [replace(one, key=self.call.prefix + one.key) for one in known]
            receive_file(self.call, self._object(key), content, advance, there)
            # Each part had its checksum; that the server joined all of them, the length tells.
            self._require_arrived(key, content.size)

    def _put(self, key: str, data: bytes) -> None:
        self.call("put_object", **self._object(key), Body=data, IfNoneMatch="*")

    @contextmanager
    def _creating(self, key: str) -> Iterator[None]:
        """Raise KeyTaken before or after a write that another writer won."""
        # A look first: the server compares the condition only when all bytes have been sent.
        if self.stat(key):
            raise KeyTaken.at(key, self.url)
        self._require_conditions()
        try:
            yield
        except Conflict as error:
            raise KeyTaken.at(key, self.url) from error
        except NotFound as error:
            # An upload that has disappeared was completed, and the answer was lost.
            if not self.stat(key):
                raise
            raise KeyTaken.at(key, self.url) from error

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Put an object with `If-Match`, or `If-None-Match: *` when it must not exist."""
        self._require_conditions()
        if self.call.allows_races:
            self._require_version(key, expected)
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            answer = self.call("put_object", **self._object(key), Body=data, **condition)
        except (Conflict, NotFound) as error:
            # If-Match on an object that is gone is answered with 404.
            raise LostRace.at(key, self.url) from error
        version: str = answer["ETag"]
        return version

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield objects, a page of a thousand at a time."""
        return limited(self._listed(prefix), self.url)

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Yield objects and common prefixes, a page of a thousand at a time."""
        return limited(self._listed(prefix, Delimiter="/"), self.url)

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Yield multipart uploads, a page of a thousand at a time."""
        return limited(self._unfinished(prefix), self.url)

    def _listed(self, prefix: str, **delimiter: str) -> Iterator[Listed]:
        where = {
            "Bucket": self.call.bucket,
            "Prefix": self.call.prefix + check_prefix(prefix),
            **delimiter,
        }
        page = self.call("list_objects_v2", **where)
        while True:
            for item in page.get("Contents", ()):
                yield Listed(
                    key=item["Key"].removeprefix(self.call.prefix),
                    size=item["Size"],
                    modified=item["LastModified"],
                    stamp=item["ETag"],
                )
            for item in page.get("CommonPrefixes", ()):
                yield Listed.folder(item["Prefix"].removeprefix(self.call.prefix))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            page = self.call("list_objects_v2", **where, ContinuationToken=token)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.call("delete_object", **self._object(key))

    def delete_folder(self, prefix: str) -> None:
        """Delete the key that an empty folder has on some servers.

        SeaweedFS lists empty folders for minutes; `DELETE folder/` ends that, and does nothing to
        one that holds something (measured, 4.48). To other servers it is a key that is not there.
        """
        key = self.call.prefix + check_prefix(prefix)
        self.call("delete_object", Bucket=self.call.bucket, Key=key)

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """End the unfinished multipart uploads."""
        now, least = datetime.now(timezone.utc), timedelta(seconds=older_seconds)
        dead = [one for one in self._uploads(prefix) if now - self._begun(one, now) >= least]
        for one in dead:
            upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
            self.call("abort_multipart_upload", Bucket=self.call.bucket, **upload)
        return len(dead)

    def _begun(self, upload: Mapping[str, Any], now: datetime) -> datetime:
        """Return when an upload began, or its first part arrived.

        `now` where the server says neither (SeaweedFS 4.45 does not say when an upload began):
        what may be under way stays.
        """
        begun: datetime | None = upload.get("Initiated")
        times = (
            [begun] if begun else [part.get("LastModified") for part in self._parts(upload) or ()]
        )
        return min((time for time in times if time), default=now)

    def _parts(self, upload: Mapping[str, Any]) -> Sequence[dict[str, Any]] | None:
        """Return the parts of an upload, None if it was finished or ended in this moment."""
        named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
        parts: list[dict[str, Any]] = []
        try:
            page = self.call("list_parts", Bucket=self.call.bucket, **named)
            parts += page.get("Parts", ())
            # A page has a thousand parts at most; an upload may have ten thousand.
            while page.get("IsTruncated"):
                named["PartNumberMarker"] = page["NextPartNumberMarker"]
                page = self.call("list_parts", Bucket=self.call.bucket, **named)
                parts += page.get("Parts", ())
        except NotFound:
            return None
        return parts

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the unfinished multipart uploads, a page of a thousand at a time."""
        where = {"Bucket": self.call.bucket, "Prefix": self.call.prefix + check_prefix(prefix)}
        try:
            page = self.call("list_multipart_uploads", **where)
        except NotOffered as error:
            log.warning(
                "%s cannot list unfinished uploads: those of interrupted pushes stay", self.url
            )
            log.info("%s", error)
            return
        while True:
            yield from page.get("Uploads", ())
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": page["NextKeyMarker"]}
            if upload := page.get("NextUploadIdMarker"):
                markers["UploadIdMarker"] = upload
            page = self.call("list_multipart_uploads", **where, **markers)

    def _unfinished(self, prefix: str) -> Iterator[Listed]:
        now = datetime.now(timezone.utc)
        for one in self._uploads(prefix):
            if (parts := self._parts(one)) is None:
                continue
            yield Listed(
                key=one["Key"].removeprefix(self.call.prefix),
                size=sum(part["Size"] for part in parts),
                modified=self._begun(one, now),
                stamp=one["UploadId"],
            )

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.call.bucket, "Key": self.call.prefix + check_key(key)}

    def _require_version(self, key: str, expected: str | None) -> None:
        """Raise LostRace unless a key has this version, by a look at it: for want of conditions."""
        stat = self.stat(key)
        if (stat.version if stat else None) != expected:
            raise LostRace.at(key, self.url)

    def _require_conditions(self) -> None:
        """Find out once whether the server honours conditions on writes; raise when it does not."""
        # Under the lock, so that of several threads one tries the server out and the others wait.
        with self.call.known.guard:
            if not (self.call.allows_races or self.call.known.conditions.is_set()):
                require_conditions(self.call, self.call.bucket, self.call.prefix)
                self.call.known.conditions.set()

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        """Read a range, also when it is all: then the answer says how long the whole is."""
        last = "" if length is None else str(offset + length - 1)
        wanted = {**self._object(key), "Range": f"bytes={offset}-{last}"}
        try:
            # Not `call`: a body can break as well, so all of this method is one attempt.
            answer = self.call.call_once("get_object", wanted)
        except Empty:
            if offset == 0 and length is None:
                return b""
            raise
        body = answer["Body"]
        said = answer.get("ContentRange", "").rpartition("/")[2]
        if said == "0" and offset == 0 and length is None:
            close_body(answer)  # some servers call nothing a range, and promise a byte of it
            return b""
        total = int(said) if said.isdecimal() else 0
        most = most_bytes(key) if length is None else length
        try:
            with body:  # not `as`: that is the raw stream, whose errors are not botocore's
                if length is None:
                    require_sane(max(total - offset, answer.get("ContentLength", 0)), key, self.url)
                # One byte more than is wanted, to notice that there is more.
                data: bytes = body.read(most + 1)
        except boto_errors.BotoCoreError as error:
            raise self.call.transient(error, key) from error
        if length is None:
            require_sane(len(data), key, self.url)
        expected = total - offset if length is None else length
        if total and total < offset + expected:
            message = f"{key} in {self.url} has {total} bytes, {offset + expected} are expected"
            raise StoreError(message, hint="the object is cut off: push it again")
        if len(data) != expected:
            found = f"received {len(data)} of {expected} bytes from offset {offset}"
            message = f"{key} in {self.url}: {found}"
            raise Transient(StoreError(message, hint="is a proxy in between? try again"))
        return data

    def _require_arrived(self, key: str, size: int) -> None:
        """Ask the store how long the object is that it has made of the parts."""
        stat = self.stat(key)
        if not stat or stat.size != size:
            message = f"{key} in {self.url} has {stat.size if stat else 0} bytes, {size} were sent"
            raise StoreError(message, hint="remove it there, then push again")
