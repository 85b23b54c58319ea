"""A registry in object storage: S3 itself, or a server that speaks it."""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as BrokenAnswer

from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.checksums import with_checksums, without_checksums
from envferry.stores.limits import (
    USUAL_LIMITS,
    Limits,
    broken_limit,
    limited,
    limited_pools,
    most_bytes,
    require_sane,
)
from envferry.stores.multipart import PART_BYTES, Unreachable, plan_parts, receive_file, send_file
from envferry.stores.port import KeyTaken, Listed, LostRace, Stat, check_key, check_prefix
from envferry.stores.source import Incoming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.stores.port import KnownRange

log = logging.getLogger(__name__)

ATTEMPTS = 3
CONNECT_SECONDS = 3
READ_SECONDS = 60
CONNECTIONS = 16
"""More than any stage has threads, so that none waits for a connection."""

PAUSES = (0.3, 1.0)
"""Seconds before another attempt, where boto3 makes none."""

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""What requests can be made for: some servers have names that Amazon does not allow."""
USUAL_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
NAMES_HINT = "buckets have 3 to 63 lower-case letters, digits, dots and hyphens: s3://BUCKET/PREFIX"
NO_BUCKET = ("NoSuchBucket", "InvalidBucketName")
CREDENTIALS_HINT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
REFUSED_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
MISSING_CREDENTIALS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.ProfileNotFound,
    boto_errors.TokenRetrievalError,
    boto_errors.UnauthorizedSSOTokenError,
)
NO_CONNECTION = (boto_errors.HTTPClientError, boto_errors.ConnectionError)
CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
NOT_IMPLEMENTED = 501
UNSUPPORTED = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest", "MalformedXML"})
"""What servers say that do not know checksums; and Amazon's of an upload begun without any."""
GARBLED = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
PROOFS = {
    "head_object": "ETag",
    "get_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
    "upload_part_copy": "CopyPartResult",
    "create_multipart_upload": "UploadId",
    "complete_multipart_upload": "ETag",
}
"""What the answer of a server always holds, and a page of a proxy never."""


class _Conflict(StoreError):
    """A condition of a write did not hold."""


class _Empty(StoreError):
    """The range that was asked for starts behind the end."""


class _Unsupported(StoreError):
    """The server does not do what it was asked for."""


class _Cut(StoreError):
    """An answer ended early, and said so."""


