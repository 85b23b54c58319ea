"""An OCI image layout on a disk: what `skopeo copy oci:DIR:NAME:TAG` reads.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md. `index.json` lists what
people name, NAME:TAG; some tools take a layout only if it lists one image. So what only envferry
reads is listed in a blob of its own, whose digest is an annotation of `index.json`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import (
    open_in_folder,
    sync_directory,
    write_bytes,
)
from envferry.base.json import decode_json
from envferry.errors import HostError, IntegrityError, StoreError
from envferry.stores.oci.blob_upload import UploadGone
from envferry.stores.oci.documents import (
    INDEX,
    MANIFEST,
    REF_NAME,
    Descriptor,
    ImageIndex,
    ImageManifest,
    describe,
    digest_of,
    encode,
    not_ours,
    read_index,
)
from envferry.stores.oci.key_tags import IMAGE_TAG, INTERNAL, REFERRERS_TAG, RUNNABLE_TAG
from envferry.stores.oci.port import FoundContent
from envferry.stores.port import Incomplete

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LAYOUT_FILE, INDEX_FILE, BLOBS = "oci-layout", "index.json", "blobs"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
REFERENCES = "vnd.envferry.references"
"""Annotation of `index.json`: the digest of the blob that lists all else."""
ROOT = "envs"
"""The repository that all others are below; not written anywhere."""
HINT = "export or copy it again"
LOCK_FILE = ".lock"


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tag that only envferry reads."""

    tag: str
    """REPOSITORY:TAG."""
    manifest: Descriptor
    subject: str = ""
    """The digest of what it refers to."""


class References(msgspec.Struct, frozen=True):
    """All of them."""

    references: tuple[Reference, ...] = ()
    schema: int = 1


