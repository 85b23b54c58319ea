"""Check a whole registry: every finding with its key and its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.artifacts import (
    ARCHIVE_SUFFIX,
    ATTESTATION,
    REGISTRY_MANIFEST,
    SBOM,
    SIGSTORE,
    Proof,
    check_lock,
    check_sbom,
    checksum_line,
    decode_manifest,
    require_digests,
    require_size,
)
from envferry.base.workers import Workers
from envferry.errors import IntegrityError, NotFound, SpecError, UsageError
from envferry.registry.inventory import Folder, list_inventory, require_known
from envferry.registry.layout import ATTACHMENTS, LOCK_FILE, PRUNING, tag_key
from envferry.registry.tags import find_tag
from envferry.stores.port import Incomplete
from envferry.trust.attestations import decode_envelope, verify_attestation, verify_subjects
from envferry.trust.sigstore_bundle import require_sound_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.models import Manifest
    from envferry.progress import Progress
    from envferry.registry.inventory import Inventory
    from envferry.registry.registry import Registry
    from envferry.trust.signed_tags import TagName

CHECKERS = 8
"""Threads: what is small waits for the store, and BLAKE3 lets others work."""
BAD = (IntegrityError, NotFound, SpecError, UsageError)
"""What is wrong with what was read; that a store cannot be reached ends the check instead."""


class CheckFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it must be."""

    severity: Literal["broken", "leftover"]
    """`broken`, or `leftover`: it only takes space."""
    key: str
    what: str
    mend: str
    """What to do about it."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of a registry found."""

    registry: str
    artifacts: int
    tags: int
    read_bytes: int
    """The bytes of archives that were compared."""
    findings: tuple[CheckFinding, ...]
    """By key."""
    deltas: int = 0
    """Those of a disk, where they were checked, too."""

    @property
    def broken(self) -> int:
        """How many findings are faults."""
        return sum(finding.severity == "broken" for finding in self.findings)


def check_registry(
    registry: Registry, name: str | None = None, *, read_bytes: bool, progress: Progress
) -> Report:
    """Compare all that a registry (or one environment of it) holds with what it should hold.

    Of an archive the index is read, as an install does; with `read_bytes` all of it. Signatures are
    checked with the registry's trusted keys, if it has any. Raises StoreError when the store cannot
    be read, NotFound when it has nothing of `name`.
    """
    found = list_inventory(registry, name)
    require_known(found, registry, [name] if name else [])
    size = sum(_archive_size(folder) for folder in found.folders) if read_bytes else None
    label = f"check {registry.url}"
    # Without `read_bytes` the work is requests, not bytes: the task then has no total.
    with progress.task(label, size) as advance, Workers(CHECKERS, "check") as pool:
        checker = _Checker(registry, advance if read_bytes else None)
        findings = [_foreign(listed.key) for listed in found.foreign]
        for some in pool.map(checker.folder, found.folders):
            findings += some
        for some in pool.map(lambda tag: checker.tag(tag, found), found.tags):
            findings += some
    return Report(
        registry=registry.url,
        artifacts=sum(folder.published is not None for folder in found.folders),
        tags=len(found.tags),
        read_bytes=size or 0,
        findings=tuple(sorted(findings, key=lambda finding: finding.key)),
    )