@dataclass(frozen=True, slots=True)
class S3Store:
    """A `Store` in a bucket, below a prefix."""

    client: Any
    """A client of botocore (boto3 would load transfer managers, 0.1 s), which threads may share."""
    bucket: str
    prefix: str
    """Empty, or ends in a slash."""
    knows_no_checksums: Event = field(default_factory=Event, repr=False, compare=False)
    """Set when the server refuses them."""

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
        return cls(_client(url, limits), bucket, f"{prefix}/" if prefix else "")

    @property
    def url(self) -> str:
        """The URL that it was opened with."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def place(self) -> str:
        """The URL on its server: many servers may have a bucket of that name."""
        return f"{self._endpoint} {self.url}"

    def stat(self, key: str) -> Stat | None:
        """Ask for the object's size and ETag."""
        try:
            head = self._call("head_object", **self._object(key))
        except NotFound:
            return None
        return Stat(
            size=head["ContentLength"], version=head["ETag"], modified=head.get("LastModified")
        )

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of an object; what broke while it was read is read again."""
        if length == 0:
            return b""
        for pause in PAUSES:
            try:
                return self._read_once(key, offset, length)
            except (boto_errors.HTTPClientError, boto_errors.IncompleteReadError, _Cut) as error:
                log.info("reading %s again: %s", key, error)
                time.sleep(pause)
        with self._explained(key):
            return self._read_once(key, offset, length)

    def create(
        self,
        key: str,
        source: Path | bytes | Incoming,
        advance: Callable[[int], None] | None = None,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Put an object with `If-None-Match: *`, a large file as a multipart upload."""
        if self.stat(key):
            raise self._taken(key)
        advance = advance or _ignore
        target = self._object(key)
        try:
            if (data := _if_small(source)) is not None:
                self._call("put_object", **target, Body=data, IfNoneMatch="*")
                advance(len(data))
            elif isinstance(source, Incoming):
                receive_file(self._call, target, source, advance)
                self._require_arrived(key, source.size)
            elif isinstance(source, Path):
                size = source.stat().st_size
                there = [replace(one, key=self.prefix + one.key) for one in known]
                send_file(self._call, target, source, plan_parts(size, there), advance)
                self._require_arrived(key, size)
        except _Conflict as error:
            raise self._taken(key) from error
        except NotFound as error:
            # An upload that is gone although it was there: it was completed, and nobody heard so.
            if not self.stat(key):
                raise
            raise self._taken(key) from error

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Put an object with `If-Match`, or `If-None-Match: *` when it must not exist."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            answer = self._call("put_object", **self._object(key), Body=data, **condition)
        except (_Conflict, NotFound) as error:
            message = f"{key} in {self.url} was changed by somebody else"
            raise LostRace(message, hint="run the command again") from error
        version: str = answer["ETag"]
        return version

    def list(
        self, prefix: str = "", *, folders: bool = False, unfinished: bool = False
    ) -> Iterator[Listed]:
        """Yield objects, or multipart uploads, a page of a thousand at a time."""
        if unfinished:
            yield from limited(self._unfinished(prefix), self.url)
            return
        yield from limited(self._listed(prefix, folders=folders), self.url)

    def _listed(self, prefix: str, *, folders: bool) -> Iterator[Listed]:
        where = {"Bucket": self.bucket, "Prefix": self.prefix + check_prefix(prefix)}
        if folders:
            where["Delimiter"] = "/"
        page = self._call("list_objects_v2", **where)
        while True:
            for item in page.get("Contents", ()):
                yield Listed(
                    key=item["Key"].removeprefix(self.prefix),
                    size=item["Size"],
                    modified=item["LastModified"],
                    stamp=item["ETag"],
                )
            for item in page.get("CommonPrefixes", ()):
                yield Listed.folder(item["Prefix"].removeprefix(self.prefix))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            page = self._call("list_objects_v2", **where, ContinuationToken=token)

    def delete(self, key: str, unfinished_seconds: float | None = None) -> int:
        """Delete an object, or end the multipart uploads that nobody has finished.

        SeaweedFS lists empty folders for minutes; `DELETE folder/` ends that, and does nothing to
        one that holds something (measured, 4.48). To other servers it is a key that is not there.
        """
        if unfinished_seconds is None:
            name = check_prefix(key) if key.endswith("/") else check_key(key)
            self._call("delete_object", Bucket=self.bucket, Key=self.prefix + name)
            return 1
        before = datetime.now(timezone.utc) - timedelta(seconds=unfinished_seconds)
        dead = [one for one in self._uploads(key) if one["Initiated"] <= before]
        for one in dead:
            upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
            self._call("abort_multipart_upload", Bucket=self.bucket, **upload)
        return len(dead)

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the multipart uploads that nobody has finished, a page of a thousand at a time."""
        where = {"Bucket": self.bucket, "Prefix": self.prefix + check_prefix(prefix)}
        page = self._call("list_multipart_uploads", **where)
        while True:
            yield from page.get("Uploads", ())
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": page["NextKeyMarker"]}
            if upload := page.get("NextUploadIdMarker"):
                markers["UploadIdMarker"] = upload
            page = self._call("list_multipart_uploads", **where, **markers)

    def _unfinished(self, prefix: str) -> Iterator[Listed]:
        for one in self._uploads(prefix):
            upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
            try:
                parts = self._call("list_parts", Bucket=self.bucket, **upload).get("Parts", ())
            except NotFound:
                continue  # finished, or ended, in this moment
            yield Listed(
                key=one["Key"].removeprefix(self.prefix),
                size=sum(part["Size"] for part in parts),
                modified=one["Initiated"],
                stamp=one["UploadId"],
            )

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def _taken(self, key: str) -> KeyTaken:
        return KeyTaken(f"{key} exists in {self.url} and is never overwritten")

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        """Read a range, also when it is all: then the answer says how long the whole is."""
        last = "" if length is None else str(offset + length - 1)
        try:
            answer = self._call("get_object", **self._object(key), Range=f"bytes={offset}-{last}")
        except _Empty:
            if offset == 0 and length is None:
                return b""
            raise
        body = answer["Body"]
        said = answer.get("ContentRange", "").rpartition("/")[2]
        total = int(said) if said.isdecimal() else 0
        with body:  # not `as`: that is the raw stream, whose errors are not botocore's
            if length is None:
                require_sane(max(total - offset, answer.get("ContentLength", 0)), key, self.url)
            data: bytes = body.read((most_bytes(key) if length is None else length) + 1)
        if length is None:
            require_sane(len(data), key, self.url)
        expected = total - offset if length is None else length
        if total and total < offset + expected:
            message = f"{key} in {self.url} has {total} bytes, {offset + expected} are expected"
            raise StoreError(message, hint="the object is cut off: push it again")
        if len(data) != expected:
            message = f"{key} in {self.url}: {len(data)} of {expected} bytes came from {offset} on"
            raise _Cut(message, hint="is a proxy in between? try again")
        return data

    def _require_arrived(self, key: str, size: int) -> None:
        """Ask the store how long the object is that it has made of the parts."""
        stat = self.stat(key)
        if not stat or stat.size != size:
            message = f"{key} in {self.url} has {stat.size if stat else 0} bytes, {size} were sent"
            raise StoreError(message, hint="remove it there, then push again")

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401  (botocore's)
        """Call the server with a checksum of what is sent, without one if it knows none."""
        if not self.knows_no_checksums.is_set():
            checked = with_checksums(operation, parameters)
            try:
                return self._call_persistently(operation, checked)
            except _Unsupported as error:
                if without_checksums(checked) == checked:
                    raise
                log.info("without checksums: %s", error)
                self.knows_no_checksums.set()
        return self._call_persistently(operation, without_checksums(parameters))

    def _call_persistently(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Call the server, again when its answer is none; errors become ours.

        boto3 tries again by itself after lost connections, timeouts and 5xx.
        """
        key = str(parameters.get("Key", parameters.get("Prefix", "")))
        for pause in (*PAUSES, None):
            with self._explained(key.removeprefix(self.prefix)):
                try:
                    answer: dict[str, Any] = getattr(self.client, operation)(**parameters)
                except (ResponseParserError, BrokenAnswer) as error:
                    log.info("%s of %s again: %s", operation, key, error)
                except boto_errors.ClientError as error:
                    if pause is None or _code(error) not in GARBLED:
                        raise
                    log.info("%s of %s again: %s", operation, key, error)
                else:
                    if _is_answer(operation, answer):
                        return answer
                    _close_body(answer)
            if pause is not None:
                time.sleep(pause)
        message = f"{self._endpoint} is no S3 server: it answered {operation} with something else"
        raise StoreError(message, hint="is a proxy or a login page in between? see the endpoint")

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (boto_errors.ClientError, boto_errors.BotoCoreError) as error:
            raise self._explain(error, key) from error

    def _explain(self, error: Exception, key: str) -> StoreError | NotFound:
        """Turn boto3's errors into ours, without the parts that could hold secrets."""
        if isinstance(error, boto_errors.ClientError):
            return self._explain_answer(error, key)
        if isinstance(error, MISSING_CREDENTIALS):
            return StoreError(f"no credentials for {self.url}", hint=CREDENTIALS_HINT)
        if isinstance(error, boto_errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            message = (
                f"cannot reach {self._endpoint} for {self.url}: its certificate is not trusted"
            )
            return Unreachable(message, hint="name the site's authorities in AWS_CA_BUNDLE")
        if broken := broken_limit(error):
            message = f"{self._endpoint} was given up for {self.url}: {broken}"
            return Unreachable(message, hint="ask who runs that server")
        if isinstance(error, NO_CONNECTION):
            message = f"cannot reach {self._endpoint} for {self.url}: {type(error).__name__}"
            return Unreachable(message, hint="check the network and AWS_ENDPOINT_URL_S3")
        message = f"{self.url}: {key}: {error}"
        return StoreError(message, hint="check the AWS configuration")

    def _explain_answer(self, error: boto_errors.ClientError, key: str) -> StoreError | NotFound:
        code = _code(error)
        if code in REFUSED_CREDENTIALS:
            message = f"{self._endpoint} refuses the credentials for {self.url} ({code})"
            return StoreError(message, hint=CREDENTIALS_HINT)
        if code in NO_BUCKET:
            message = f"the bucket {self.bucket} does not exist at {self._endpoint}"
            is_usual = USUAL_NAME.fullmatch(self.bucket)
            hint = "create it, or check --registry and AWS_ENDPOINT_URL_S3"
            return StoreError(message, hint=hint if is_usual else NAMES_HINT)
        if code in CONFLICTS:
            message = f"{key} in {self.url} is not what it was expected to be ({code})"
            return _Conflict(message, hint="run the command again")
        if code in CLOCK:
            message = f"{self._endpoint} says that this machine's clock is wrong ({code})"
            return StoreError(message, hint="set the clock, for example with chrony or ntpd")
        if code in ABSENT:
            message = f"{key} is not in the registry {self.url}"
            return NotFound(message, hint="run `envferry ls` to see what is")
        if code in ("AccessDenied", "403", "401"):
            message = f"{self._endpoint} denies access to {key} in {self.url}"
            hint = "check AWS_ACCESS_KEY_ID or AWS_PROFILE, and what they may do in this bucket"
            return StoreError(message, hint=hint)
        if code in ("InvalidRange", "416"):
            message = f"{key} in {self.url} is shorter than expected"
            return _Empty(message, hint="the object is cut off: push it again")
        said = error.response.get("Error", {}).get("Message", "")
        if code in GARBLED:
            message = f"{key} does not arrive at {self._endpoint} as it was sent ({code})"
            return StoreError(message, hint="something on the way changes bytes: use https")
        message = f"{self._endpoint} failed for {key} in {self.url}: {code} {said}".rstrip()
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kind = Unreachable if status >= 500 and status != NOT_IMPLEMENTED else StoreError
        if code in UNSUPPORTED:
            kind = _Unsupported
        return kind(message, hint="look at the server's log, or try again")

    @property
    def _endpoint(self) -> str:
        endpoint: str = self.client.meta.endpoint_url
        return endpoint


def _client(url: str, limits: Limits) -> Any:  # noqa: ANN401  (botocore makes its classes while it runs)
    """Make a client: with the addresses that the AWS configuration asks for (`addressing_style`).

    Else path-style everywhere but at Amazon, where it is deprecated.
    """
    try:
        core = botocore.session.get_session()
        asked = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
        client = core.create_client("s3", config=_config(asked or "auto"))
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        if not asked and not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            client = core.create_client("s3", config=_config("path"))
        # No setting and no event of botocore reaches the classes of its connections.
        pools = client._endpoint.http_session._pool_classes_by_scheme
        pools.update(limited_pools(pools, limits))
    except (boto_errors.BotoCoreError, ValueError) as error:
        message = f"cannot open {url}: {error}"
        raise StoreError(
            message, hint="check the AWS configuration: AWS_PROFILE, region"
        ) from error
    return client


def _config(addressing: str) -> Config:
    """Configure boto3; checksums only where required, for other servers do not know them all."""
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": addressing},
    )


def _is_answer(operation: str, answer: dict[str, Any]) -> bool:
    """Whether an answer comes from an S3 server: some proxies say 200 and mean something else."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    is_page = str(headers.get("content-type", "")).startswith("text/html")
    return not is_page and PROOFS.get(operation, "ResponseMetadata") in answer


def _close_body(answer: dict[str, Any]) -> None:
    """Close what an answer streams: nobody reads it, and its connection would stay open."""
    if body := answer.get("Body"):
        body.close()


def _code(error: boto_errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _if_small(source: Path | bytes | Incoming) -> bytes | None:
    """Return what one request can send, None when it is more."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Incoming):
        return source.read() if source.size <= PART_BYTES else None
    return source.read_bytes() if source.stat().st_size <= PART_BYTES else None


def _ignore(done_bytes: int) -> None:
    """Watch no progress."""
