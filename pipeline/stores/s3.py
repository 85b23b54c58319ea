"""A registry in object storage: S3 itself, or a server that speaks it."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3.session
from botocore import exceptions as boto_errors
from botocore.config import Config

from pipeline.errors import NotFound, StoreError, UsageError
from pipeline.files import human_bytes
from pipeline.stores.port import KeyTaken, LostRace, Stat, check_key, check_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

ATTEMPTS = 3
CONNECT_SECONDS = 3
READ_SECONDS = 60
CONNECTIONS = 16
"""More than any stage has threads, so that none waits for a connection."""

PART_BYTES = 16 << 20
MOST_PARTS = 10_000
"""What S3 allows for one object."""
UPLOAD_THREADS = 4
"""Each holds one part in memory."""

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
ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


@dataclass(frozen=True, slots=True)
class S3Store:
    """A `Store` in a bucket, below a prefix."""

    client: Any
    """A boto3 client, which threads may share."""
    bucket: str
    prefix: str
    """Empty, or ends in a slash."""

    @classmethod
    def open(cls, url: str) -> S3Store:
        """Open `s3://BUCKET/PREFIX` with the standard AWS configuration."""
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            message = f"{url} names no bucket"
            raise UsageError(message, hint="write s3://BUCKET or s3://BUCKET/PREFIX")
        if prefix:
            check_key(prefix)
        return cls(_client(url), bucket, f"{prefix}/" if prefix else "")

    @property
    def url(self) -> str:
        """The URL that it was opened with."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def stat(self, key: str) -> Stat | None:
        """Ask for the object's size and ETag."""
        with self._explained(key):
            try:
                head = self.client.head_object(**self._object(key))
            except boto_errors.ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise
        return Stat(size=head["ContentLength"], version=head["ETag"])

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of an object; a connection lost while reading is tried again."""
        if length == 0:
            return b""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._read_once(key, offset, length)
            except (boto_errors.HTTPClientError, boto_errors.IncompleteReadError) as error:
                log.info("reading %s again: %s", key, error)
        with self._explained(key):
            return self._read_once(key, offset, length)

    def create(
        self, key: str, source: Path | bytes, advance: Callable[[int], None] | None = None
    ) -> None:
        """Put an object with `If-None-Match: *`, a large file as a multipart upload."""
        if self.stat(key):
            raise self._taken(key)
        advance = advance or _ignore
        with self._explained(key):
            try:
                if isinstance(source, bytes):
                    self._put(key, source, advance)
                elif (size := source.stat().st_size) <= PART_BYTES:
                    self._put(key, source.read_bytes(), advance)
                else:
                    self._put_parts(key, source, size, advance)
            except boto_errors.ClientError as error:
                if _code(error) in CONFLICTS:
                    raise self._taken(key) from error
                raise

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Put an object with `If-Match`, or `If-None-Match: *` when it must not exist."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with self._explained(key):
            try:
                answer = self.client.put_object(**self._object(key), Body=data, **condition)
            except boto_errors.ClientError as error:
                if _code(error) in CONFLICTS | ABSENT:
                    message = f"{key} in {self.url} was changed by somebody else"
                    raise LostRace(message, hint="run the command again") from error
                raise
        version: str = answer["ETag"]
        return version

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield keys a page of a thousand at a time."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + check_prefix(prefix)
        )
        with self._explained(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(self.prefix)

    def delete(self, key: str) -> None:
        """Delete an object."""
        with self._explained(key):
            self.client.delete_object(**self._object(key))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key)}

    def _taken(self, key: str) -> KeyTaken:
        return KeyTaken(f"{key} exists in {self.url} and is never overwritten")

    def _read_once(self, key: str, offset: int, length: int | None) -> bytes:
        wanted: dict[str, str] = {}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            wanted = {"Range": f"bytes={offset}-{last}"}
        try:
            body = self.client.get_object(**self._object(key), **wanted)["Body"]
        except (boto_errors.ClientError, boto_errors.BotoCoreError) as error:
            # boto3 has tried this part again by itself; only the reading below is left to us.
            raise self._explain(error, key) from error
        with body:
            data: bytes = body.read()
        if length is not None and len(data) != length:
            message = f"{key} in {self.url} has {len(data)} of {length} bytes from {offset} on"
            raise StoreError(message, hint="the object is cut off: push it again")
        return data

    def _put(self, key: str, data: bytes, advance: Callable[[int], None]) -> None:
        self.client.put_object(**self._object(key), Body=data, IfNoneMatch="*")
        advance(len(data))

    def _put_parts(self, key: str, source: Path, size: int, advance: Callable[[int], None]) -> None:
        """Send a file as a multipart upload; on failure nothing of it stays in the store."""
        target = self._object(key)
        upload = {**target, "UploadId": self.client.create_multipart_upload(**target)["UploadId"]}
        try:
            parts = self._send_parts(upload, source, size, advance)
            self.client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException:
            self._abort(upload)
            raise

    def _send_parts(
        self, upload: dict[str, str], source: Path, size: int, advance: Callable[[int], None]
    ) -> tuple[dict[str, Any], ...]:
        """Send all parts in parallel and return what `complete_multipart_upload` wants to know."""
        part_bytes = part_size(size)
        descriptor = os.open(source, os.O_RDONLY)

        def send(number: int) -> dict[str, Any]:
            body = os.pread(descriptor, part_bytes, (number - 1) * part_bytes)
            answer = self.client.upload_part(**upload, PartNumber=number, Body=body)
            advance(len(body))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        pool = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload")
        try:
            return tuple(pool.map(send, range(1, -(-size // part_bytes) + 1)))
        finally:
            pool.shutdown(cancel_futures=True)
            os.close(descriptor)

    def _abort(self, upload: dict[str, str]) -> None:
        """Throw sent parts away; if that fails too, say so and let the first error travel on."""
        try:
            self.client.abort_multipart_upload(**upload)
        except (boto_errors.ClientError, boto_errors.BotoCoreError) as error:
            log.warning(
                "an unfinished upload of %s stays in %s: %s", upload["Key"], self.url, error
            )

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
        if isinstance(error, NO_CONNECTION):
            message = f"cannot reach {self._endpoint} for {self.url}: {type(error).__name__}"
            return StoreError(message, hint="check the network and AWS_ENDPOINT_URL_S3")
        message = f"{self.url}: {key}: {error}"
        return StoreError(message, hint="check the AWS configuration")

    def _explain_answer(self, error: boto_errors.ClientError, key: str) -> StoreError | NotFound:
        code = _code(error)
        if code in REFUSED_CREDENTIALS:
            message = f"{self._endpoint} refuses the credentials for {self.url} ({code})"
            return StoreError(message, hint=CREDENTIALS_HINT)
        if code == "NoSuchBucket":
            message = f"the bucket {self.bucket} does not exist at {self._endpoint}"
            return StoreError(
                message, hint="create it, or check --registry and AWS_ENDPOINT_URL_S3"
            )
        if code in ABSENT:
            message = f"{key} is not in the registry {self.url}"
            return NotFound(message, hint="run `envferry ls` to see what is")
        if code in ("AccessDenied", "403", "401"):
            message = f"{self._endpoint} denies access to {key} in {self.url}"
            hint = "check AWS_ACCESS_KEY_ID or AWS_PROFILE, and what they may do in this bucket"
            return StoreError(message, hint=hint)
        if code in ("InvalidRange", "416"):
            message = f"{key} in {self.url} is shorter than expected"
            return StoreError(message, hint="the object is cut off: push it again")
        said = error.response.get("Error", {}).get("Message", "")
        message = f"{self._endpoint} failed for {key} in {self.url}: {code} {said}".rstrip()
        return StoreError(message, hint="look at the server's log, or try again")

    @property
    def _endpoint(self) -> str:
        endpoint: str = self.client.meta.endpoint_url
        return endpoint


def part_size(size: int) -> int:
    """Return the part size for a file of `size` bytes; raise StoreError when S3 cannot hold it."""
    needed = -(-size // MOST_PARTS)
    largest = 5 << 30
    if needed > largest:
        message = f"{human_bytes(size)} is more than an object can hold"
        raise StoreError(message)
    return max(PART_BYTES, needed)


def _client(url: str) -> Any:  # noqa: ANN401  (boto3 makes its classes while it runs)
    """Make a client: path-style addresses everywhere but at Amazon, where they are deprecated."""
    try:
        session = boto3.session.Session()
        client = session.client("s3", config=_config("auto"))
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            client = session.client("s3", config=_config("path"))
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


def _code(error: boto_errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _ignore(done_bytes: int) -> None:
    """Watch no progress."""
