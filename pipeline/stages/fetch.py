"""Stage 5, fetch: Ref -> Artifact."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash
from blake3 import blake3

from pipeline.artifacts import require_digests, write_companions
from pipeline.errors import HostError, IntegrityError
from pipeline.files import (
    digest_file,
    exclusive_lock,
    require_space,
    sync_directory,
)
from pipeline.models import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from pipeline.models import Manifest, Ref
    from pipeline.progress import Progress
    from pipeline.registry import Registry

PIECE_BYTES = 8 << 20
READERS = 6
PIECES_AHEAD = 12
"""Pieces that may wait in memory for their turn to be hashed: 96 MiB."""
JOURNAL_LINE = re.compile(r"(\d{1,6}) ([0-9a-f]{32})")


def fetch_artifact(
    ref: Ref, *, registry: Registry, directory: Path, platform: str, progress: Progress
) -> Artifact:
    """Copy an artifact from a registry into a directory, verified.

    Pieces are read in parallel into a hidden partial file, hashed in order as they arrive, and
    renamed when XXH3-128 and BLAKE3 are the manifest's. A run that breaks off leaves what it has
    for the next one. An archive that is there already and right is not read again.
    """
    manifest = registry.manifest(ref.name, platform, registry.resolve(ref, platform))
    artifact = Artifact(directory=directory, manifest=manifest)
    lock, proof = registry.read_lock(manifest), registry.proof(manifest)
    partial = _Partial(artifact)
    with _explained(directory), exclusive_lock(partial.journal, str(artifact.archive_path)):
        with partial.opened():
            if not _is_complete(artifact, progress):
                _fetch_archive(partial, registry, progress)
        write_companions(artifact, lock, proof)
    return artifact


@dataclass(slots=True)
class _Partial:
    """The part of an archive that has arrived, and the journal of its pieces.

    The journal's first line names the archive by its BLAKE3, every further one a piece and its
    XXH3-128: what a power loss took away is noticed and read again.
    """

    artifact: Artifact
    pieces: dict[int, str] = field(default_factory=dict)
    descriptor: int = -1
    journal_guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the archive."""
        return self.artifact.manifest

    @property
    def path(self) -> Path:
        """The partial file; hidden, and in the directory that the archive will be in."""
        return self.artifact.directory / f".{self.manifest.archive.file}.partial"

    @property
    def journal(self) -> Path:
        """The journal, which is also what a running fetch locks."""
        return self.artifact.directory / f".{self.manifest.archive.file}.pieces"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file with the pieces of an earlier run; remove both when none is left to keep.

        The journal goes last, for it is the lock.
        """
        header = f"{self.manifest.archive.blake3} {PIECE_BYTES}"
        lines: list[str] = []
        if self.journal.exists() and self.path.exists():
            lines = self.journal.read_text(errors="replace").splitlines()
        if lines[:1] == [header]:
            matches = (JOURNAL_LINE.fullmatch(line) for line in lines[1:])
            self.pieces = {int(match[1]): match[2] for match in matches if match}
        else:
            self.path.unlink(missing_ok=True)
            self.journal.write_text(header + "\n")
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield
        finally:
            os.close(self.descriptor)
            if not self.pieces:
                self.path.unlink(missing_ok=True)
                self.journal.unlink(missing_ok=True)

    def extent(self, number: int) -> tuple[int, int]:
        """Return offset and length of a piece."""
        offset = number * PIECE_BYTES
        return offset, min(PIECE_BYTES, self.manifest.archive.size - offset)

    def stored(self, number: int) -> bytes | None:
        """Return a piece that is there already, or None when it is not, or is not right."""
        if number not in self.pieces:
            return None
        offset, length = self.extent(number)
        data = os.pread(self.descriptor, length, offset)
        return data if xxhash.xxh3_128_hexdigest(data) == self.pieces[number] else None

    def keep(self, number: int, data: bytes) -> None:
        """Write a piece, then note it."""
        offset, view = number * PIECE_BYTES, memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written
        digest = xxhash.xxh3_128_hexdigest(data)
        with self.journal_guard, self.journal.open("a") as stream:
            stream.write(f"{number} {digest}\n")
            self.pieces[number] = digest

    def publish(self) -> None:
        """Give the complete file its name."""
        os.fsync(self.descriptor)
        self.path.replace(self.artifact.archive_path)
        sync_directory(self.artifact.directory)
        self.pieces.clear()


def _is_complete(artifact: Artifact, progress: Progress) -> bool:
    """Whether the archive is there already, with the right bytes."""
    path, facts = artifact.archive_path, artifact.manifest.archive
    if not path.is_file() or path.stat().st_size != facts.size:
        return False
    with progress.task(f"check {facts.file}", facts.size) as advance:
        return digest_file(path, advance) == (facts.xxh128, facts.blake3)


def _fetch_archive(partial: _Partial, registry: Registry, progress: Progress) -> None:
    """Bring all pieces here and publish them if they are the archive."""
    facts = partial.manifest.archive
    registry.require_archive(partial.manifest)
    missing = facts.size - sum(partial.extent(number)[1] for number in partial.pieces)
    require_space(partial.artifact.directory, missing, f"fetching {facts.file}")
    with progress.task(f"fetch {facts.file}", facts.size) as advance:
        digests = _receive(partial, registry, advance)
    try:
        require_digests(partial.manifest, digests, f"{facts.file} in {registry.url}")
    except IntegrityError:
        partial.pieces.clear()
        raise
    partial.publish()


def _receive(
    partial: _Partial, registry: Registry, advance: Callable[[int], None]
) -> tuple[str, str]:
    """Read what is missing and return the XXH3-128 and BLAKE3 of the whole, in hex."""

    def obtain(number: int) -> bytes:
        data = partial.stored(number)
        if data is None:
            data = registry.read_archive(partial.manifest, *partial.extent(number))
            partial.keep(number, data)
        return data

    fast, strong = xxhash.xxh3_128(), blake3()
    count = -(-partial.manifest.archive.size // PIECE_BYTES)
    # Closed here, whatever happens: no thread may outlive the file that it writes to.
    with closing(_in_order(obtain, count)) as arriving:
        for data in arriving:
            fast.update(data)
            strong.update(data)
            advance(len(data))
    return fast.hexdigest(), strong.hexdigest()


def _in_order(obtain: Callable[[int], bytes], count: int) -> Generator[bytes, None, None]:
    """Yield `obtain(0)`, `obtain(1)`, … worked out in parallel, a bounded number ahead."""
    waiting: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="fetch")
    try:
        for number in range(count):
            waiting.append(pool.submit(obtain, number))
            if len(waiting) == PIECES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what the local file system refuses into our errors."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {directory}: {error.strerror}"
        hint = "name another directory with -o"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free space there, then fetch again: what has arrived is kept"
        raise HostError(message, hint=hint) from error
