"""Whether object storage honours conditions on writes: tried out before the first one."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from envferry.errors import NotFound, StoreError
from envferry.stores.s3.answers import Conflict, NotOffered, Refused

if TYPE_CHECKING:
    from envferry.stores.s3.multipart import Calls

log = logging.getLogger(__name__)

PROBE = "v1/probe-"
NO_ETAGS = ('"00000000000000000000000000000000"', '"11111111111111111111111111111111"')
HINT = (
    "two writers at once could overwrite each other there, and what is published must stay: "
    "use a server that honours If-None-Match, or set ENVFERRY_ALLOW_RACES=1 and make sure that "
    "only one command writes at a time"
)


class IgnoresConditions(StoreError):
    """The server overwrites what it was told not to."""


def require_conditions(calls: Calls, bucket: str, prefix: str) -> None:
    """Raise IgnoresConditions unless the server refuses to overwrite what it must not.

    Some ignore conditions without a word: then nothing would be written once. Who may write
    nothing below `v1/` is let through: the write itself will tell.
    """
    # Random, so that two commands do not probe with the same object.
    target = {"Bucket": bucket, "Key": f"{prefix}{PROBE}{os.urandom(6).hex()}"}
    try:
        etag = _put(calls, target, "If-None-Match", {"IfNoneMatch": "*"})
    except Refused as error:
        # A host that may write its own report and nothing else, for example.
        log.info("conditional writes are not tested: %s", error)
        return
    try:
        # Two of them: a server may choose any ETag for an empty object.
        other = next(name for name in NO_ETAGS if name != etag)
        for header, condition in (
            ("If-None-Match", {"IfNoneMatch": "*"}),
            ("If-Match", {"IfMatch": other}),
        ):
            if _put(calls, target, header, condition) is not None:
                message = f"the server of s3://{bucket} ignores {header}: it overwrites"
                msg = f"{message} what exists"
                raise IgnoresConditions(msg, hint=HINT)
    # Also when the server fails the test: the object would be listed as a value.
    finally:
        _remove(calls, target)


def _put(
    calls: Calls, target: dict[str, str], header: str, condition: dict[str, Any]
) -> str | None:
    """Write an empty object on a condition; return its ETag, None where the condition fails."""
    try:
        return str(calls("put_object", **target, Body=b"", **condition)["ETag"])
    except Conflict:
        return None
    except NotOffered as error:
        message = f"the server of s3://{target['Bucket']} does not know {header}: {error}"
        raise IgnoresConditions(message, hint=HINT) from error


def _remove(calls: Calls, target: dict[str, str]) -> None:
    """Remove what was written to try the server out; some may write, and not remove."""
    try:
        calls("delete_object", **target)
    except (StoreError, NotFound) as error:
        log.info("%s stays in the bucket: %s", target["Key"], error)
