"""A registry in object storage: S3 itself, or a server that speaks it."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.session
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as BrokenAnswer

from envferry.base.connections import wrong_time_words
from envferry.base.limits import (
    USUAL_LIMITS,
    Limits,
    broken_limit,
    limited,
    limited_pools,
    most_bytes,
    require_sane,
)
from envferry.base.proxies import choose_proxy, show_proxy
from envferry.base.retry import Transient, persistently
from envferry.config import allows_races, network
from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.checksums import with_checksums, without_checksums
from envferry.stores.conditions import require_conditions
from envferry.stores.multipart import PART_BYTES, Unreachable, plan_parts, receive_file, send_file
from envferry.stores.port import KeyTaken, Listed, LostRace, Stat, check_key, check_prefix, ignore
from envferry.stores.s3_answers import (
    CREDENTIALS_HINT,
    NAMES_HINT,
    Asked,
    Conflict,
    Empty,
    ErrorAnswer,
    NotOffered,
    Unsupported,
    explain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.port import KnownRange
    from envferry.stores.source import ContentSource

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3
READ_SECONDS = 60
CONNECTIONS = 16
"""More than any stage has threads, so that none waits for a connection."""

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""What requests can be made for: some servers have names that Amazon does not allow."""
MISSING_CREDENTIALS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.ProfileNotFound,
    boto_errors.TokenRetrievalError,
    boto_errors.UnauthorizedSSOTokenError,
)
NO_CONNECTION = (boto_errors.HTTPClientError, boto_errors.ConnectionError)
NEVER_REACHED = (
    boto_errors.EndpointConnectionError,
    boto_errors.ConnectTimeoutError,
    boto_errors.ProxyConnectionError,
)
CONDITIONS = ("IfNoneMatch", "IfMatch")
NO_CONTENT, NOT_FOUND = 204, 404
UNSAID = (301, 307, 400, 401, 403)
"""What HEAD is answered, for many a reason."""
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


@dataclass(slots=True)
class _Known:
    """What was found out about a server."""

    no_checksums: Event = field(default_factory=Event)
    """It refuses them."""
    has_bucket: Event = field(default_factory=Event)
    """It has answered a question about something in the bucket."""
    conditions: Event = field(default_factory=Event)
    """It obeys conditions on writes, or does not have to."""
    guard: Lock = field(default_factory=Lock)
    """Held while conditions are tried out."""


