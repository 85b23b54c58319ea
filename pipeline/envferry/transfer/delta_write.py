"""What an archive has and its bases have not, found by their indexes, and written."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive
from envferry.artifacts import ATTESTATION, REGISTRY_MANIFEST, SBOM, SIGSTORE
from envferry.base.json import from_json, to_json
from envferry.errors import IntegrityError, TargetOccupied
from envferry.registry import LOCK_FILE, PublishedArchive
from envferry.registry.known_frames import known_ranges
from envferry.registry.publish import Companions
from envferry.stores.receive import create_or_read
from envferry.stores.source import ContentSource
from envferry.transfer.deltas import RECORD, Base, ByteRun, Delta, Pieces, delta_folder, delta_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.stores.port import KnownRange, Store
    from envferry.stores.source import Piece


class DeltaPlan(msgspec.Struct):
    """What is to be written of an archive, and what is not."""

    manifest: Manifest
    bases: tuple[Base, ...]
    runs: tuple[ByteRun, ...]
    checks: list[tuple[int, str | None]] = msgspec.field(default_factory=list)
    """Length and BLAKE3 of what follows each other in the delta file; None: not known alone."""

    @property
    def size(self) -> int:
        """The bytes of the delta file."""
        return sum(run.length for run in self.runs if run.base < 0)


def plan_delta(source: Registry, manifest: Manifest, bases: Sequence[Manifest]) -> DeltaPlan:
    """Compare the indexes of an archive and of its bases; no frame is read."""
    ours = _open(source, manifest)
    there: dict[int, tuple[int, KnownRange]] = {}
    for number, base in enumerate(bases):
        for run in known_ranges(ours, _open(source, base), ""):
            # Of two bases that have the same bytes the longer run counts:
            # fewer pieces to put together.
            if run.offset not in there or there[run.offset][1].length < run.length:
                there[run.offset] = (number, run)
    runs: list[ByteRun] = []
    position = delta_offset = 0
    for offset, (number, known) in sorted(there.items(), key=lambda item: item[0]):
        # What begins inside a run of another base is cut.
        start = max(offset, position)
        if known.end <= start:
            continue
        if start > position:
            runs.append(ByteRun(start - position, -1, delta_offset))
            delta_offset += start - position
        part = known.part(start, known.end - start)
        runs.append(ByteRun(part.length, number, part.key_offset))
        position = part.end
    # Always something: index and seek table end each archive, and no base has them.
    runs.append(ByteRun(manifest.archive.size - position, -1, delta_offset))
    plan = DeltaPlan(manifest, tuple(Base.of(base) for base in bases), tuple(runs))
    plan.checks = list(_checks(ours, plan))
    return plan


def _checks(archive: Archive, plan: DeltaPlan) -> Iterator[tuple[int, str | None]]:
    """Yield what the delta file holds, frame by frame; then index and seek table."""
    facts = plan.manifest.archive
    copied: set[int] = set()
    position = 0
    for run in plan.runs:
        if run.base >= 0:
            copied.update(range(*_frames_in(archive, position, position + run.length)))
        position += run.length
    for number, frame in enumerate(archive.index.frames):
        if number not in copied:
            yield frame.size, frame.blake3
    # No base has them: index and seek table differ with every archive.
    yield facts.index_size, facts.index_blake3
    yield facts.size - facts.index_offset - facts.index_size, None


def _frames_in(archive: Archive, start: int, end: int) -> tuple[int, int]:
    return bisect_right(archive.offsets, start) - 1, bisect_right(archive.offsets, end) - 1


def _open(registry: Registry, manifest: Manifest) -> Archive:
    """Open an archive in a registry that is the one that its manifest describes."""
    archive = Archive(PublishedArchive(registry, manifest))
    check_manifest(archive, manifest)
    return archive


class _FrameCheck:
    """Compares what goes into a delta file, frame by frame, and hashes the whole."""

    def __init__(self, plan: DeltaPlan, what: str) -> None:
        self.whole = blake3()
        self.what = what
        self.expected = iter(plan.checks)
        self.left, self.digest = next(self.expected, (0, None))
        self.frame = blake3()

    def watch(self, data: Piece) -> None:
        """Take the next bytes; raise IntegrityError at the first frame that is not right."""
        self.whole.update(data)
        view = memoryview(data)
        while view:
            # A piece may end within a frame, and hold the ends of several.
            taken = min(len(view), self.left)
            self.frame.update(view[:taken])
            view, self.left = view[taken:], self.left - taken
            if self.left:
                return
            if self.digest is not None and self.frame.hexdigest() != self.digest:
                message = f"{self.what} is damaged: the BLAKE3 of a frame is wrong"
                raise IntegrityError(
                    message, hint="run `envferry check` on the registry it comes from"
                )
            self.left, self.digest = next(self.expected, (len(view), None))
            self.frame = blake3()


def write_delta(
    source: Registry, target: Store, plan: DeltaPlan, advance: Callable[[int], None]
) -> None:
    """Write the delta file, every frame checked, then what belongs to it, then its record."""
    artifact = Base.of(plan.manifest)
    folder, what = delta_folder(artifact), f"{plan.manifest.archive.file} in {source.url}"
    # Other bases make another delta file under the same key.
    _require_same_bases(target, folder, plan)
    literal = Pieces.of(plan.runs, only_base=-1)
    check = _FrameCheck(plan, what)

    def read_at(offset: int, length: int) -> bytes:
        return literal.read(
            offset, length, lambda _, at, count: source.read_archive(plan.manifest, at, count)
        )

    # The runs belong to it: an interrupted export is only resumed with the same bases.
    token = blake3(to_json([plan.manifest.archive.blake3, plan.runs])).hexdigest()
    content = ContentSource(
        name=what, size=plan.size, token=token, read_at=read_at, digests=None, watch=check.watch
    )
    # The large file first, `delta.json` last: without the record, there is no delta.
    create_or_read(target, delta_key(artifact), content, advance)
    companions = Companions.of(source, plan.manifest)
    files = {
        LOCK_FILE: companions.lock,
        REGISTRY_MANIFEST: companions.proof.manifest_data,
        ATTESTATION: companions.proof.attestation,
        SIGSTORE: companions.proof.sigstore,
        SBOM: companions.sbom,
        RECORD: to_json(
            Delta(
                artifact=artifact,
                bases=plan.bases,
                size=plan.size,
                blake3=check.whole.hexdigest(),
                runs=plan.runs,
            )
        ),
    }
    for name, data in files.items():
        if data is not None:
            stat = target.stat(folder + name)
            # Over what an interrupted export left; unlike a registry's, these files may change.
            target.replace(folder + name, data, stat.version if stat else None)


def _require_same_bases(target: Store, folder: str, plan: DeltaPlan) -> None:
    if target.stat(folder + RECORD) is None:
        return
    record = from_json(target.read(folder + RECORD), Delta, f"{folder}{RECORD} in {target.url}")
    if record.runs != plan.runs or record.bases != plan.bases:
        bases = ", ".join(str(base) for base in record.bases)
        message = f"{target.url} holds a delta of {plan.manifest.stem} already, since {bases}"
        raise TargetOccupied(message, hint="export to another folder, or remove that one")