class _Checker(msgspec.Struct, frozen=True):
    """Checks one folder or tag at a time; from any thread."""

    registry: Registry
    advance: Callable[[int], None] | None
    """Gets the bytes of archives that were read; None: they are not read."""

    def folder(self, folder: Folder) -> list[CheckFinding]:
        """Check one artifact."""
        findings = [_foreign(folder.key + name) for name in folder.foreign]
        if folder.is_being_pruned:
            findings.append(_half_pruned(folder))
        if folder.published is None:
            # A removal deletes the manifest first: such a folder is not what a push left behind.
            return [*findings, *([] if folder.is_being_pruned else [_unpublished(folder)])]
        try:
            # As bytes, and not by `described`: signatures are over the bytes that are stored.
            data = self.registry.store.read(folder.key + REGISTRY_MANIFEST)
            manifest = _manifest(folder, data)
        except BAD as error:
            mend = f"remove that file, then {_push(folder)}"
            if isinstance(error, SpecError):  # a later schema is not a fault
                mend = error.hint
            return [*findings, _broken(folder.key + REGISTRY_MANIFEST, error.message, mend)]
        return [*findings, *self._parts(folder, manifest, data)]

    def _parts(self, folder: Folder, manifest: Manifest, data: bytes) -> Iterator[CheckFinding]:
        """Check what a sound manifest binds."""
        facts = manifest.archive
        checks: dict[str, Callable[[], None]] = {
            facts.file: lambda: self._archive(folder, manifest),
            f"{facts.file}.xxh128": lambda: self._checksum(folder, manifest),
            LOCK_FILE: lambda: self._lock(folder, manifest),
            SBOM: lambda: self._sbom(folder),
            ATTESTATION: lambda: self._attestation(folder, manifest, data),
            SIGSTORE: lambda: self._sigstore(folder, manifest, data),
        }
        for name, check in checks.items():
            key = folder.key + name
            if name not in folder.files and name not in ATTACHMENTS:
                what = f"{name} is missing, though its manifest exists"
                yield _broken(key, what, _push(folder))
                continue
            try:
                check()
            except Incomplete as error:
                # Before BAD, which includes it: a value in parts is completed by
                # its own hint, and not removed.
                yield _broken(key, error.message, error.hint)
            except BAD as error:
                mend = f"remove that file, then {_push(folder)}"
                if name == facts.file:
                    mend += "; if that refuses it, pack it again"
                if name == ATTESTATION:
                    mend += "; sign it with --sign-key"
                if name == SIGSTORE:
                    mend += "; sign it with --sigstore"
                yield _broken(key, error.message, mend)

    def _archive(self, folder: Folder, manifest: Manifest) -> None:
        facts = manifest.archive
        what = f"{facts.file} in {self.registry.url}"
        # Of a value in parts, this names those that are missing.
        self.registry.require_archive(manifest)
        require_size(facts.size, folder.files[facts.file].size, what)
        if self.advance:
            require_digests(manifest, self.registry.digest_archive(manifest, self.advance), what)
        # Also without `read_bytes`: the index is what an install believes.
        self.registry.require_installable(manifest)

    def _checksum(self, folder: Folder, manifest: Manifest) -> None:
        name = f"{manifest.archive.file}.xxh128"
        if self.registry.store.read(folder.key + name) != checksum_line(manifest):
            msg = f"{name} holds a different checksum than the manifest"
            raise IntegrityError(msg)

    def _lock(self, folder: Folder, manifest: Manifest) -> None:
        check_lock(manifest, self.registry.store.read(folder.key + LOCK_FILE), LOCK_FILE)

    def _sbom(self, folder: Folder) -> None:
        if SBOM in folder.files:
            check_sbom(self.registry.store.read(folder.key + SBOM), SBOM)

    def _attestation(self, folder: Folder, manifest: Manifest, data: bytes) -> None:
        trust = self.registry.trust
        there = None
        if folder.attested:
            there = self.registry.store.read(folder.key + ATTESTATION)
        if trust and trust.asks_release_keys:
            keys, least = trust.keys_for("release"), trust.least_for("release")
            # Also of None: where keys are asked for, a missing attestation is a finding.
            verify_attestation(manifest, data, there, keys, least=least)
        elif there is not None:
            # Without keys it stays open who signed, but not whether it is about this artifact.
            envelope = decode_envelope(there, f"the attestation of {manifest.stem}")
            verify_subjects(envelope, manifest, data)
            if not envelope.signatures:
                msg = f"the attestation of {manifest.stem} holds no signature"
                raise IntegrityError(msg)

    def _sigstore(self, folder: Folder, manifest: Manifest, data: bytes) -> None:
        trust, there = self.registry.trust, None
        if SIGSTORE in folder.files:
            there = self.registry.store.read(folder.key + SIGSTORE)
        if trust and trust.identities:
            trust.verify_identity(manifest, Proof(manifest_data=data, sigstore=there))
        elif there is not None:
            require_sound_bundle(there, SIGSTORE, manifest, data)

    def tag(self, name: TagName, found: Inventory) -> list[CheckFinding]:
        """Check one tag."""
        key = tag_key(name.name, name.platform, name.tag)
        again = f"point it to an artifact: `envferry tag {name.name}@ID {name.tag}`"
        try:
            record = find_tag(self.registry, key)
            if record and self.registry.trust:
                self.registry.trust.check_tag(name, record, f"the tag {name}")
        except BAD as error:
            return [_broken(key, error.message, again)]
        if record is None:
            # Removed between the listing and this read.
            return []
        target = Folder(name.name, name.platform, record.id)
        # Folders are equal by name, platform and id: `files` takes no part in the comparison.
        if not any(folder == target and folder.published for folder in found.folders):
            what = f"the tag {name} points to {record.id}, which is not published here"
            if any(folder == target for folder in found.folders):
                what += f": {target.key}{REGISTRY_MANIFEST} is missing, other files are there"
            return [_broken(key, what, f"push that artifact again, or {again}")]
        return []


def _manifest(folder: Folder, data: bytes) -> Manifest:
    manifest = decode_manifest(data, REGISTRY_MANIFEST)
    if (manifest.name, manifest.platform, manifest.id) != (folder.name, folder.platform, folder.id):
        msg = f"it describes {manifest.stem}, which belongs in another folder"
        raise IntegrityError(msg)
    return manifest


def _archive_size(folder: Folder) -> int:
    return sum(one.size for name, one in folder.files.items() if name.endswith(ARCHIVE_SUFFIX))


def _push(folder: Folder) -> str:
    file = f"{folder.name}-{folder.platform}-{folder.id}{ARCHIVE_SUFFIX}"
    return f"`envferry push {file}` where it was packed: only what is missing is sent"


def _broken(key: str, what: str, mend: str) -> CheckFinding:
    return CheckFinding(severity="broken", key=key, what=what, mend=mend)


def _foreign(key: str) -> CheckFinding:
    what = "not part of a registry: no command reads it"
    return CheckFinding(
        severity="leftover", key=key, what=what, mend="remove it if you do not need it"
    )


def _unpublished(folder: Folder) -> CheckFinding:
    what = f"{folder} has no manifest: a push was interrupted, or is still running"
    mend = "push it again, or run `envferry prune --delete` when it is a day old"
    return CheckFinding(severity="leftover", key=folder.key, what=what, mend=mend)


def _half_pruned(folder: Folder) -> CheckFinding:
    what = f"the removal of {folder} has begun, but is not complete"
    mend = "`envferry prune --delete` completes it"
    return CheckFinding(severity="leftover", key=folder.key + PRUNING, what=what, mend=mend)
