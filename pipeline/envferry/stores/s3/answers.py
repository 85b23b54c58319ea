"""What the errors of S3 servers mean: by their code, status and headers."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from envferry.base.retry import BUSY_STATUSES, Transient, asked_seconds, waiting_words
from envferry.errors import NotFound, StoreError
from envferry.stores.port import Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

# Amazon's rules for bucket names; they only choose a hint, since other servers allow more.
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
# The status stands in for the code where an answer has no body, as to HEAD. S3 answers 409 when
# another conditional write of the same key is under way.
CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
NOT_IMPLEMENTED = 501
UNSUPPORTED = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest", "MalformedXML"})
"""What servers say that do not know checksums; and Amazon's of an upload begun without any."""
BUSY = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
"""What servers say, whatever their status is, of what may work later (botocore's own list)."""
GARBLED = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
CLOCK_SECONDS = 900
"""How far a clock may be off: Amazon's limit, which others took over."""
NOT_OFFERED = frozenset({"NotImplemented", "MethodNotAllowed", "501", "405"})


class Conflict(StoreError):
    """A condition of a write did not hold."""


class Empty(StoreError):
    """The range that was asked for starts behind the end."""


class Unsupported(StoreError):
    """The server does not do what it was asked for."""


class Refused(StoreError):
    """The credentials are right, and do not allow it."""


class NotOffered(Unsupported):
    """The server does not have that operation."""


class Fields(dict[str, Any]):
    """An answer, or a part of one, whose missing fields are errors that name the server.

    Other people's servers leave out what Amazon's always says.
    """

    def __init__(self, fields: Mapping[str, Any], what: str) -> None:
        """Take what botocore read; `what` names the answer: whose it is, and to what."""
        super().__init__({name: with_fields(value, what) for name, value in fields.items()})
        self.what = what

    def __missing__(self, name: str) -> NoReturn:
        message = f"{self.what} has no {name}, which S3 answers have"
        raise StoreError(message, hint="ask the administrator of that server")


def with_fields(value: object, what: str) -> object:
    """Return a value of an answer, with `Fields` for all that has names in it."""
    if isinstance(value, dict):
        return Fields(value, what)
    # botocore's lists of parts or objects: their entries are answers of the server as well.
    if isinstance(value, list):
        return [with_fields(item, what) for item in value]
    return value


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is an error."""

    code: str
    """The server's word for it; the status where the answer has no body."""
    status: int
    said: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> ErrorAnswer:
        """Read what botocore keeps of an answer."""
        error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
        return cls(
            code=str(error.get("Code", "unknown")),
            status=int(metadata.get("HTTPStatusCode", 0)),
            said=str(error.get("Message", "")),
            headers=metadata.get("HTTPHeaders", {}),
        )

    @property
    def asked(self) -> float | None:
        """For how many seconds the server asks to be left alone."""
        return asked_seconds(self.headers.get("retry-after"))

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed."""
        return self.code in BUSY or self.code in GARBLED or self.status in BUSY_STATUSES

    @property
    def clock_error(self) -> float:
        """How many seconds this machine's clock is ahead of the server's, by its Date header."""
        from email.utils import parsedate_to_datetime

        try:
            there = parsedate_to_datetime(self.headers.get("date", ""))
            return (datetime.now(timezone.utc) - there.astimezone(timezone.utc)).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return 0.0


class RequestedObject(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, to name it."""

    endpoint: str
    url: str
    bucket: str
    key: str


def explain(answer: ErrorAnswer, asked: RequestedObject) -> Exception:
    """Return the error to raise; Transient for one that another attempt may not meet."""
    # The clock before the credentials: with a wrong clock, right ones are refused.
    final = _clock(answer, asked) or _access(answer, asked) or _object(answer, asked)
    final = final or _failure(answer, asked)
    return Transient(final, asked=answer.asked) if answer.is_transient else final


def _clock(answer: ErrorAnswer, asked: RequestedObject) -> StoreError | None:
    """Name a clock that is wrong: some servers only refuse, but say what time it is."""
    off = answer.clock_error if answer.status in (400, 401, 403) else 0.0
    if answer.code not in CLOCK and abs(off) <= CLOCK_SECONDS:
        return None
    how = f"it is {abs(off) / 60:.0f} minutes {'ahead' if off > 0 else 'behind'}, "
    more = answer.code if abs(off) <= CLOCK_SECONDS else how + answer.code
    message = f"{asked.endpoint} says that this machine's clock is wrong ({more})"
    return StoreError(message, hint="set the clock, for example with chrony or ntpd")


def _access(answer: ErrorAnswer, asked: RequestedObject) -> StoreError | None:
    code = answer.code
    if code in REFUSED_CREDENTIALS:
        message = f"{asked.endpoint} refuses the credentials for {asked.url} ({code})"
        return StoreError(message, hint=CREDENTIALS_HINT)
    if code in NO_BUCKET:
        message = f"the bucket {asked.bucket} does not exist at {asked.endpoint}"
        # A name that Amazon does not allow is the likely reason, so the hint is about names.
        is_usual = USUAL_NAME.fullmatch(asked.bucket)
        hint = "create it, or check --registry and AWS_ENDPOINT_URL_S3"
        return StoreError(message, hint=hint if is_usual else NAMES_HINT)
    if code in ("AccessDenied", "403", "401"):
        message = f"{asked.endpoint} denies access to {asked.key} in {asked.url}"
        hint = "check AWS_ACCESS_KEY_ID or AWS_PROFILE, and what they may do in this bucket"
        return Refused(message, hint=hint)
    return None


def _object(answer: ErrorAnswer, asked: RequestedObject) -> StoreError | NotFound | None:
    code, where = answer.code, f"{asked.key} in {asked.url}"
    if code in CONFLICTS:
        message = f"{where} is not as expected ({code})"
        return Conflict(message, hint="run the command again")
    if code in ABSENT:
        message = f"{asked.key} is not in the registry {asked.url}"
        return NotFound(message, hint="run `envferry ls` to see what is")
    if code in ("InvalidRange", "416"):
        message = f"{where} is shorter than expected"
        return Empty(message, hint="the object is cut off: push it again")
    if code in GARBLED:
        message = f"{asked.key} arrives at {asked.endpoint} damaged ({code})"
        return StoreError(message, hint="something between here and there changes bytes: use https")
    return None


def _failure(answer: ErrorAnswer, asked: RequestedObject) -> StoreError:
    kind = StoreError
    if answer.code in NOT_OFFERED or answer.status == NOT_IMPLEMENTED:
        kind = NotOffered
    elif answer.code in UNSUPPORTED:
        kind = Unsupported
    # Callers keep the parts of an upload on Unreachable, and give them up on any other error.
    elif answer.is_transient or answer.status >= 500:
        kind = Unreachable
    what = f"{asked.endpoint} failed for {asked.key} in {asked.url}"
    message = f"{what}: {answer.code} {answer.said}".rstrip() + waiting_words(answer.asked)
    return kind(message, hint="look at the server's log, or try again")
