"""The download cache: files that a lock names, verified, keyed by their hash."""

from __future__ import annotations

import errno
import fcntl
import logging
import netrc
import os
import re
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from cryptography.hazmat.primitives import hashes

from envferry.base.connections import Connections, was_never_reached, wrong_time_words
from envferry.base.files import COPY_BYTES
from envferry.base.limits import (
    Limits,
    TooMuch,
    TooSlow,
    broken_limit,
    has_cause,
)
from envferry.base.retry import (
    BUSY_STATUSES,
    POLICY,
    RetryPolicy,
    Tally,
    Transient,
    asked_seconds,
    waiting_words,
)
from envferry.base.workers import Workers
from envferry.config import NetworkSettings, network, settings
from envferry.errors import (
    HostError,
    IntegrityError,
    NotFound,
    PipelineError,
    SpecError,
    StoreError,
    TargetOccupied,
)
from envferry.models import fit_to_show
from envferry.progress import Expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.models import LockedPackage
    from envferry.progress import Progress

log = logging.getLogger(__name__)

THREADS = 8
PIECE_BYTES = 256 << 10
"""Read from the network, written and hashed at once: so much stays in a core's own cache (1 MiB
cost 1.6 times the CPU)."""
PACKAGE_BYTES = 16 << 30
"""No package is longer; the longest that were seen have 3 GB."""
ENTRY_LOCK = ".lock"
"""Locked while an entry is filled; its time says when the entry was last asked for."""
ALGORITHMS = {"sha256": hashes.SHA256, "md5": hashes.MD5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One file to have: where it comes from, and the hash that decides whether it is the one."""

    url: str
    """Without a fragment."""
    file_name: str
    algorithm: str
    expected: str
    """The hash in hex, in lower case."""

    @classmethod
    def of(cls, package: LockedPackage) -> Download:
        """Return what to download for a locked package; raise for a lock that cannot be checked."""
        url = package.url.partition("#")[0]
        if not (package.sha256 or package.md5):
            message = (
                f"{redact(url)} has neither sha256 nor md5 in the lock, so it cannot be checked"
            )
            raise IntegrityError(
                message, hint="lock again: `envferry lock` records a hash for each"
            )
        algorithm = "sha256" if package.sha256 else "md5"
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            message = f"{redact(url)} does not end in a file name"
            raise SpecError(message, hint="lock again, or correct the URL in the lock")
        expected = (package.sha256 or package.md5 or "").lower()
        digits = 2 * ALGORITHMS[algorithm]().digest_size
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", expected):
            message = f"{redact(url)} has {algorithm} {expected!r}, expected {digits} hex digits"
            raise IntegrityError(
                message, hint="lock again: `envferry lock` records a hash for each"
            )
        return cls(url=url, file_name=name, algorithm=algorithm, expected=expected)

    @property
    def shown(self) -> str:
        """The URL for people, without credentials."""
        return redact(self.url)


def _package_limits() -> Limits:
    """Return what a package server may do: locks do not say how long packages are."""
    return Limits(
        least_speed=settings().min_speed, answer_bytes=PACKAGE_BYTES, text_bytes=PACKAGE_BYTES
    )


@dataclass(slots=True)
class DownloadCache:
    """Verified downloads under `root`: `sha256/ab/<hex>/<file name>`.

    Several threads and processes may use one at once: each entry has its lock, and a file gets its
    name only after its hash was right. Nothing found is trusted: every use hashes it again.
    """

    root: Path
    network: NetworkSettings = field(default_factory=network)
    policy: RetryPolicy = POLICY
    """How often a file is asked for without a byte more before it counts as unreachable."""
    limits: Limits = field(default_factory=_package_limits)
    connections: Connections = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Share connections among all downloads."""
        site = self.network
        self.connections = Connections(site.certificates, site.proxies, limits=self.limits)

    def fetch_all(
        self, packages: Sequence[LockedPackage], *, progress: Progress, offline: bool = False
    ) -> dict[str, Path]:
        """Return the verified file of each package's URL, downloading what is missing.

        Raises IntegrityError for wrong bytes, NotFound for what is not there (with `offline`: not
        in the cache), StoreError for servers that do not answer or refuse.
        """
        if not packages:
            return {}
        downloads = {package.url: Download.of(package) for package in packages}
        distinct = {(item.expected, item.file_name): item for item in downloads.values()}
        expected = Expected(len(distinct))
        with progress.task(f"Fetching {len(distinct)} packages", expected) as advance:
            meter = _Meter(advance=advance, expected=expected)
            found = self._fetch_in_threads(list(distinct.values()), meter, offline)
        return {url: found[item.expected, item.file_name] for url, item in downloads.items()}

    def path_of(self, item: Download) -> Path:
        """Return where a file lies, or will."""
        return self.root / item.algorithm / item.expected[:2] / item.expected / item.file_name

    def answers(self, url: str) -> bool:
        """Whether a file is there, asking its server once."""
        if urlsplit(url).scheme == "file":
            return Path(unquote(urlsplit(url).path)).is_file()
        try:
            response = self.ask(url, {})
        except urllib3.exceptions.HTTPError as error:
            log.info("%s does not answer: %s", redact(url), _reason(error))
            return False
        response.close()
        return response.status == 200

    def digest_of(self, url: str) -> str:
        """Return the SHA-256, in hex, of a file whose hash is unknown.

        Raises NotFound and StoreError as `fetch_all` does. The bytes are not kept.
        """
        meter = _Meter(advance=lambda _: None, expected=Expected(1))
        item = Download(
            url=url.partition("#")[0],
            file_name=unquote(urlsplit(url).path.rsplit("/", 1)[-1]),
            algorithm="sha256",
            expected="",
        )
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".unknown-") as directory:
            partial = Path(directory) / "file"
            if urlsplit(url).scheme == "file":
                return _copy_local(item, partial, meter)
            return self._download(item, partial, meter)

    def ask(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask for a URL once, with its login; the body is still to be read.

        Raises urllib3's errors.
        """
        headers = {**headers, **self._credentials(url)}
        return self.connections.open(_without_credentials(url), headers)

    def _fetch_in_threads(
        self, downloads: list[Download], meter: _Meter, offline: bool
    ) -> dict[tuple[str, str], Path]:
        def fetch(item: Download) -> Path | PipelineError | None:
            try:
                return self._fetch(item, meter, offline)
            except _Stopped:
                return None
            except PipelineError as error:
                if not offline:
                    meter.stopping.set()
                return error

        with Workers(THREADS, "download") as threads:
            try:
                results = list(threads.map(fetch, downloads))
            except BaseException:
                meter.stopping.set()
                raise
        errors = [result for result in results if isinstance(result, PipelineError)]
        if errors:
            raise _one_error(errors)
        pairs = zip(downloads, results, strict=True)
        return {(i.expected, i.file_name): path for i, path in pairs if isinstance(path, Path)}

    def _fetch(self, item: Download, meter: _Meter, offline: bool) -> Path:
        target = self.path_of(item)
        directory = target.parent
        if offline and not target.exists():
            message = f"{item.shown} is not in the download cache {self.root}"
            raise NotFound(message, hint="run the same command with the network on first")
        try:
            with entry_lock(directory):
                if target.exists():
                    meter.learn(item, target.stat().st_size)
                    if hash_file(target, item.algorithm, meter.advance_or_stop) == item.expected:
                        return target
                    log.warning("%s is damaged in the cache: removed", item.file_name)
                    target.unlink()
                    if offline:
                        message = f"{item.shown} was damaged in the download cache {self.root}"
                        hint = "run the same command with the network on"
                        raise IntegrityError(message, hint=hint)
                self._fill(item, target, meter)
        except OSError as error:
            message = f"cannot store {item.file_name} in {directory}: {error.strerror or error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = f"no space left for downloads in {self.root}: {error.strerror}"
            hint = "free space there or set ENVFERRY_CACHE"
            if isinstance(error, PermissionError):
                hint = "set ENVFERRY_CACHE to a folder that this user may write to"
            raise HostError(message, hint=hint) from error
        return target

    def _fill(self, item: Download, target: Path, meter: _Meter) -> None:
        partial = target.with_name(f".{target.name}.partial")
        if urlsplit(item.url).scheme == "file":
            found = _copy_local(item, partial, meter)
        else:
            resumed = partial.exists()
            found = self._download(item, partial, meter)
            if resumed and found != item.expected:
                # The beginning may be of an older file or another server: start again.
                partial.unlink()
                found = self._download(item, partial, meter)
        if found != item.expected:
            partial.unlink()
            message = (
                f"{item.shown} does not match its checksum: "
                f"expected {item.algorithm} {item.expected}, found {found}"
            )
            hint = "the file changed on its server: lock again, or use the mirror it came from"
            raise IntegrityError(message, hint=hint)
        with suppress(PermissionError):  # another user's, who let us read it: it was resumed
            partial.chmod(0o644)
        partial.replace(target)

    def _download(self, item: Download, partial: Path, meter: _Meter) -> str:
        """Download into `partial`, from where it ends; return the hash of the whole."""
        tally, reached, pause = Tally(self.policy), 0, 0.0
        while True:
            meter.wait_or_stop(pause)
            try:
                with partial.open("a+b") as stream:
                    return self._download_once(item, stream, meter)
            except NETWORK_ERRORS as error:
                if has_cause(error, TooMuch):
                    partial.unlink()
                    message = f"cannot download {item.shown}: {broken_limit(error)}"
                    raise StoreError(
                        message, hint="ask the administrator of that server"
                    ) from error
                failure, is_slow = self._failure(item, error), has_cause(error, TooSlow)
            if (size := partial.stat().st_size) > reached:
                reached = size
                if not is_slow:
                    tally.forget()
            again_after = tally.pause_after(failure)
            if again_after is None:
                raise failure.error
            log.info("retrying in %.1f s: %s", again_after, failure.error)
            pause = again_after

    def _failure(self, item: Download, error: Exception) -> Transient:
        """Return what to do about a failure; raise StoreError for one that stays."""
        reason, way = broken_limit(error) or _reason(error), self.connections.way_to(item.url)
        message = f"cannot download {item.shown}{way}: {reason}"
        if isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError):
            hint = "name your CA certificates in SSL_CERT_FILE"
            if words := wrong_time_words(reason):
                message, hint = f"{message}: {words}", "set the clock, with chrony or ntpd"
            raise StoreError(message, hint=hint) from error
        hint = "check the network and its proxy, then try again: downloads resume"
        if way:
            hint = "check that proxy (https_proxy, no_proxy), then try again: downloads resume"
        final = StoreError(message, hint=hint)
        final.__cause__ = error
        asked = error.asked if isinstance(error, _Busy) else None
        return Transient(
            final, asked=asked, is_unreachable=was_never_reached(error) or has_cause(error, TooSlow)
        )

    def _download_once(self, item: Download, stream: BinaryIO, meter: _Meter) -> str:
        digest = hashes.Hash(ALGORITHMS[item.algorithm]())
        stream.seek(0)
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
        start = stream.tell()
        response = self._request(item, start)
        try:
            if start and response.status == 416:
                # Nothing follows what is there: whole already, or of another file.
                return digest.finalize().hex()
            if start and not _continues(response, start):
                stream.truncate(0)
                digest = hashes.Hash(ALGORITHMS[item.algorithm]())
            if (length := response.headers.get("Content-Length", "")).isdecimal():
                if int(length) > self.limits.answer_bytes:
                    msg = f"it announced more than {self.limits.answer_bytes:,} bytes"
                    raise TooMuch(msg)
                meter.learn(item, int(length))
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
        headers = self._credentials(item.url)
        if start:
            headers["Range"] = f"bytes={start}-"
        response = self.connections.open(_without_credentials(item.url), headers)
        if response.status in BUSY_STATUSES:
            response.close()
            asked = asked_seconds(response.headers.get("Retry-After"))
            answer = f"the server answered {response.status} {response.reason or ''}".strip()
            raise _Busy(answer + waiting_words(asked), asked)
        if response.status not in (200, 206, 416) or (response.status == 416 and not start):
            response.close()
            way = self.connections.way_to(item.url)
            raise _refusal(item, way, f"{response.status} {response.reason or ''}".strip())
        return response

    def _credentials(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        known_login = self.network.logins.get(parts.netloc.lower())
        if known_login:
            parts = parts._replace(netloc=f"{known_login.reveal()}@{parts.netloc}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if not user and self.network.netrc and parts.hostname:
            try:
                known = netrc.netrc(self.network.netrc).hosts.get(parts.hostname)
            except (netrc.NetrcParseError, OSError) as error:
                log.warning("%s cannot be read: %s", self.network.netrc, error)
                known = None
            user, password = (known[0], known[2] or "") if known else ("", "")
        if not user:
            return {}
        return dict(urllib3.make_headers(basic_auth=f"{user}:{password}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meter:
    """Says how far all downloads are, and whether they are to go on."""

    advance: Callable[[int], None]
    expected: Expected
    stopping: threading.Event = field(default_factory=threading.Event)

    def advance_or_stop(self, done_bytes: int) -> None:
        """Say that more bytes are done; raise _Stopped when they are no longer wanted."""
        if self.stopping.is_set():
            raise _Stopped
        self.advance(done_bytes)

    def wait_or_stop(self, seconds: float) -> None:
        """Wait before an attempt; raise _Stopped when it is no longer wanted."""
        if self.stopping.wait(seconds):
            raise _Stopped

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
    TooMuch,
    _Busy,
)


class _Stopped(Exception):
    """Another download failed, or the process was interrupted: do not go on."""


def redact(url: str) -> str:
    """Return a URL fit for messages: without user, password, token or query."""
    parts = urlsplit(_without_credentials(url))
    return fit_to_show(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")))


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _one_error(errors: list[PipelineError]) -> PipelineError:
    """Return the first error; name all files where several of a kind are missing."""
    first = errors[0]
    alike = {error.message for error in errors if type(error) is type(first)}
    if len(alike) == 1:
        return first
    lines = "\n".join(f"  {message}" for message in sorted(alike))
    return type(first)(f"{len(alike)} files are not available:\n{lines}", hint=first.hint)


@contextmanager
def entry_lock(directory: Path, *, using: bool = True) -> Iterator[None]:
    """Hold the lock of one cache entry, waiting while another thread or process fills it.

    Its time says when the entry was last used: who only looks at it changes none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ENTRY_LOCK).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if using:
            os.utime(stream.fileno())
        yield


