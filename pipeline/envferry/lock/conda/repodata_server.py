"""The indexes of channels behind http: asked for again, sent again only when they changed."""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import msgspec
import urllib3
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes

from envferry.base.connections import was_never_reached
from envferry.base.files import write_bytes
from envferry.base.json import decode_json
from envferry.base.proxies import PROXY_LOGIN
from envferry.base.retry import BUSY_STATUSES, Transient, asked_seconds, persistently, waiting_words
from envferry.base.text import human_bytes
from envferry.build.cache_locks import entry_lock
from envferry.errors import StoreError
from envferry.lock.solver_output import not_cached
from envferry.progress import Expected
from envferry.redaction import fit_to_show, redact, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.base.logins import Authorized
    from envferry.build.downloads import DownloadCache

log = logging.getLogger(__name__)

PIECE_BYTES = 64 << 10
MAX_INDEX_BYTES = 8 << 30
"""Twenty times conda-forge's largest: a few kilobytes may claim to be more."""
ABSENT = (404, 410)
CONNECTION = re.compile(r"<?urllib3\S*|\w*Connection(?:Pool)?\([^)]*\): ")
NOTE = "about.json"


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said of the index in the cache."""

    url: str
    etag: str = ""
    last_modified: str = ""


class RepodataServer(msgspec.Struct):
    """Fetches indexes into a cache and says how far it is."""

    root: Path
    """The cache: a folder for each URL, and `shards/ab/HEX.msgpack.zst`."""
    downloads: DownloadCache
    offline: bool = False
    """Whether only what the cache has counts, however old it is."""
    expected: Expected = msgspec.field(default_factory=lambda: Expected(0))
    advance: Callable[[int], None] = lambda done_bytes: None
    _guard: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def index(self, url: str, absent: tuple[int, ...] = ABSENT) -> Path | None:
        """Return an index, unpacked, asking whether it changed; None when it is not there.

        `absent`: what the server answers then. Raises StoreError when it cannot be reached or
        refuses.
        """
        # By the URL without its login: a new token must not fetch hundreds of MB again.
        home = self.root / blake3(without_credentials(url).encode()).hexdigest()[:32]
        with entry_lock(home):
            known, path = _read_note(home / NOTE), home / "index"
            if self.offline:
                return path if known and path.exists() else None
            # A note without its index must not be asked about: after a 304 there would be nothing
            # to read.
            headers = _conditions(known) if known and path.exists() else {}
            with self._answer(url, headers, absent) as response:
                if response is None:
                    return None
                if response.status == 304:
                    return path
                partial = home / "index.partial"
                with partial.open("wb") as target:
                    self._receive(url, response, target)
                # Before its note: a new ETag beside an old index would be answered 304 for ever.
                partial.replace(path)
                note = _Note(
                    url=without_credentials(url),
                    etag=response.headers.get("ETag", ""),
                    last_modified=response.headers.get("Last-Modified", ""),
                )
                write_bytes(home / NOTE, msgspec.json.encode(note))
        return path

    def shard(self, url: str, digest: str) -> bytes:
        """Return a shard by its SHA-256; raise StoreError when it is not to be had."""
        path = self.root / "shards" / digest[:2] / f"{digest}.msgpack.zst"
        # Hashed at each use: a damaged shard is fetched again.
        if path.exists() and _sha256(held := path.read_bytes()) == digest:
            # Its time says when it was last of use: pruning goes by that.
            os.utime(path)
            return held
        is_local = urlsplit(url).scheme == "file"
        data = _read_local(url) if is_local else self._fetched_shard(url)
        if data is None:
            message = f"{redact(url)} does not exist, though its channel lists it"
            raise StoreError(message, hint="try again: the channel may be changing")
        if _sha256(data) != digest:
            message = f"{redact(url)} does not match its checksum: expected sha256 {digest}"
            raise StoreError(message, hint="try again, or use another mirror of the channel")
        # A file of this machine is as near as the cache.
        if not is_local:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        return data

    def _fetched_shard(self, url: str) -> bytes | None:
        """Return what a server has; None when it does not have it."""
        if self.offline:
            msg = f"{redact(url)} is not there"
            raise not_cached(msg)
        # `+=` reads and writes: without the guard, threads would lose some.
        with self._guard:
            self.expected.items += 1
        with self._answer(url, {}, ABSENT) as response:
            if response is None:
                return None
            data: bytes = response.read()
        self.expected.learn(url, len(data))
        self.advance(len(data))
        return data

    def authorized(self, url: str) -> Authorized:
        """Return how a URL is asked for."""
        return self.downloads.client.logins.authorize(url, is_channel=True)

    @contextmanager
    def _answer(
        self, url: str, headers: dict[str, str], absent: tuple[int, ...]
    ) -> Iterator[urllib3.BaseHTTPResponse | None]:
        """Ask for a URL, several times while its server is busy; None when it is not there."""
        response = self._ask(url, headers)
        try:
            if response.status in absent:
                log.info("%s: %s", redact(url), response.status)
                yield None
                return
            if response.status not in (200, 304):
                answer = f"{response.status} {response.reason or ''}".strip()
                raise _refused(self.authorized(url), url, answer)
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(url, str(error)) from error
        finally:
            response.close()

    def _ask(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        return persistently(lambda: self._ask_once(url, headers), self.downloads.policy)

    def _ask_once(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            response = self.downloads.ask(url, headers, is_channel=True)
        except urllib3.exceptions.HTTPError as error:
            words = CONNECTION.sub("", str(getattr(error, "reason", error)))
            failure = _unreachable(url, words)
            raise Transient(failure, is_unreachable=was_never_reached(error)) from error
        # Only what may be better soon is tried again; every other answer is for the caller to
        # judge.
        if response.status not in BUSY_STATUSES:
            return response
        asked = asked_seconds(response.headers.get("Retry-After"))
        response.close()
        words = f"the server answered {response.status} {response.reason or ''}".strip()
        raise Transient(_unreachable(url, f"{words}{waiting_words(asked)}"), asked=asked)

    def _receive(self, url: str, response: urllib3.BaseHTTPResponse, target: BinaryIO) -> None:
        """Write an answer, unpacked."""
        with self._guard:
            self.expected.items += 1
        length = response.headers.get("Content-Length", "")
        self.expected.learn(url, int(length) if length.isdecimal() else 0)
        seen = 0

        def advance() -> None:
            nonlocal seen
            # Compressed bytes, as Content-Length counts them.
            self.advance(response.tell() - seen)
            seen = response.tell()

        source = cast("BinaryIO", response)
        try:
            _copy(_unpacked(source) if url.endswith(".json.zst") else source, target, advance)
        except ValueError as error:
            raise _unreachable(url, str(error)) from error


def unpack_file(source: Path, root: Path) -> Path:
    """Return a compressed index of this machine, unpacked into the cache once.

    Raises ValueError when it is damaged.
    """
    found = source.stat()
    # Size and time are part of the name: a file that changed gets an entry of its own.
    identity = f"{source.absolute()}\0{found.st_size}\0{found.st_mtime_ns}"
    home = root / blake3(identity.encode()).hexdigest()[:32]
    path = home / "index"
    with entry_lock(home):
        if not path.exists():
            partial = home / "index.partial"
            with source.open("rb") as packed, partial.open("wb") as target:
                _copy(_unpacked(packed), target)
            write_bytes(home / NOTE, msgspec.json.encode(_Note(url=source.absolute().as_uri())))
            # Last: where it exists, it is whole, also after a kill.
            partial.replace(path)
    return path


def _unpacked(packed: BinaryIO) -> BinaryIO:
    # A file may have several frames: parallel compressors write one for each piece.
    decompressor = zstandard.ZstdDecompressor()
    return cast("BinaryIO", decompressor.stream_reader(packed, read_across_frames=True))


def _copy(source: BinaryIO, target: BinaryIO, advance: Callable[[], None] = lambda: None) -> None:
    """Write an index, plain; raise ValueError when it is too large or damaged."""
    try:
        # Read, not pushed: a few bytes may claim to be gigabytes.
        while piece := source.read(PIECE_BYTES):
            target.write(piece)
            advance()
            if target.tell() > MAX_INDEX_BYTES:
                message = f"it unpacks to more than {human_bytes(MAX_INDEX_BYTES)}"
                raise ValueError(message)
    except zstandard.ZstdError as error:
        message = f"failed to decode it: {error}"
        raise ValueError(message) from error


def _read_local(url: str) -> bytes | None:
    try:
        return Path(unquote(urlsplit(url).path)).read_bytes()
    except FileNotFoundError:
        return None


def _conditions(known: _Note) -> dict[str, str]:
    headers = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified}
    return {name: text for name, text in headers.items() if text}


def _read_note(path: Path) -> _Note | None:
    try:
        return decode_json(path.read_bytes(), _Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _sha256(data: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex()


def _refused(asked: Authorized, url: str, answer: str) -> StoreError:
    hint = "check the spec's `channels:`, or give `--channel`"
    if answer[:3] in ("401", "403"):
        hint = asked.hint
    elif answer[:3] == "407":
        hint = PROXY_LOGIN
    message = f"a conda channel cannot be reached: {redact(url)}: the server answered {answer}"
    return StoreError(message, hint=hint)


def _unreachable(url: str, words: str) -> StoreError:
    message = f"a conda channel cannot be reached: {redact(url)}: {fit_to_show(words)}"
    return StoreError(message, hint="check the spec's `channels:`, or give `--channel`")