@dataclass(frozen=True, slots=True)
class S3Store:
    """A `Store` in a bucket, below a prefix."""

    client: Any
    """A client of botocore (boto3 would load transfer managers, 0.1 s), which threads may share."""
    bucket: str
    prefix: str
    """Empty, or ends in a slash."""
    allows_races: bool = field(default_factory=allows_races)
    """Whether a server is accepted that overwrites; nothing is sent on condition, then."""
    known: _Known = field(default_factory=_Known, repr=False, compare=False)

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
        return persistently(lambda: self._read_once(key, offset, length))

    @property
    def writable(self) -> S3Store:
        """Itself."""
        return self

    @property
    def disk(self) -> None:
        """None: it is elsewhere."""
        return

    def create(self, key: str, data: bytes) -> None:
        """Put an object with `If-None-Match: *`."""
        with self._creating(key):
            self._put(key, data)

    def create_from_file(
        self,
        key: str,
        path: Path,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Put an object with `If-None-Match: *`, a large file as a multipart upload."""
        with self._creating(key):
            size = path.stat().st_size
            if size <= PART_BYTES:
                self._put(key, path.read_bytes())
                advance(size)
                return
            there = [replace(one, key=self.prefix + one.key) for one in known]
            parts = plan_parts(size, there)
            send_file(self._call, self._object(key), path, parts, advance)
            self._require_arrived(key, size)

    def receive(
        self, key: str, incoming: ContentSource, advance: Callable[[int], None] = ignore
    ) -> None:
        """Put an object with `If-None-Match: *`, a large one as a multipart upload."""
        with self._creating(key):
            if incoming.size <= PART_BYTES:
                self._put(key, incoming.read())
                advance(incoming.size)
                return
            receive_file(self._call, self._object(key), incoming, advance)
            self._require_arrived(key, incoming.size)

    def _put(self, key: str, data: bytes) -> None:
        self._call("put_object", **self._object(key), Body=data, IfNoneMatch="*")

    @contextmanager
    def _creating(self, key: str) -> Iterator[None]:
        """Raise KeyTaken before or after a write that another writer won."""
        if self.stat(key):
            raise self._taken(key)
        self._require_conditions()
        try:
            yield
        except Conflict as error:
            raise self._taken(key) from error
        except NotFound as error:
            # An upload that has disappeared was completed, and the answer was lost.
            if not self.stat(key):
                raise
            raise self._taken(key) from error

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Put an object with `If-Match`, or `If-None-Match: *` when it must not exist."""
        self._require_conditions()
        if self.allows_races:
            self._require_version(key, expected)
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            answer = self._call("put_object", **self._object(key), Body=data, **condition)
        except (Conflict, NotFound) as error:
            raise self._lost(key) from error
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
        where = {"Bucket": self.bucket, "Prefix": self.prefix + check_prefix(prefix), **delimiter}
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

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._call("delete_object", **self._object(key))

    def delete_folder(self, prefix: str) -> None:
        """Delete the key that an empty folder has on some servers.

        SeaweedFS lists empty folders for minutes; `DELETE folder/` ends that, and does nothing to
        one that holds something (measured, 4.48). To other servers it is a key that is not there.
        """
        key = self.prefix + check_prefix(prefix)
        self._call("delete_object", Bucket=self.bucket, Key=key)

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """End the unfinished multipart uploads."""
        before = datetime.now(timezone.utc) - timedelta(seconds=older_seconds)
        dead = [one for one in self._uploads(prefix) if one["Initiated"] <= before]
        for one in dead:
            upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
            self._call("abort_multipart_upload", Bucket=self.bucket, **upload)
        return len(dead)

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the unfinished multipart uploads, a page of a thousand at a time."""
        where = {"Bucket": self.bucket, "Prefix": self.prefix + check_prefix(prefix)}
        try:
            page = self._call("list_multipart_uploads", **where)
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

    def _lost(self, key: str) -> LostRace:
        message = f"{key} in {self.url} was changed by another process"
        return LostRace(message, hint="run the command again")

    def _require_version(self, key: str, expected: str | None) -> None:
        """Raise LostRace unless a key has this version, by a look at it: for want of conditions."""
        stat = self.stat(key)
        if (stat.version if stat else None) != expected:
            raise self._lost(key)

    def _require_conditions(self) -> None:
        """Find out once whether the server obeys conditions on writes; raise when it does not."""
        with self.known.guard:
            if not (self.allows_races or self.known.conditions.is_set()):
                require_conditions(self._call, self.bucket, self.prefix)
                self.known.conditions.set()

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        """Read a range, also when it is all: then the answer says how long the whole is."""
        last = "" if length is None else str(offset + length - 1)
        wanted = {**self._object(key), "Range": f"bytes={offset}-{last}"}
        try:
            answer = self._call_once("get_object", wanted)
        except Empty:
            if offset == 0 and length is None:
                return b""
            raise
        body = answer["Body"]
        said = answer.get("ContentRange", "").rpartition("/")[2]
        if said == "0" and offset == 0 and length is None:
            _close_body(answer)  # some servers call nothing a range, and promise a byte of it
            return b""
        total = int(said) if said.isdecimal() else 0
        most = most_bytes(key) if length is None else length
        try:
            with body:  # not `as`: that is the raw stream, whose errors are not botocore's
                if length is None:
                    require_sane(max(total - offset, answer.get("ContentLength", 0)), key, self.url)
                data: bytes = body.read(most + 1)
        except boto_errors.BotoCoreError as error:
            raise self._transient(error, key) from error
        if length is None:
            require_sane(len(data), key, self.url)
        expected = total - offset if length is None else length
        if total and total < offset + expected:
            message = f"{key} in {self.url} has {total} bytes, {offset + expected} are expected"
            raise StoreError(message, hint="the object is cut off: push it again")
        if len(data) != expected:
            message = (
                f"{key} in {self.url}: {len(data)} of {expected}bytes received from offset {offset}"
            )
            raise Transient(StoreError(message, hint="is a proxy in between? try again"))
        return data

    def _require_arrived(self, key: str, size: int) -> None:
        """Ask the store how long the object is that it has made of the parts."""
        stat = self.stat(key)
        if not stat or stat.size != size:
            message = f"{key} in {self.url} has {stat.size if stat else 0} bytes, {size} were sent"
            raise StoreError(message, hint="remove it there, then push again")

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401  (botocore's)
        """Call the server with a checksum of what is sent, without one if it knows none."""
        if self.allows_races:
            parameters = {name: parameters[name] for name in parameters if name not in CONDITIONS}
        if not self.known.no_checksums.is_set():
            checked = with_checksums(operation, parameters)
            try:
                return persistently(lambda: self._call_once(operation, checked))
            except Unsupported as error:
                if without_checksums(checked) == checked:
                    raise
                log.info("without checksums: %s", error)
            plain = without_checksums(parameters)
            answer = persistently(lambda: self._call_once(operation, plain))
            self.known.no_checksums.set()
            return answer
        return persistently(lambda: self._call_once(operation, without_checksums(parameters)))

    def _call_once(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Call the server; errors become ours, or Transient where another attempt may help."""
        key = str(parameters.get("Key", parameters.get("Prefix", ""))).removeprefix(self.prefix)
        try:
            answer: dict[str, Any] = getattr(self.client, operation)(**parameters)
        except (ResponseParserError, BrokenAnswer) as error:
            raise Transient(self._no_server(operation)) from error
        except boto_errors.ClientError as error:
            raise self._failure(operation, parameters, error) from error
        except boto_errors.BotoCoreError as error:
            if isinstance(error, boto_errors.SSLError) or not isinstance(error, NO_CONNECTION):
                raise self._explain(error, key) from error
            raise self._transient(error, key) from error
        if not _is_answer(operation, answer):
            _close_body(answer)
            raise Transient(self._no_server(operation))
        self.known.has_bucket.set()
        return answer

    def _no_server(self, operation: str) -> StoreError:
        message = f"{self._endpoint} is not an S3 server: it did not answer {operation} as one"
        return StoreError(message, hint="is a proxy or a login page in between? see the endpoint")

    def _transient(self, error: Exception, key: str) -> Transient:
        """Return what to do about a broken connection."""
        log.info("%s: %s", key, type(error).__name__)
        final = self._explain(error, key)
        final.__cause__ = error
        return Transient(final, is_unreachable=isinstance(error, NEVER_REACHED))

    def _failure(
        self, operation: str, parameters: dict[str, Any], error: boto_errors.ClientError
    ) -> Exception:
        """Return what to raise for an answer that is an error.

        The answer to HEAD has no body, so the reason is unknown: a GET is told.
        """
        answer = ErrorAnswer.of(error.response)
        if operation == "head_object" and self._is_unsaid(answer.status):
            reason = self._reason_of(parameters)
            answer = ErrorAnswer.of(reason.response) if reason else answer
        if answer.code == "NoSuchKey":
            self.known.has_bucket.set()
        key = str(parameters.get("Key", parameters.get("Prefix", ""))).removeprefix(self.prefix)
        asked = Asked(endpoint=self._endpoint, url=self.url, bucket=self.bucket, key=key)
        failure = explain(answer, asked)
        log.info("%s of %s: %s", operation, key, answer.code)
        return failure

    def _is_unsaid(self, status: int) -> bool:
        """Whether HEAD may have been answered so for a reason that matters."""
        return status in UNSAID or (status == NOT_FOUND and not self.known.has_bucket.is_set())

    def _reason_of(self, parameters: dict[str, Any]) -> boto_errors.ClientError | None:
        """Ask for the first byte of an object, and return the error if that is one."""
        try:
            _close_body(self.client.get_object(**parameters, Range="bytes=0-0"))
        except boto_errors.ClientError as error:
            return error
        except (boto_errors.BotoCoreError, ResponseParserError, BrokenAnswer) as error:
            log.info("no reason: %s", error)
        return None

    def _explain(self, error: Exception, key: str) -> StoreError | NotFound:
        """Turn boto3's errors into ours, without the parts that could hold secrets."""
        if isinstance(error, MISSING_CREDENTIALS):
            return StoreError(f"no credentials for {self.url}", hint=CREDENTIALS_HINT)
        if isinstance(error, boto_errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            message = (
                f"cannot reach {self._endpoint} for {self.url}: its certificate is not trusted"
            )
            if words := wrong_time_words(str(error)):
                hint = "set the clock, for example with chrony or ntpd"
                return Unreachable(f"{message}: {words}", hint=hint)
            return Unreachable(message, hint="name the site's authorities in AWS_CA_BUNDLE")
        if broken := broken_limit(error):
            message = f"stopped reading {self._endpoint} for {self.url}: {broken}"
            return Unreachable(message, hint="ask the administrator of that server")
        if isinstance(error, NO_CONNECTION):
            proxy = self._proxy
            way = f" through the proxy {show_proxy(proxy)}" if proxy else ""
            message = f"cannot reach {self._endpoint}{way} for {self.url}: {type(error).__name__}"
            hint = "check the network and AWS_ENDPOINT_URL_S3"
            if proxy:
                hint = "check that proxy (http_proxy, all_proxy, …), or name the host in no_proxy"
            return Unreachable(message, hint=hint)
        message = f"{self.url}: {key}: {error}"
        return StoreError(message, hint="check the AWS configuration")

    @property
    def _endpoint(self) -> str:
        endpoint: str = self.client.meta.endpoint_url
        return endpoint

    @property
    def _proxy(self) -> str | None:
        return choose_proxy(network().proxies, self._endpoint)


def _client(url: str, limits: Limits) -> Any:  # noqa: ANN401  (botocore makes its classes while it runs)
    """Make a client: with the addresses that the AWS configuration asks for (`addressing_style`).

    Else path-style everywhere but at Amazon, where it is deprecated.
    """
    try:
        core = botocore.session.get_session()
        asked = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
        client = core.create_client("s3", config=_config(asked or "auto"))
        endpoint = urlsplit(client.meta.endpoint_url)
        is_amazon = (endpoint.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        addressing = asked or ("auto" if is_amazon else "path")
        proxy = choose_proxy(network().proxies, client.meta.endpoint_url)
        proxies = {endpoint.scheme: proxy} if proxy else {}
        client = core.create_client("s3", config=_config(addressing, proxies))
        # No setting and no event of botocore reaches the classes of its connections.
        pools = client._endpoint.http_session._pool_classes_by_scheme
        pools.update(limited_pools(pools, limits))
    except (boto_errors.BotoCoreError, ValueError) as error:
        message = f"cannot open {url}: {error}"
        raise StoreError(
            message, hint="check the AWS configuration: AWS_PROFILE, region"
        ) from error
    return client


def _config(addressing: str, proxies: dict[str, str] | None = None) -> Config:
    """Configure boto3; checksums only where required, for other servers do not know them all.

    What is tried again is our own retry policy's to say; which proxy, our own rules'.
    """
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=proxies,
        s3={"addressing_style": addressing},
    )


def _is_answer(operation: str, answer: dict[str, Any]) -> bool:
    """Whether an answer comes from an S3 server: some proxies say 200 and mean something else."""
    metadata = answer.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    is_html = str(headers.get("content-type", "")).startswith("text/html")
    is_empty = metadata.get("HTTPStatusCode") == NO_CONTENT or headers.get("content-length") == "0"
    is_page = is_html and not is_empty
    return not is_page and PROOFS.get(operation, "ResponseMetadata") in answer


def _close_body(answer: dict[str, Any]) -> None:
    """Close the stream of an unread answer: its connection would stay open."""
    if body := answer.get("Body"):
        body.close()
