"""The port to what holds OCI manifests and blobs: a registry, or an image layout on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.stores.oci.documents import Descriptor


class FoundContent(msgspec.Struct, frozen=True):
    """A manifest as it is stored; `data` has the digest."""

    data: bytes
    digest: str


class BlobUpload(Protocol):
    """A blob on its way in, sent from its first byte to its last."""

    @property
    def sent(self) -> int:
        """How many bytes have arrived: what follows is to be written next."""
        ...

    @property
    def token(self) -> str:
        """What a later process gives to `Repositories.upload`, to go on with it."""
        ...

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send pieces that follow each other.

        Raises StoreError when they do not arrive; `sent` then says what has.
        """
        ...

    def finish(self, digest: str, last: bytes = b"") -> None:
        """Send the last bytes and make it a blob.

        Raises IntegrityError when the other side has another digest.
        """
        ...


class Repositories(Protocol):
    """Repositories of manifests and blobs. Each method may be called from several threads.

    All raise StoreError when the space cannot be reached or refuses, IntegrityError where it
    hands out something else than a digest promises.
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def manifest(self, repository: str, reference: str) -> FoundContent | None:
        """Return the manifest of a tag or digest; None when there is none."""
        ...

    def manifest_digest(self, repository: str, tag: str) -> str | None:
        """Return the digest of a tag's manifest, without its bytes; None when there is none."""
        ...

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> bool:
        """Write a manifest under a tag, over what is there.

        Returns whether the space keeps a list of what refers to its subject by itself.
        """
        ...

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest with all tags that name it; nothing happens when there is none."""
        ...

    def tags(self, repository: str) -> Iterator[str]:
        """Yield the tags of a repository; none of one that does not exist."""
        ...

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor] | None:
        """Return what refers to a manifest; None where the space keeps no such list."""
        ...

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a blob is in a repository."""
        ...

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Take a blob over from another repository; return whether that was done."""
        ...

    def read_blob(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        """Return `length` bytes of a blob from `offset`; NotFound when it is not there."""
        ...

    def upload(self, repository: str, resumed: str | None = None) -> BlobUpload:
        """Begin a blob, or go on with one that `BlobUpload.token` named."""
        ...
