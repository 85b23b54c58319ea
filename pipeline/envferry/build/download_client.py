"""Download one file over HTTP: resumed, retried, with its login."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import msgspec
import urllib3
from cryptography.hazmat.primitives import hashes

from envferry.base.connections import Connections, was_never_reached, wrong_time_words
from envferry.base.files import COPY_BYTES
from envferry.base.limits import Limits, ResponseTooLarge, ResponseTooSlow, broken_limit, has_cause
from envferry.base.proxies import PROXY_LOGIN
from envferry.base.retry import (
    BUSY_STATUSES,
    FailureCount,
    RetryPolicy,
    Transient,
    asked_seconds,
    waiting_words,
)
from envferry.build.download import ALGORITHMS
from envferry.config import NetworkSettings, settings
from envferry.errors import NotFound, PipelineError, SpecError, StoreError
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from envferry.base.logins import Authorized, Logins
    from envferry.base.secret import Secret
    from envferry.build.download import Download
    from envferry.progress import Expected

log = logging.getLogger(__name__)

PIECE_BYTES = 256 << 10
"""Read from the network, written and hashed at once: so much stays in a core's own cache (1 MiB
cost 1.6 times the CPU)."""
PACKAGE_BYTES = 16 << 30
"""No package is longer; the longest that were seen have 3 GB."""


def package_limits() -> Limits:
    """Return what a package server may do: locks do not say how long packages are."""
    return Limits(
        least_speed=settings().min_speed, answer_bytes=PACKAGE_BYTES, text_bytes=PACKAGE_BYTES
    )


@dataclass(slots=True)
class DownloadClient:
    """Asks servers for files; threads may share it."""

    network: NetworkSettings
    policy: RetryPolicy
    """How often a file is asked for without a byte more before it counts as unreachable."""
    limits: Limits
    channels: Mapping[str, Secret]
    """URLs of channels with logins, by what their packages begin with in a lock."""
    connections: Connections = field(init=False, repr=False)
    logins: Logins = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Share connections among all requests."""
        site = self.network
        self.connections = Connections(site.certificates, site.proxies, limits=self.limits)
        self.logins = site.all_logins(self.channels)

    def ask(
        self, url: str, headers: dict[str, str], *, is_channel: bool = False
    ) -> urllib3.BaseHTTPResponse:
        """Ask for a URL once, with its login; the body is still to be read.

        Raises urllib3's errors, and SpecError for a credentials file that cannot be read.
        """
        asked = self.logins.authorize(url, is_channel=is_channel)
        headers = {**headers, **asked.headers}
        return self.connections.open(asked.url, headers, token=asked.token)

    def download(self, item: Download, partial: Path, meter: Meter) -> str:
        """Download into `partial`, from where it ends; return the hash of the whole."""
        tally, reached, pause = FailureCount(self.policy), 0, 0.0
        while True:
            # Waits on the event and not in sleep, so that another thread's failure ends the pause.
            meter.wait_or_stop(pause)
            try:
                # Appending: what an attempt has received stays for the next one, also in another
                # process.
                with partial.open("a+b") as stream:
                    return self._download_once(item, stream, meter)
            except NETWORK_ERRORS as error:
                if has_cause(error, ResponseTooLarge):
                    # What is there is useless: an attempt that goes on from it would hit the limit
                    # again.
                    partial.unlink()
                    message = f"cannot download {item.shown}: {broken_limit(error)}"
                    raise StoreError(
                        message, hint="ask the administrator of that server"
                    ) from error
                failure, is_slow = self._failure(item, error), has_cause(error, ResponseTooSlow)
            if (size := partial.stat().st_size) > reached:
                reached = size
                # A trickle is no progress: it would give itself attempts without end.
                if not is_slow:
                    tally.forget()
            again_after = tally.pause_after(failure)
            if again_after is None:
                raise failure.error
            log.info("retrying in %.1f s: %s", again_after, failure.error)
            pause = again_after

    def _failure(self, item: Download, error: Exception) -> Transient:
        """Return what to do about a failure; raise StoreError for one that stays."""
        reason, way = broken_limit(error) or reason_of(error), self.connections.proxy_note(item.url)
        message = f"cannot download {item.shown}{way}: {reason}"
        is_tls = isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError)
        # Other failures of TLS pass: a connection that is cut off in its handshake is one.
        if is_tls and "CERTIFICATE" in reason:
            # Another attempt would get the same certificate, so this fails at once.
            hint = "name your CA certificates in SSL_CERT_FILE"
            if words := wrong_time_words(reason):
                message, hint = f"{message}: {words}", "set the clock, with chrony or ntpd"
            raise StoreError(message, hint=hint) from error
        hint = "check the network and its proxy, then try again: downloads resume"
        if way:
            hint = "check that proxy (https_proxy, no_proxy), then try again: downloads resume"
        elif is_tls:
            hint = "does that server speak https? check the URL and its port, then try again"
        final = StoreError(message, hint=hint)
        # It is raised later, outside of this `except`, where `from error` cannot be written.
        final.__cause__ = error
        asked = error.asked if isinstance(error, _Busy) else None
        return Transient(
            final,
            asked=asked,
            is_unreachable=was_never_reached(error) or has_cause(error, ResponseTooSlow),
        )

    def _download_once(self, item: Download, stream: BinaryIO, meter: Meter) -> str:
        digest = hashes.Hash(ALGORITHMS[item.algorithm]())
        stream.seek(0)
        # The hash is that of the whole, with what an earlier attempt has left.
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
        # At the end of the file after the loop: the first byte that is missing.
        start = stream.tell()
        response = self._request(item, start)
        try:
            if start and response.status == 416:
                # Nothing follows what is there: whole already, or of another file.
                return digest.finalize().hex()
            if start and not _continues(response, start):
                # In append mode writes go to the new end, so no seek is needed.
                stream.truncate(0)
                digest = hashes.Hash(ALGORITHMS[item.algorithm]())
            # Before the first byte is written: an answer that announces too much does not fill the
            # disk.
            if (length := response.headers.get("Content-Length", "")).isdecimal():
                if int(length) > self.limits.answer_bytes:
                    msg = f"it announced more than {self.limits.answer_bytes:,} bytes"
                    raise ResponseTooLarge(msg)
                meter.learn(item, int(length))
            # As it was sent: the hash in the lock is that of the file on the server.
            for chunk in response.stream(PIECE_BYTES, decode_content=False):
                stream.write(chunk)
                digest.update(chunk)
                meter.advance_or_stop(len(chunk))
            response.release_conn()  # read to its end: the connection serves the next file
        finally:
            response.close()
        return digest.finalize().hex()

    def _request(self, item: Download, start: int) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(item.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            message = f"cannot download {item.shown}: expected an http, https or file URL"
            raise SpecError(message, hint="lock again, or correct the URL in the lock")
        asked = self.logins.authorize(item.url, is_channel=item.is_conda)
        # RFC 9110, 14.2. A server may ignore it and answer 200 with the whole file.
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self.connections.open(asked.url, {**headers, **asked.headers}, token=asked.token)
        if response.status in BUSY_STATUSES:
            response.close()
            pause = asked_seconds(response.headers.get("Retry-After"))
            answer = f"the server answered {response.status} {response.reason or ''}".strip()
            raise _Busy(answer + waiting_words(pause), pause)
        if response.status not in (200, 206, 416) or (response.status == 416 and not start):
            response.close()
            way = self.connections.proxy_note(item.url)
            answer = f"{response.status} {response.reason or ''}".strip()
            raise _refusal(item, way, answer, asked)
        return response


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """Says how far all downloads are, and whether they are to go on."""

    advance: Callable[[int], None]
    expected: Expected
    stopping: threading.Event = msgspec.field(default_factory=threading.Event)

    def advance_or_stop(self, done_bytes: int) -> None:
        """Say that more bytes are done; raise Stopped when they are no longer wanted."""
        if self.stopping.is_set():
            raise Stopped
        self.advance(done_bytes)

    def wait_or_stop(self, seconds: float) -> None:
        """Wait before an attempt; raise Stopped when it is no longer wanted."""
        if self.stopping.wait(seconds):
            raise Stopped

    def learn(self, item: Download, size: int) -> None:
        """Say how many bytes a file has, or what is left of it."""
        self.expected.learn(f"{item.expected}/{item.file_name}", size)


class _Busy(Exception):
    """The server refuses for the moment, and may say for how many seconds: try again."""

    def __init__(self, message: str, asked: float | None) -> None:
        super().__init__(message)
        self.asked = asked


NETWORK_ERRORS = (
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
    ResponseTooLarge,
    _Busy,
)


class Stopped(Exception):
    """Another download failed, or the process was interrupted: do not go on."""


def _continues(response: urllib3.BaseHTTPResponse, start: int) -> bool:
    """Whether a response goes on where we stopped; some servers send the whole file again."""
    wanted = f"bytes {start}-"
    # A 206 from another offset would put bytes in the wrong place (RFC 9110, 15.3.7).
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(wanted)


def _refusal(item: Download, way: str, answer: str, asked: Authorized) -> PipelineError:
    status = int(answer.partition(" ")[0])
    # Some servers answer 404 for what needs a login, hence the second hint.
    if status in (404, 410):
        message = f"{item.shown} does not exist: the server answered {answer}"
        hint = f"lock again if the file was removed or moved; {asked.hint_when_absent}"
        return NotFound(message, hint=hint)
    message = f"cannot download {item.shown}{way}: the server answered {answer}"
    if status == 407:
        return StoreError(message, hint=PROXY_LOGIN)
    if status in (401, 403):
        return StoreError(message, hint=asked.hint)
    return StoreError(message, hint="try again later: downloads resume")


def reason_of(error: Exception) -> str:
    """Describe an error without the URL that urllib3 repeats, which may hold a token."""
    if isinstance(error, _Busy):
        return str(error)
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    words = re.sub(r"\w*Connection(Pool)?\([^)]*\): | with url: \S+", "", str(cause))
    return fit_to_show(words)
