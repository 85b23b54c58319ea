"""Calls of an S3 server: configured, checked, retried, their errors explained."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import botocore.session
import msgspec
from botocore import exceptions as boto_errors
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as BrokenAnswer

from envferry.base.connections import wrong_time_words
from envferry.base.limits import (
    Limits,
    broken_limit,
    limited_pools,
)
from envferry.base.proxies import choose_proxy, show_proxy
from envferry.base.retry import Transient, persistently
from envferry.config import network
from envferry.errors import NotFound, StoreError
from envferry.stores.port import Unreachable
from envferry.stores.s3.answers import (
    CREDENTIALS_HINT,
    ErrorAnswer,
    Fields,
    RequestedObject,
    Unsupported,
    explain,
)
from envferry.stores.s3.checksums import with_checksums, without_checksums

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3
READ_SECONDS = 60
CONNECTIONS = 16
"""More than any stage has threads, so that none waits for a connection."""

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
# An answer to HEAD has no body (RFC 9110, 9.3.2), which is where S3 says the reason.
UNSAID = (301, 307, 400, 401, 403)
"""Statuses with which servers answer HEAD for several reasons."""
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


class ServerAbilities(msgspec.Struct):
    """What was found out about a server."""

    no_checksums: Event = msgspec.field(default_factory=Event)
    """It refuses them."""
    has_bucket: Event = msgspec.field(default_factory=Event)
    """It has answered a question about something in the bucket."""
    conditions: Event = msgspec.field(default_factory=Event)
    """It honours conditions on writes, or does not have to."""
    guard: Lock = msgspec.field(default_factory=Lock)
    """Held while conditions are tried out."""


@dataclass(frozen=True, slots=True)
class S3Calls:
    """Calls operations for one bucket and prefix; threads may share it."""

    client: Any
    """A client of botocore (boto3 would load transfer managers, 0.1 s), which threads may share."""
    bucket: str
    prefix: str
    """Empty, or ends in a slash."""
    allows_races: bool
    """Whether a server is accepted that overwrites; nothing is sent on condition, then."""
    known: ServerAbilities = field(default_factory=ServerAbilities, repr=False, compare=False)

    @property
    def url(self) -> str:
        """The URL of the registry."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        endpoint: str = self.client.meta.endpoint_url
        return endpoint

    def __call__(self, operation: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401  (botocore's)
        """Call the server with a checksum of what is sent, without one if it knows none."""
        if self.allows_races:
            # A server may refuse conditions that it does not know; `replace` looks instead.
            parameters = {name: parameters[name] for name in parameters if name not in CONDITIONS}
        if not self.known.no_checksums.is_set():
            checked = with_checksums(operation, parameters)
            try:
                return persistently(lambda: self.call_once(operation, checked))
            except Unsupported as error:
                # It had none: then something else is not supported.
                if without_checksums(checked) == checked:
                    raise
                log.info("without checksums: %s", error)
            plain = without_checksums(parameters)
            answer = persistently(lambda: self.call_once(operation, plain))
            # Only when the same call succeeds without: the refusal may have had another reason.
            self.known.no_checksums.set()
            return answer
        return persistently(lambda: self.call_once(operation, without_checksums(parameters)))

    def call_once(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Call the server; errors become ours, or Transient where another attempt may help."""
        key = self._key_in(parameters)
        try:
            answer: dict[str, Any] = getattr(self.client, operation)(**parameters)
        except (ResponseParserError, BrokenAnswer, KeyError) as error:
            # KeyError: botocore decodes the keys of a listing, and expects that there are some.
            raise Transient(self._no_server(operation)) from error
        except boto_errors.ClientError as error:
            raise self._failure(operation, parameters, error) from error
        except boto_errors.BotoCoreError as error:
            # What TLS refuses, such as a certificate, it refuses at the next attempt as well.
            if isinstance(error, boto_errors.SSLError) or not isinstance(error, NO_CONNECTION):
                raise self._explain(error, key) from error
            raise self.transient(error, key) from error
        if not _is_answer(operation, answer):
            close_body(answer)
            raise Transient(self._no_server(operation))
        self.known.has_bucket.set()
        return Fields(answer, f"the answer of {self.endpoint} to {operation}")

    def _key_in(self, parameters: Mapping[str, Any]) -> str:
        """Return the key that a call is about, or the prefix of a listing, for messages."""
        return str(parameters.get("Key", parameters.get("Prefix", ""))).removeprefix(self.prefix)

    def transient(self, error: Exception, key: str) -> Transient:
        """Return what to do about a broken connection."""
        log.info("%s: %s", key, type(error).__name__)
        final = self._explain(error, key)
        # What `raise … from` would set: `persistently` raises it later, from elsewhere.
        final.__cause__ = error
        return Transient(final, is_unreachable=isinstance(error, NEVER_REACHED))

    def _no_server(self, operation: str) -> StoreError:
        message = f"{self.endpoint} is not an S3 server: it did not answer {operation} as one"
        return StoreError(message, hint="is a proxy or a login page in between? see the endpoint")

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
        # Said of a key, so there is a bucket. HEAD says 404 for both.
        if answer.code == "NoSuchKey":
            self.known.has_bucket.set()
        key = self._key_in(parameters)
        asked = RequestedObject(endpoint=self.endpoint, url=self.url, bucket=self.bucket, key=key)
        failure = explain(answer, asked)
        log.info("%s of %s: %s", operation, key, answer.code)
        return failure

    def _is_unsaid(self, status: int) -> bool:
        """Whether HEAD may have been answered so for a reason that matters."""
        return status in UNSAID or (status == NOT_FOUND and not self.known.has_bucket.is_set())

    def _reason_of(self, parameters: dict[str, Any]) -> boto_errors.ClientError | None:
        """Ask for the first byte of an object, and return the error if that is one."""
        try:
            # Only an error is of interest: unread, the body would keep its connection.
            close_body(self.client.get_object(**parameters, Range="bytes=0-0"))
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
            message = f"cannot reach {self.endpoint} for {self.url}: its certificate is not trusted"
            if words := wrong_time_words(str(error)):
                hint = "set the clock, for example with chrony or ntpd"
                return Unreachable(f"{message}: {words}", hint=hint)
            return Unreachable(message, hint="name the site's authorities in AWS_CA_BUNDLE")
        if broken := broken_limit(error):
            message = f"stopped reading {self.endpoint} for {self.url}: {broken}"
            return Unreachable(message, hint="ask the administrator of that server")
        if isinstance(error, NO_CONNECTION):
            proxy = self._proxy
            way = f" through the proxy {show_proxy(proxy)}" if proxy else ""
            message = f"cannot reach {self.endpoint}{way} for {self.url}: {type(error).__name__}"
            hint = "check the network and AWS_ENDPOINT_URL_S3"
            if proxy:
                hint = "check that proxy (http_proxy, all_proxy, …), or name the host in no_proxy"
            return Unreachable(message, hint=hint)
        message = f"{self.url}: {key}: {error}"
        return StoreError(message, hint="check the AWS configuration")

    @property
    def _proxy(self) -> str | None:
        return choose_proxy(network().proxies, self.endpoint)


def open_client(url: str, limits: Limits) -> Any:  # noqa: ANN401  (botocore makes its classes while it runs)
    """Make a client: with the addresses that the AWS configuration asks for (`addressing_style`).

    Else path-style everywhere but at Amazon, where it is deprecated.
    """
    try:
        core = botocore.session.get_session()
        asked = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
        # A first client only to learn the endpoint, on which addressing and proxy depend.
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
        # One attempt in all: two policies, one inside the other, would multiply.
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        # botocore's own default since 1.36 may send checksums as trailers: see `checksums`.
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
    # An answer without a body is no page, whatever its type says.
    is_empty = metadata.get("HTTPStatusCode") == NO_CONTENT or headers.get("content-length") == "0"
    is_page = is_html and not is_empty
    return not is_page and PROOFS.get(operation, "ResponseMetadata") in answer


def close_body(answer: dict[str, Any]) -> None:
    """Close the stream of an unread answer: its connection would stay open."""
    if body := answer.get("Body"):
        body.close()
