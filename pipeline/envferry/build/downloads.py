"""The download cache: files that a lock names, verified, keyed by their hash."""

from __future__ import annotations

import errno
import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import urllib3
from cryptography.hazmat.primitives import hashes

from envferry.base.files import COPY_BYTES
from envferry.base.retry import POLICY, RetryPolicy
from envferry.base.text import plural
from envferry.base.workers import Workers
from envferry.build.cache_locks import entry_lock
from envferry.build.download import ALGORITHMS, Download, hash_file
from envferry.build.download_client import DownloadClient, Meter, Stopped, package_limits, reason_of
from envferry.config import NetworkSettings, network
from envferry.errors import HostError, IntegrityError, NotFound, PipelineError
from envferry.progress import Expected
from envferry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envferry.base.limits import Limits
    from envferry.base.secret import Secret
    from envferry.models import LockedPackage
    from envferry.progress import Progress

log = logging.getLogger(__name__)

THREADS = 8


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
    limits: Limits = field(default_factory=package_limits)
    channels: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    """URLs of channels with logins, by what their packages begin with in a lock."""
    client: DownloadClient = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Share connections among all downloads."""
        self.client = DownloadClient(self.network, self.policy, self.limits, self.channels)

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
        # Several URLs may be of one file: it is downloaded once.
        distinct = {(item.expected, item.file_name): item for item in downloads.values()}
        expected = Expected(len(distinct))
        with progress.task(f"Fetching {plural(len(distinct), 'package')}", expected) as advance:
            meter = Meter(advance=advance, expected=expected)
            found = self._fetch_in_threads(list(distinct.values()), meter, offline)
        return {url: found[item.expected, item.file_name] for url, item in downloads.items()}

    def path_of(self, item: Download) -> Path:
        """Return where a file lies, or will."""
        return self.root / item.algorithm / item.expected[:2] / item.expected / item.file_name

    def answers(self, url: str) -> bool:
        """Whether a file of a channel is there, asking its server once."""
        if urlsplit(url).scheme == "file":
            return Path(unquote(urlsplit(url).path)).is_file()
        try:
            response = self.ask(url, {}, is_channel=True)
        except urllib3.exceptions.HTTPError as error:
            log.info("%s does not answer: %s", redact(url), reason_of(error))
            return False
        response.close()
        return response.status == 200

    def digest_of(self, url: str, *, is_conda: bool) -> str:
        """Return the SHA-256, in hex, of a file whose hash is unknown.

        Raises NotFound and StoreError as `fetch_all` does. The bytes are not kept.
        """
        meter = Meter(advance=lambda _: None, expected=Expected(1))
        item = Download(
            url=url.partition("#")[0],
            file_name=unquote(urlsplit(url).path.rsplit("/", 1)[-1]),
            algorithm="sha256",
            expected="",
            is_conda=is_conda,
        )
        self.root.mkdir(parents=True, exist_ok=True)
        # In the cache, whose disk has room for packages; /tmp is often small, or memory.
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".unknown-") as directory:
            partial = Path(directory) / "file"
            if urlsplit(url).scheme == "file":
                return _copy_local(item, partial, meter)
            return self.client.download(item, partial, meter)

    def ask(
        self, url: str, headers: dict[str, str], *, is_channel: bool = False
    ) -> urllib3.BaseHTTPResponse:
        """Ask for a URL once, with its login; the body is still to be read.

        Raises urllib3's errors, and SpecError for a credentials file that cannot be read.
        """
        return self.client.ask(url, headers, is_channel=is_channel)

    def _fetch_in_threads(
        self, downloads: list[Download], meter: Meter, offline: bool
    ) -> dict[tuple[str, str], Path]:
        def fetch(item: Download) -> Path | PipelineError | None:
            try:
                return self._fetch(item, meter, offline)
            except Stopped:
                return None
            except PipelineError as error:
                # Offline, all are looked at: one error then names all that is missing.
                if not offline:
                    meter.stopping.set()
                return error

        with Workers(THREADS, "download") as threads:
            try:
                # `fetch` returns errors instead of raising them: all threads end before the first
                # is raised.
                results = list(threads.map(fetch, downloads))
            except BaseException:
                # After Ctrl-C, too: each thread stops at its next piece.
                meter.stopping.set()
                raise
        errors = [result for result in results if isinstance(result, PipelineError)]
        if errors:
            raise _one_error(errors)
        pairs = zip(downloads, results, strict=True)
        return {(i.expected, i.file_name): path for i, path in pairs if isinstance(path, Path)}

    def _fetch(self, item: Download, meter: Meter, offline: bool) -> Path:
        target = self.path_of(item)
        directory = target.parent
        # Before the lock, which would make a folder for the missing entry.
        if offline and not target.exists():
            message = f"{item.shown} is not in the download cache {self.root}"
            raise NotFound(message, hint="run the same command once without `--offline`")
        try:
            # Held while downloading: another process that wants this file waits and then finds it.
            with entry_lock(directory):
                if target.exists():
                    meter.learn(item, target.stat().st_size)
                    if hash_file(target, item.algorithm, meter.advance_or_stop) == item.expected:
                        return target
                    log.warning("%s is damaged in the cache: removed", item.file_name)
                    target.unlink()
                    if offline:
                        message = f"{item.shown} was damaged in the download cache {self.root}"
                        hint = "run the same command once without `--offline`"
                        raise IntegrityError(message, hint=hint)
                self._fill(item, target, meter)
        except OSError as error:
            message = f"cannot store {item.file_name} in {directory}: {error.strerror or error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = f"no space left for downloads in {self.root}: {error.strerror}"
            hint = "free space there or set ENVFERRY_CACHE"
            if isinstance(error, PermissionError):
                hint = "set ENVFERRY_CACHE to a folder that this user can write to"
            raise HostError(message, hint=hint) from error
        return target

    def _fill(self, item: Download, target: Path, meter: Meter) -> None:
        partial = target.with_name(f".{target.name}.partial")
        if urlsplit(item.url).scheme == "file":
            found = _copy_local(item, partial, meter)
        else:
            resumed = partial.exists()
            found = self.client.download(item, partial, meter)
            if resumed and found != item.expected:
                # The beginning may be of an older file or another server: start again.
                partial.unlink()
                found = self.client.download(item, partial, meter)
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
        # Under the entry's lock, and on one file system: readers see the whole file or none.
        partial.replace(target)


def _one_error(errors: list[PipelineError]) -> PipelineError:
    """Return the first error; name all files where several of a kind are missing."""
    first = errors[0]
    alike = {error.message for error in errors if type(error) is type(first)}
    if len(alike) == 1:
        return first
    lines = "\n".join(f"  {message}" for message in sorted(alike))
    return type(first)(f"{len(alike)} files are not available:\n{lines}", hint=first.hint)


def _copy_local(item: Download, partial: Path, meter: Meter) -> str:
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
