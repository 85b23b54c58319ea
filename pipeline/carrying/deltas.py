"""Deltas: what a site that has other artifacts lacks of a new one, and how both make the archive.

    v1/deltas/NAME/PLATFORM/ID/NAME-PLATFORM-ID.delta    the bytes that no base has
    v1/deltas/NAME/PLATFORM/ID/{conda-lock.yml,manifest.json,attestation.json,sbom.cdx.json}
    v1/deltas/NAME/PLATFORM/ID/tags/TAG                  signed records, as they are
    v1/deltas/NAME/PLATFORM/ID/delta.json                written last

Nothing of it is trusted: what comes out must have the BLAKE3 that the manifest says.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

import msgspec
from blake3 import blake3

from pipeline.archive.reader import Archive
from pipeline.artifacts import ATTESTATION, REGISTRY_MANIFEST, SBOM, Proof, decode_manifest
from pipeline.carrying.copying import Companions
from pipeline.errors import IntegrityError, NotFound, TargetOccupied
from pipeline.files import from_json, to_json
from pipeline.known_frames import known_ranges
from pipeline.registry import LOCK_FILE, PublishedArchive
from pipeline.registry.layout import DELTAS, artifact_folder
from pipeline.stores.arriving import Incoming
from pipeline.stores.port import CannotList
from pipeline.stores.split import create_or_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.models import Manifest
    from pipeline.registry import Registry
    from pipeline.stores.port import KnownRange, Store

RECORD = "delta.json"
MOST_RUNS = 10_000_000
Count = Annotated[int, msgspec.Meta(ge=0)]


class Base(msgspec.Struct, frozen=True, order=True):
    """An artifact that the site must have."""

    name: str
    platform: str
    id: str

    @classmethod
    def of(cls, manifest: Manifest) -> Base:
        """Return what names an artifact."""
        return cls(manifest.name, manifest.platform, manifest.id)

    @property
    def folder(self) -> str:
        """Where it is in a registry."""
        return artifact_folder(self.name, self.platform, self.id)

    def __str__(self) -> str:
        return f"{self.name}@{self.id} ({self.platform})"


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of the new archive, and where they are; runs follow each other."""

    length: Count
    base: int
    """The number of the base that has them; -1: the delta file."""
    offset: Count
    """Where in the base's archive, or in the delta file."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """`delta.json`."""

    artifact: Base
    bases: tuple[Base, ...]
    size: Count
    """Bytes of the delta file."""
    blake3: str
    """Of the delta file."""
    runs: tuple[Run, ...]
    schema: int = 1


def delta_folder(artifact: Base) -> str:
    """Return where the delta of an artifact is."""
    artifact_folder(artifact.name, artifact.platform, artifact.id)
    return f"{DELTAS}{artifact.name}/{artifact.platform}/{artifact.id}/"


def delta_key(artifact: Base) -> str:
    """Return the key of a delta file."""
    stem = f"{artifact.name}-{artifact.platform}-{artifact.id}"
    return f"{delta_folder(artifact)}{stem}.delta"


@dataclass(slots=True)
class DeltaPlan:
    """What is to be written of an archive, and what is not."""

    manifest: Manifest
    bases: tuple[Base, ...]
    runs: tuple[Run, ...]
    checks: list[tuple[int, str | None]] = field(default_factory=list)
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
            if run.offset not in there or there[run.offset][1].length < run.length:
                there[run.offset] = (number, run)
    runs: list[Run] = []
    position = delta_offset = 0
    for offset, (number, known) in sorted(there.items(), key=lambda item: item[0]):
        # What begins inside a run of another base is cut.
        start = max(offset, position)
        if known.end <= start:
            continue
        if start > position:
            runs.append(Run(start - position, -1, delta_offset))
            delta_offset += start - position
        part = known.part(start, known.end - start)
        runs.append(Run(part.length, number, part.key_offset))
        position = part.end
    runs.append(Run(manifest.archive.size - position, -1, delta_offset))
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
    yield facts.index_size, facts.index_blake3
    yield facts.size - facts.index_offset - facts.index_size, None


def _frames_in(archive: Archive, start: int, end: int) -> tuple[int, int]:
    return bisect_right(archive.offsets, start) - 1, bisect_right(archive.offsets, end) - 1


def _open(registry: Registry, manifest: Manifest) -> Archive:
    """Open an archive in a registry whose index is the one that its manifest binds."""
    archive = Archive(PublishedArchive(registry, manifest))
    if blake3(archive.index_frame).hexdigest() != manifest.archive.index_blake3:
        message = f"the index of {archive.name} is not the one that its manifest names"
        raise IntegrityError(message, hint="run `envferry check` on that registry")
    return archive


class _FrameCheck:
    """Compares what goes into a delta file, frame by frame, and hashes the whole."""

    def __init__(self, plan: DeltaPlan, what: str) -> None:
        self.whole = blake3()
        self.what = what
        self.expected = iter(plan.checks)
        self.left, self.digest = next(self.expected, (0, None))
        self.frame = blake3()

    def watch(self, data: bytes) -> None:
        """Take the next bytes; raise IntegrityError at the first frame that is not right."""
        self.whole.update(data)
        view = memoryview(data)
        while view:
            taken = min(len(view), self.left)
            self.frame.update(view[:taken])
            view, self.left = view[taken:], self.left - taken
            if self.left:
                return
            if self.digest is not None and self.frame.hexdigest() != self.digest:
                message = f"{self.what} is damaged: the BLAKE3 of a frame is wrong"
                raise IntegrityError(message, hint="run `envferry check` where it comes from")
            self.left, self.digest = next(self.expected, (len(view), None))
            self.frame = blake3()


def write_delta(
    source: Registry, target: Store, plan: DeltaPlan, advance: Callable[[int], None]
) -> None:
    """Write the delta file, every frame checked, then what belongs to it, then its record."""
    artifact = Base.of(plan.manifest)
    folder, what = delta_folder(artifact), f"{plan.manifest.archive.file} in {source.url}"
    _require_same_bases(target, folder, plan)
    literal = _Pieces.of(plan.runs, only_base=-1)
    check = _FrameCheck(plan, what)

    def read_at(offset: int, length: int) -> bytes:
        return literal.read(
            offset, length, lambda _, at, count: source.read_archive(plan.manifest, at, count)
        )

    token = blake3(to_json([plan.manifest.archive.blake3, plan.runs])).hexdigest()
    incoming = Incoming(
        name=what, size=plan.size, token=token, read_at=read_at, digests=None, watch=check.watch
    )
    create_or_read(target, delta_key(artifact), incoming, advance)
    companions = Companions.of(source, plan.manifest)
    files = {
        LOCK_FILE: companions.lock,
        REGISTRY_MANIFEST: companions.proof.manifest_data,
        ATTESTATION: companions.proof.attestation,
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
            target.replace(folder + name, data, stat.version if stat else None)


def _require_same_bases(target: Store, folder: str, plan: DeltaPlan) -> None:
    if target.stat(folder + RECORD) is None:
        return
    record = from_json(target.read(folder + RECORD), Delta, f"{folder}{RECORD} in {target.url}")
    if record.runs != plan.runs or record.bases != plan.bases:
        bases = ", ".join(str(base) for base in record.bases)
        message = f"{target.url} holds a delta of {plan.manifest.stem} already, since {bases}"
        raise TargetOccupied(message, hint="export to another folder, or remove that one")


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Runs as one sequence of bytes that can be read anywhere."""

    starts: list[int]
    places: list[tuple[int, int, int]]
    """Base, offset there, length."""

    @classmethod
    def of(cls, runs: Sequence[Run], only_base: int | None = None) -> _Pieces:
        """Return all runs; or those that are in the delta file, by where the archive has them."""
        places, position = [], 0
        for run in runs:
            if only_base is None:
                places.append((run.base, run.offset, run.length))
            elif run.base == only_base:
                places.append((run.base, position, run.length))
            position += run.length
        starts = [0, *accumulate(length for _, _, length in places)]
        return cls(starts, places)

    def read(self, offset: int, length: int, read_at: Callable[[int, int, int], bytes]) -> bytes:
        """Return bytes from the pieces that hold them; `read_at` takes base, offset, length."""
        pieces = []
        number = bisect_right(self.starts, offset) - 1
        end = offset + length
        while offset < end:
            base, start, size = self.places[number]
            inside = offset - self.starts[number]
            count = min(size - inside, end - offset)
            if count:
                pieces.append(read_at(base, start + inside, count))
            offset += count
            number += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclass(frozen=True, slots=True)