@contextmanager
def cache_lock(root: Path, *, shared: bool) -> Iterator[None]:
    """Hold the cache: shared by all who use its files, alone to remove some.

    Raises TargetOccupied when it cannot be had alone; who shares it waits for a removal to end.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ENTRY_LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"a build is using the download cache {root}"
            raise TargetOccupied(message, hint="wait for it to end, then try again") from error
        yield


def hash_file(path: Path, algorithm: str, advance: Callable[[int], None]) -> str:
    """Return the hash of a file in hex."""
    digest = hashes.Hash(ALGORITHMS[algorithm]())
    with path.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.finalize().hex()


def _copy_local(item: Download, partial: Path, meter: _Meter) -> str:
    """Copy a `file://` URL into `partial` and return its hash."""
    source = Path(unquote(urlsplit(item.url).path))
    digest = hashes.Hash(ALGORITHMS[item.algorithm]())
    try:
        reading = source.open("rb")
    except OSError as error:
        message = f"cannot read {item.shown}: {error.strerror}"
        raise NotFound(message, hint="put the file back or lock again") from error
    with reading, partial.open("wb") as writing:
        meter.learn(item, source.stat().st_size)
        while chunk := reading.read(COPY_BYTES):
            writing.write(chunk)
            digest.update(chunk)
            meter.advance_or_stop(len(chunk))
    return digest.finalize().hex()


def _continues(response: urllib3.BaseHTTPResponse, start: int) -> bool:
    """Whether a response goes on where we stopped; some servers send the whole file again."""
    wanted = f"bytes {start}-"
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(wanted)


def _refusal(item: Download, way: str, answer: str) -> PipelineError:
    status = int(answer.partition(" ")[0])
    if status in (404, 410):
        message = f"{item.shown} does not exist: the server answered {answer}"
        return NotFound(message, hint="lock again: the file was removed or its channel moved")
    message = f"cannot download {item.shown}{way}: the server answered {answer}"
    if status == 407:
        return StoreError(message, hint="put the proxy's login into https_proxy: http://USER:…@…")
    if status in (401, 403):
        return StoreError(message, hint="put the login for its host into ~/.netrc")
    return StoreError(message, hint="try again later: downloads resume")


def _reason(error: Exception) -> str:
    """Say what went wrong without the URL that urllib3 repeats, which may hold a token."""
    if isinstance(error, _Busy):
        return str(error)
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    return re.sub(r"\w*Connection(Pool)?\([^)]*\): | with url: \S+", "", str(cause))
