"""Deltas in a registry folder, and the archives that they and their bases make."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.artifacts import (
    ATTESTATION,
    REGISTRY_MANIFEST,
    SBOM,
    SIGSTORE,
    Proof,
    decode_manifest,
)
from envferry.base.json import from_json
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.registry import LOCK_FILE
from envferry.registry.layout import DELTAS, archive_key
from envferry.registry.publish import Companions
from envferry.stores.local import reader_into
from envferry.stores.port import CannotList
from envferry.stores.source import ContentSource
from envferry.transfer.copy import WRONG
from envferry.transfer.deltas import RECORD, Base, Delta, Pieces, delta_folder, delta_key

if TYPE_CHECKING:
    from envferry.errors import PipelineError
    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.stores.port import Store

MOST_RUNS = 10_000_000


class OpenDelta(msgspec.Struct, frozen=True):
    """A delta in a registry folder, its manifest read and its record checked."""

    source: Registry
    record: Delta
    manifest: Manifest
    companions: Companions

    def rebuilt(self, site: Registry) -> ContentSource:
        """Return the new archive as it is read out of the bases at a site and the delta."""
        facts, key = self.manifest.archive, delta_key(self.record.artifact)
        # Bases are not verified: whatever they hold, the result must have the manifest's digests.
        bases = [site.described(base.name, base.platform, base.id) for base in self.record.bases]
        # The delta file is number -1: the last one.
        files = [*((site.store, archive_key(base)) for base in bases), (self.source.store, key)]
        readers = [partial(store.read, key) for store, key in files]
        fillers = [reader_into(store, key) for store, key in files]
        pieces, named = Pieces.of(self.record.runs), ", ".join(map(str, self.record.bases))

        def read_at(offset: int, length: int) -> bytes:
            return pieces.read(offset, length, lambda base, at, count: readers[base](at, count))

        def read_into(offset: int, memory: memoryview) -> None:
            for base, start, count in pieces.places_of(offset, len(memory)):
                if fill := fillers[base]:
                    fill(start, memory[:count])
                memory = memory[count:]

        return ContentSource(
            name=f"{facts.file}, rebuilt from {named} and {self.source.url},",
            size=facts.size,
            token=facts.blake3,
            read_at=read_at,
            # Into memory directly only where every store can: a run may be in any of them.
            read_into=read_into if all(fillers) else None,
            digests=(facts.xxh128, facts.blake3),
        )

    def require_file(self) -> None:
        """Raise IntegrityError unless the delta file is there in its full length."""
        key = delta_key(self.record.artifact)
        stat = self.source.store.stat(key)
        if stat is None or stat.size != self.record.size:
            size, url = stat.size if stat else 0, self.source.url
            message = f"{key} in {url} has {size} bytes, {self.record.size} are expected"
            raise IntegrityError(message, hint="export or copy it again")

    def is_sound(self) -> bool:
        """Whether the delta file is the one that was written."""
        key, size, digest = delta_key(self.record.artifact), self.record.size, blake3()
        for offset in range(0, size, 8 << 20):
            digest.update(self.source.store.read(key, offset, min(8 << 20, size - offset)))
        return digest.hexdigest() == self.record.blake3


def find_deltas(source: Registry, faults: dict[str, PipelineError]) -> list[OpenDelta]:
    """Open all deltas of a registry folder; signatures are checked if it has trusted keys.

    What is wrong with one is noted in `faults`, by NAME-PLATFORM-ID.
    """
    try:
        keys = sorted(listed.key for listed in source.store.list(DELTAS))
    except CannotList as error:
        message = f"{source.url} is a web server: deltas are applied from a directory"
        raise NotFound(message, hint="copy the folder here first") from error
    found = []
    for key in keys:
        if key.endswith(f"/{RECORD}"):
            try:
                found.append(read_delta(source, key))
            except WRONG as error:
                faults["-".join(key.split("/")[2:5])] = error
    return found


def read_delta(source: Registry, key: str) -> OpenDelta:
    """Open a delta by the key of its record; raise IntegrityError unless all fits together."""
    what = f"{key} in {source.url}"
    record, store = from_json(source.store.read(key), Delta, what), source.store
    # Before anything it names is read: a disk is not trusted.
    _require_sound(record, key, what)
    folder = delta_folder(record.artifact)
    data = store.read(folder + REGISTRY_MANIFEST)
    manifest = decode_manifest(data, f"{folder}{REGISTRY_MANIFEST} in {source.url}")
    total = sum(run.length for run in record.runs)
    # The record is unsigned: only what the manifest says counts.
    if Base.of(manifest) != record.artifact or total != manifest.archive.size:
        message = f"{what} is damaged: it does not describe {manifest.stem}"
        raise IntegrityError(message, hint="export or copy it again")
    proof = Proof(
        manifest_data=data,
        attestation=_optional(store, folder + ATTESTATION),
        sigstore=_optional(store, folder + SIGSTORE),
    )
    if source.trust:
        source.trust.check_artifact(manifest, proof)
    lock = store.read(folder + LOCK_FILE)
    companions = Companions(lock=lock, proof=proof, sbom=_optional(store, folder + SBOM))
    # Before it is published: what enters a registry damaged stays there.
    companions.require_sound(manifest, f"in {folder} in {source.url}")
    return OpenDelta(source, record, manifest, companions)


def _require_sound(record: Delta, key: str, what: str) -> None:
    """Raise IntegrityError for a record that names what cannot be."""
    try:
        folder, *_ = map(delta_folder, (record.artifact, *record.bases))
    except UsageError as error:
        message = f"{what} is damaged: {error.message}"
        raise IntegrityError(message, hint="export or copy it again") from error
    runs, count = record.runs, len(record.bases)
    # Runs in bases are not compared with their sizes: the digests of the result decide.
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