class OpenDelta:
    """A delta in a registry folder, its manifest read and its record checked."""

    source: Registry
    record: Delta
    manifest: Manifest
    companions: Companions

    def rebuild(self, site: Registry) -> Callable[[int, int], bytes]:
        """Return what reads the new archive out of the bases at a site and the delta."""
        bases = [site.described(base.name, base.platform, base.id) for base in self.record.bases]
        pieces, key = _Pieces.of(self.record.runs), delta_key(self.record.artifact)

        def read_piece(base: int, offset: int, length: int) -> bytes:
            if base < 0:
                return self.source.store.read(key, offset, length)
            return site.read_archive(bases[base], offset, length)

        return lambda offset, length: pieces.read(offset, length, read_piece)

    def is_sound(self) -> bool:
        """Whether the delta file is the one that was written."""
        key, size, digest = delta_key(self.record.artifact), self.record.size, blake3()
        for offset in range(0, size, 8 << 20):
            digest.update(self.source.store.read(key, offset, min(8 << 20, size - offset)))
        return digest.hexdigest() == self.record.blake3


def find_deltas(source: Registry) -> list[OpenDelta]:
    """Open all deltas of a registry folder; signatures are checked if it has trusted keys."""
    try:
        keys = sorted(listed.key for listed in source.store.list(DELTAS))
    except CannotList as error:
        message = f"{source.url} is a web server: deltas are applied from a directory"
        raise NotFound(message, hint="copy the folder here first") from error
    return [read_delta(source, key) for key in keys if key.endswith(f"/{RECORD}")]


def read_delta(source: Registry, key: str) -> OpenDelta:
    """Open a delta by the key of its record; raise IntegrityError unless all fits together."""
    what = f"{key} in {source.url}"
    record, store = from_json(source.store.read(key), Delta, what), source.store
    folder = delta_folder(record.artifact)
    _require_sound(record, key, folder, what)
    data = store.read(folder + REGISTRY_MANIFEST)
    manifest = decode_manifest(data, f"{folder}{REGISTRY_MANIFEST} in {source.url}")
    total = sum(run.length for run in record.runs)
    if Base.of(manifest) != record.artifact or total != manifest.archive.size:
        message = f"{what} is damaged: it is not about {manifest.stem}"
        raise IntegrityError(message, hint="export or copy it again")
    proof = Proof(manifest_data=data, attestation=_optional(store, folder + ATTESTATION))
    if source.trust:
        source.trust.check_artifact(manifest, data, proof.attestation)
    lock = store.read(folder + LOCK_FILE)
    companions = Companions(lock=lock, proof=proof, sbom=_optional(store, folder + SBOM))
    companions.require_sound(manifest, folder, source.url)
    return OpenDelta(source, record, manifest, companions)


def _require_sound(record: Delta, key: str, folder: str, what: str) -> None:
    """Raise IntegrityError for a record that names what cannot be."""
    runs, count = record.runs, len(record.bases)
    inside = all(run.base >= 0 or run.offset + run.length <= record.size for run in runs)
    known = all(-1 <= run.base < count for run in runs)
    if key != folder + RECORD or len(runs) > MOST_RUNS or not inside or not known:
        message = f"{what} is damaged: its runs or names do not add up"
        raise IntegrityError(message, hint="export or copy it again")


def _optional(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except NotFound:
        return None