class LayoutRepositories(msgspec.Struct, frozen=True):
    """A `Repositories` in a directory."""

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> LayoutRepositories:
        """Make a directory an image layout, unless it is one."""
        space = cls(directory)
        if not (directory / LAYOUT_FILE).exists():
            with space._explained():
                (directory / BLOBS / "sha256").mkdir(parents=True, exist_ok=True)
                write_bytes(directory / INDEX_FILE, _index((), None), mode=None)
                # Last: a folder with this file is opened as a layout, which has an index.
                write_bytes(directory / LAYOUT_FILE, LAYOUT, mode=None)
        return space

    @property
    def name(self) -> str:
        """The path."""
        return str(self.directory)

    def require_ours(self) -> None:
        """Raise IntegrityError for a layout with images that envferry has not put there."""
        index = self._index()
        if REFERENCES not in (index.annotations or {}) and index.manifests:
            one = index.manifests[0]
            what = f"{(one.annotations or {}).get(REF_NAME, one.digest)} in {self.directory}"
            error = not_ours(one.artifact_type or one.media_type, what)
            error.hint = "only `envferry export REF DIR --oci` and `mirror` write what it reads"
            raise error

    def manifest(self, repository: str, reference: str) -> FoundContent | None:
        """Return a manifest, compared with its digest."""
        if ":" in reference:
            data = self._blob(reference)
            return self._compared(reference, data) if data is not None else None
        missing = None
        while (digest := self.manifest_digest(repository, reference)) is not None:
            data = self._blob(digest)
            if data is not None:
                return self._compared(digest, data)
            if digest == missing:
                raise self._missing(digest, f"{_name(repository)}:{reference}")
            missing = digest  # perhaps another process has just replaced it
        return None

    def _compared(self, digest: str, data: bytes) -> FoundContent:
        self._require_digest(digest, data)
        return FoundContent(data, digest)

    def manifest_digest(self, repository: str, tag: str) -> str | None:
        """Return the digest that a tag has in one of the two lists."""
        wanted = f"{_name(repository)}:{tag}"
        found = self._listed().get(wanted)
        return found.manifest.digest if found else None

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> bool:
        """Write a manifest and list its tag; what refers to what is listed with it."""
        described = describe(data, media_type)
        subject = ""
        if media_type == MANIFEST:
            manifest = decode_json(data, ImageManifest)
            subject = manifest.subject.digest if manifest.subject else ""
        with self._explained(), self._locked():
            # The blob, then the list that names it, then what nothing
            # names any more: readers take no lock.
            self._put_blob(described.digest, data)
            listed = self._listed()
            name = f"{_name(repository)}:{tag}"
            before = listed.get(name)
            listed[name] = Reference(tag=name, manifest=described, subject=subject)
            self._list(listed)
            if before and before.manifest.digest != described.digest:
                self._collect(before.manifest.digest, listed)
        return True

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove the tags of a manifest, and the blobs that nothing needs any more."""
        prefix = f"{_name(repository)}:"
        with self._explained(), self._locked():
            listed = self._listed()
            kept = {
                name: one
                for name, one in listed.items()
                if one.manifest.digest != digest or not name.startswith(prefix)
            }
            if len(kept) == len(listed):
                return
            self._list(kept)
            self._collect(digest, kept)

    def _collect(self, digest: str, kept: dict[str, Reference]) -> None:
        """Remove the blobs of a manifest that has no tag any more, but for what others have."""
        needed = self._reachable(one.manifest.digest for one in kept.values())
        for one in self._reachable((digest,)) - needed:
            self._blob_path(one).unlink(missing_ok=True)

    def tags(self, repository: str) -> Iterator[str]:
        """Yield the tags of both lists."""
        prefix = f"{_name(repository)}:"
        found = [name.removeprefix(prefix) for name in self._listed() if name.startswith(prefix)]
        return iter(found)

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor] | None:
        """Return what was listed as referring to a manifest."""
        prefix = f"{_name(repository)}:"
        return tuple(
            one.manifest
            for name, one in self._listed().items()
            if one.subject == digest and name.startswith(prefix)
        )

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the file is there; all repositories share it."""
        return self._blob_path(digest).is_file()

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Do nothing: blobs are shared."""
        return self.has_blob(repository, digest)

    def read_blob(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        """Return a part of a file, or all of it compared with its digest."""
        with self._explained():
            try:
                with self._blob_path(blob.digest).open("rb") as stream:
                    size = os.fstat(stream.fileno()).st_size
                    data = os.pread(stream.fileno(), length, offset) if size == blob.size else b""
            except FileNotFoundError:
                raise self._missing(blob.digest, "a manifest") from None
        if size != blob.size:
            message = (
                f"{blob.digest} in {self.directory} has {size} bytes, {blob.size} are expected"
            )
            raise Incomplete(message, hint=HINT)
        if length == blob.size:
            self._require_digest(blob.digest, data)
        return data

    def _require_digest(self, digest: str, data: bytes) -> None:
        if digest_of(data) != digest:
            message = f"{digest} in {self.directory} is damaged: it is {digest_of(data)}"
            raise IntegrityError(message, hint=HINT)

    def upload(self, repository: str, resumed: str | None = None) -> LayoutUpload:
        """Begin a blob, or go on with one."""
        name = resumed or f".upload-{os.urandom(8).hex()}"
        upload = LayoutUpload(self, self.directory / BLOBS / "sha256" / name.rpartition("/")[2])
        with self._explained():
            if resumed and not upload.path.is_file():
                message = f"{upload.path} is gone"
                raise UploadGone(message, hint="run the command again")
            upload.sent = upload.path.stat().st_size if resumed else 0
        return upload

    def _index(self) -> ImageIndex:
        try:
            data = (self.directory / INDEX_FILE).read_bytes()
        except OSError as error:
            message = f"cannot read {self.directory / INDEX_FILE}: {error.strerror}"
            raise IntegrityError(message, hint=HINT) from error
        return read_index(data, str(self.directory / INDEX_FILE))

    def _listed(self) -> dict[str, Reference]:
        """Return all tags, those that people name first."""
        index, references = self._read_lists()
        named = ((one, (one.annotations or {}).get(REF_NAME)) for one in index.manifests)
        found = {name: Reference(tag=name, manifest=one) for one, name in named if name}
        return found | {one.tag: one for one in references}

    def _read_lists(self) -> tuple[ImageIndex, tuple[Reference, ...]]:
        """Return both lists, as they were at one moment: another process may write new ones."""
        missing = None
        while digest := ((index := self._index()).annotations or {}).get(REFERENCES):
            data = self._blob(digest)
            if data is not None:
                self._require_digest(digest, data)
                try:
                    return index, decode_json(data, References).references
                except msgspec.MsgspecError as error:
                    message = f"{digest} in {self.directory} is damaged: {error}"
                    raise IntegrityError(message, hint=HINT) from error
            if digest == missing:
                raise self._missing(digest, INDEX_FILE)
            missing = digest
        return index, ()

    def _list(self, listed: dict[str, Reference]) -> None:
        """Write both lists; the old blob of the second one goes."""
        before = (self._index().annotations or {}).get(REFERENCES)
        ours = sorted((one for one in listed.values() if _is_internal(one.tag)), key=_by_tag)
        data = encode(References(references=tuple(ours)))
        # In this order, for readers take no lock: the new blob,
        # the index that names it, the old blob away.
        self._put_blob(digest_of(data), data)
        named = sorted((one for one in listed.values() if not _is_internal(one.tag)), key=_by_tag)
        shown = tuple(
            msgspec.structs.replace(one.manifest, annotations={REF_NAME: one.tag}) for one in named
        )
        write_bytes(self.directory / INDEX_FILE, _index(shown, digest_of(data)), mode=None)
        if before and before != digest_of(data):
            self._blob_path(before).unlink(missing_ok=True)

    def _reachable(self, digests: Iterator[str] | tuple[str, ...]) -> set[str]:
        """Return the digests of manifests, and of all that they are made of."""
        found: set[str] = set()
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest in found:
                continue
            found.add(digest)
            # An index is skipped: the images in it have tags of their own.
            with suppress(msgspec.MsgspecError):
                manifest = decode_json(self._blob(digest) or b"", ImageManifest)
                found |= {manifest.config.digest, *(one.digest for one in manifest.layers)}
        return found

    def _blob_path(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or len(name) != 64 or set(name) - set("0123456789abcdef"):
            message = f"{self.directory} names {digest[:80]!r}, which is not a digest"
            raise IntegrityError(message, hint=HINT)
        return self.directory / BLOBS / algorithm / name

    def _blob(self, digest: str) -> bytes | None:
        """Read a small blob; None when it is not there."""
        with self._explained():
            try:
                return self._blob_path(digest).read_bytes()
            except FileNotFoundError:
                return None

    def _put_blob(self, digest: str, data: bytes) -> None:
        path = self._blob_path(digest)
        # Its name is its digest: what is there has the same bytes.
        if not path.exists():
            write_bytes(path, data, mode=None)

    def _missing(self, digest: str, what: str) -> IntegrityError:
        message = f"{digest} is not in {self.directory}, though {what} names it"
        return Incomplete(message, hint=HINT)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Change the lists alone: a lock of one's own descriptor keeps threads away, too."""
        with open_in_folder(self.directory / LOCK_FILE, "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the file system refuses into our errors."""
        try:
            yield
        except OSError as error:
            message = f"cannot use {self.directory}: {error.strerror}"
            raise StoreError(
                message, hint="check that this user can read and write there"
            ) from error


class LayoutUpload(msgspec.Struct):
    """A blob that is being written, beside its place."""

    space: LayoutRepositories
    path: Path
    sent: int = 0

    @property
    def token(self) -> str:
        """The file's name."""
        return self.path.name

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append bytes."""
        with self._explained(), open_in_folder(self.path, "ab") as stream:
            # An earlier write may have failed half way.
            stream.truncate(self.sent)
            stream.writelines(pieces)
        self.sent += sum(map(len, pieces))

    def finish(self, digest: str, last: bytes = b"") -> None:
        """Give the file its name; who sent the bytes has hashed them."""
        if last:
            self.write([last])
        with self._explained(), open_in_folder(self.path, "ab") as stream:
            # Before it has its name: what lies under a digest counts as a blob, unread.
            os.fsync(stream.fileno())
            self.path.replace(self.space._blob_path(digest))
        sync_directory(self.path.parent)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write to {self.space.directory}: {error.strerror}"
            raise HostError(message, hint="free space there, or name another folder") from error


def _index(manifests: tuple[Descriptor, ...], references: str | None) -> bytes:
    annotations = {REFERENCES: references} if references else None
    return encode(
        ImageIndex(schema_version=2, media_type=INDEX, manifests=manifests, annotations=annotations)
    )


def _name(repository: str) -> str:
    """Return what a repository is called in a layout."""
    return repository.removeprefix(ROOT).removeprefix("/")


def _by_tag(one: Reference) -> str:
    return one.tag


def _is_internal(name: str) -> bool:
    """Whether a tag is for envferry only: people name tags."""
    tag = name.rpartition(":")[2]
    return any(kind.fullmatch(tag) for kind in (INTERNAL, IMAGE_TAG, REFERRERS_TAG, RUNNABLE_TAG))
