"""Access logs, line by line: Apache's and nginx's common and combined formats, and S3's own.

https://httpd.apache.org/docs/current/logs.html#combined
https://docs.aws.amazon.com/AmazonS3/latest/userguide/LogFormat.html
"""

from __future__ import annotations

import gzip
import re
import zlib
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from envferry.base.inputs import open_input
from envferry.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_LINE = 64 << 10
TIME = r"\[(?P<time>\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]"
REQUEST = r'"(?P<method>[A-Z]+) (?P<target>[^" ]+)(?: HTTP/[\d.]+)?"'
ANSWER_SIZE = r"(?P<sent>\d{1,18}(?!\d)|-)"
# `.*?` because the name of a user may hold blanks.
COMMON = re.compile(rf"(?P<client>\S+) \S+ .*?{TIME} {REQUEST} (?P<status>\d{{3}}) {ANSWER_SIZE}")
S3 = re.compile(
    rf"\S+ \S+ {TIME} (?P<client>\S+) \S+ \S+ \S+ \S+ {REQUEST} (?P<status>\d{{3}}) \S+ "
    rf"{ANSWER_SIZE}"
)
TIME_FORMAT = "%d/%b/%Y:%H:%M:%S %z"


class LoggedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    client: str
    time: datetime
    """In UTC."""
    method: str
    path: str
    """Without the query, decoded."""
    status: int
    sent: int
    """Bytes."""


def read_log(path: Path) -> Iterator[LoggedRequest | None]:
    """Yield the request of each line, None for one that is not understood; `.gz` is unpacked.

    Raises NotFound for a file that cannot be read, IntegrityError for a damaged `.gz`.
    """
    try:
        with _opened(path) as stream:
            # With a limit: a file that is no log may be one endless line.
            while line := stream.readline(LONGEST_LINE):
                if line.strip():
                    yield parse_line(line.decode("utf-8", errors="replace"))
    # Before OSError, of which BadGzipFile is a subclass.
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{path} is not a gzip file, or is damaged: {error}"
        raise IntegrityError(message, hint="copy it again") from error
    except OSError as error:
        message = f"cannot read the log {path}: {error.strerror}"
        raise NotFound(
            message, hint="name access logs, such as /var/log/nginx/access.log"
        ) from error


def parse_line(line: str) -> LoggedRequest | None:
    """Return the request of a line; None for one that is not understood."""
    found = S3.match(line) or COMMON.match(line)
    if not found:
        return None
    try:
        time = datetime.strptime(found["time"], TIME_FORMAT).astimezone(timezone.utc)
    # The pattern lets the 99th of a month pass, and a year 1 whose UTC is before all years.
    except (ValueError, OverflowError):
        return None
    return LoggedRequest(
        client=found["client"],
        time=time,
        method=found["method"],
        path=unquote(re.split(r"[?#]", found["target"], maxsplit=1)[0]),
        status=int(found["status"]),
        sent=0 if found["sent"] == "-" else int(found["sent"]),
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with open_input(path) as stream:
        yield gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream
