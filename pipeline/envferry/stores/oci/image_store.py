"""A registry of OCI images as a `Store`, and the images in it for other tools.

Each key is a tag of a small manifest of its own, whose layers are the value: that is all that this
store reads. What other tools look at is made beside it and never read back: the image of an
archive, the index of a tag, and who refers to what (docs/format.md).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

import msgspec

from envferry.base.limits import USUAL_LIMITS, Limits, require_sane
from envferry.base.loopback import is_loopback
from envferry.errors import NotFound, StoreError, UsageError
from envferry.stores.oci.client import RegistryClient
from envferry.stores.oci.documents import (
    BYTES,
    LAYER,
)
from envferry.stores.oci.image_layout import ROOT, LayoutRepositories
from envferry.stores.oci.key_tags import (
    ENVIRONMENT_PREFIX,
    REPOSITORY,
    Names,
    Place,
    archive_beside,
    archive_name,
    environment_of,
    tag_name,
)
from envferry.stores.oci.layer_sending import LayerSender, ReusedLayers
from envferry.stores.oci.registry_session import NotOfferedByRegistry
from envferry.stores.oci.sending import SentBlob, send_blob
from envferry.stores.oci.stored_values import StoredValue, StoredValues
from envferry.stores.oci.value_writing import ATTESTATION, ValueWriter
from envferry.stores.oci.views import Views
from envferry.stores.port import (
    Incomplete,
    KeyTaken,
    Listed,
    LostRace,
    Stat,
    check_key,
    check_prefix,
    ignore,
)
from envferry.stores.receive import content_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.stores.oci.port import Repositories
    from envferry.stores.port import KnownRange, SystemImage
    from envferry.stores.source import ContentSource

log = logging.getLogger(__name__)

SCHEMES = {"oci+http": "http", "oci+https": "https"}
"""For a registry without TLS, where the user says so; and for one with TLS on this machine."""


class _ArchiveCache(msgspec.Struct):
    """Answers that stay valid."""

    archives: dict[str, StoredValue] = msgspec.field(default_factory=dict)
    """Those that are read piece by piece; values are written once."""


@dataclass(frozen=True, slots=True)
class OciStore:
    """A `Store` in the repositories below a path.

    Registries have no conditions on writes: of several writers of a key one wins, but that both
    believe they did is possible. Each write is looked at again afterwards (docs/security.md).
    """

    compares_while_sending: ClassVar[bool] = True
    """Registries hash what arrives."""
    disk: ClassVar[None] = None
    """Values cannot be read in place."""

    space: Repositories
    names: Names
    url: str
    """What it was opened with."""
    place: str
    """What tells it from all other stores."""
    cuts: tuple[int, ...] = ()
    """Where the layers after the first one begin in archives that are written."""
    values: StoredValues = field(init=False, repr=False, compare=False)
    views: Views = field(init=False, repr=False, compare=False)
    writer: ValueWriter = field(init=False, repr=False, compare=False)
    known: _ArchiveCache = field(default_factory=_ArchiveCache, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the images up to date with the keys."""
        # The dataclass is frozen; these three follow from its fields.
        object.__setattr__(self, "values", StoredValues(self.space, self.names))
        object.__setattr__(self, "views", Views(self.space, self.names))
        object.__setattr__(self, "writer", ValueWriter(self.space, self.names, self.views))

    @classmethod
    def open(cls, url: str, limits: Limits = USUAL_LIMITS) -> OciStore:
        """Open `oci://HOST[:PORT]/REPOSITORY`: by https, on this machine by http.

        `oci+http` and `oci+https` say which of the two.
        """
        parts = urlsplit(url)
        root = parts.path.strip("/")
        try:
            port = parts.port
        except ValueError as error:
            message = f"{parts.netloc} is not of the form HOST:PORT"
            raise UsageError(message, hint="write oci://HOST:PORT/REPOSITORY") from error
        if not parts.hostname or not root:
            message = f"{url} names no {'repository' if parts.hostname else 'host'}"
            raise UsageError(message, hint="write oci://HOST[:PORT]/REPOSITORY")
        if not REPOSITORY.fullmatch(root):
            message = f"{root!r} cannot be the name of a repository"
            raise UsageError(message, hint="lower-case letters, digits, `.`, `_`, `-` and `/` only")
        usual = "http" if is_loopback(parts.hostname) else "https"
        # urlsplit takes the brackets off an IPv6 address.
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        netloc = f"{host}:{port}" if port else host
        client = RegistryClient.of(f"{SCHEMES.get(parts.scheme, usual)}://{netloc}", limits)
        place = f"{netloc}/{root}"
        return cls(client, Names(root), f"{parts.scheme}://{place}", f"oci {place}")

    @classmethod
    def in_layout(cls, space: LayoutRepositories) -> OciStore:
        """Open an image layout on a disk."""
        where = space.directory
        return cls(space, Names(ROOT), str(where), f"oci layout {where.resolve()}")

    @property
    def writable(self) -> OciStore:
        """Itself."""
        return self

    @property
    def images(self) -> OciStore:
        """Itself."""
        return self

    def stat(self, key: str) -> Stat | None:
        """Read the manifest of a key."""
        value = self.values.find(key)
        if value is None:
            self._require_no_other_image(key)
            return None
        return Stat(size=value.size, version=value.digest, modified=value.created)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a value, from as many layers as it lies in."""
        value = self._readable(key)
        wanted = max(value.size - offset, 0) if length is None else length
        if length is None:
            require_sane(wanted, key, self.url)
        # max: to read no bytes is allowed at any offset.
        if offset + wanted > max(value.size, offset):
            message = f"{key} in {self.url} has {value.size} bytes, {offset + wanted} are expected"
            raise StoreError(message, hint="push it again")
        try:
            return b"".join(self.values.pieces(value, offset, wanted))
        except (NotFound, Incomplete):
            # What is known may be of an archive that was removed and pushed again.
            self.known.archives.pop(key, None)
            now = self.values.find(key)
            if now is None:
                raise self._missing(key) from None
            if now.digest == value.digest:
                raise
        return self.read(key, offset, length)  # replaced by another process meanwhile

    def create(self, key: str, data: bytes) -> None:
        """Write a manifest and its blob under a tag that is free."""
        self._require_free(key)
        # An answer that got lost does no harm: the same manifest is
        # sent again, and has the same digest.
        self._require_ours(key, self.writer.write(key, data))

    def create_from_file(
        self, key: str, path: Path, advance: Callable[[int], None] = ignore
    ) -> None:
        """Send a file as a blob; of an archive an image is made, too."""
        with content_of_file(path) as content:
            self.receive(key, content, advance)

    def receive(
        self,
        key: str,
        content: ContentSource,
        advance: Callable[[int], None] = ignore,
        known: Sequence[KnownRange] = (),
    ) -> None:
        """Send what arrives as a blob, in order, while it is hashed."""
        self._require_free(key)
        place, archive = self.writer.prepare(key), archive_name(key)
        sent: tuple[SentBlob, ...]
        if archive is None:
            sent = (self._send(place, content, advance, BYTES),)
        elif self.cuts:
            reused = ReusedLayers.of(self.space, self.names, place.repository)
            sent = LayerSender(self.space, place.repository, reused, advance).send(
                content, self.cuts
            )
        else:
            sent = (self._send(place, content, advance, LAYER),)
        layers = tuple(one.descriptor for one in sent)
        subject = None
        if archive:
            diff_ids = tuple(one.diff_id for one in sent)
            subject = self.views.make_image(key, archive, layers, diff_ids)
        # Last: only the key's own manifest makes the value exist.
        self._require_ours(key, self.writer.put(key, place, layers, subject))

    def _send(
        self, place: Place, content: ContentSource, advance: Callable[[int], None], kind: str
    ) -> SentBlob:
        return send_blob(self.space, place.repository, content, advance, media_type=kind)

    def replace(self, key: str, data: bytes, expected: str | None) -> str:
        """Compare, write, and look whether it stayed: a registry has no conditions."""
        before = self.values.find(key)
        if (before.digest if before else None) != expected:
            raise LostRace.at(key, self.url)
        if before is None:
            self._require_no_other_image(key)
        digest = self.writer.write(key, data)
        # Another writer followed: its value has replaced ours.
        if self.space.manifest_digest(*self._at(key)) != digest:
            raise LostRace.at(key, self.url)
        # Removal is by digest: an equal one is what was written just now.
        if before and before.digest != digest:
            self._forget(before)
        if tag := tag_name(key):
            self.views.update_tag(tag)
        return digest

    def _forget(self, before: StoredValue) -> None:
        """Remove what a tag held before; where that is not allowed, it stays without a name."""
        try:
            self.space.delete_manifest(before.place.repository, before.digest)
        except (NotOfferedByRegistry, StoreError) as error:
            log.info("%s stays: %s", before.digest, error)

    def image_digest(self, key: str) -> str | None:
        """Return the digest of the image of an archive; None where it is not there."""
        archive = archive_name(key)
        image = self.views.image(archive) if archive else None
        return image.digest if image else None

    def in_layers(self, cuts: tuple[int, ...]) -> OciStore:
        """Return this store, which cuts the archives that it writes."""
        return replace(self, cuts=cuts)

    def find_base(self, image: str, platform: str) -> SystemImage:
        """Find an image in any registry, to put environments of this store on."""
        from envferry.stores.oci.base_image import find_base
        from envferry.stores.oci.images_on_base import FoundBase

        return FoundBase(find_base(image, platform, self.space), self.names, self.views)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield values by the tags of their repositories, then their manifests."""
        return self.values.list(check_prefix(prefix))

    def list_level(self, prefix: str = "") -> Iterator[Listed]:
        """Yield values right below a prefix; for what lies deeper the tags say enough."""
        return self.values.list_level(check_prefix(prefix))

    def list_unfinished(self, prefix: str = "") -> Iterator[Listed]:
        """Yield nothing: registries remove unfinished uploads by themselves, and list none."""
        check_prefix(prefix)
        return iter(())

    def delete(self, key: str) -> None:
        """Remove the manifest of a key, and what was made of it."""
        value = self.values.find(key)
        if value is None:
            return
        self.known.archives.pop(key, None)
        # The key first: no value is read from a view, and the next write of the key corrects them.
        self.space.delete_manifest(value.place.repository, value.digest)
        if archive := archive_name(key):
            self.views.remove_image(archive)
        elif tag := tag_name(key):
            self.views.update_tag(tag)
        elif archive_beside(key) and (subject := value.manifest.subject):
            self.views.remove_referrer(value.place.repository, subject, key)
            if key.endswith(f"/{ATTESTATION}"):
                self.views.forget_attestation(value.place.repository, subject)

    def delete_folder(self, prefix: str) -> None:
        """Take an environment out of the list when its repository holds no key any more."""
        name = environment_of(check_prefix(prefix))
        # Only `v1/envs/NAME/` and `v1/tags/NAME/`: what is below them is parts of tags.
        if name is None or prefix.count("/") != 3 or any(self.values.tags_of(name)):
            return
        digest = self.space.manifest_digest(self.names.root, ENVIRONMENT_PREFIX + name)
        if digest:
            self.space.delete_manifest(self.names.root, digest)
        self.writer.forget(self.names.repository(name))

    def delete_unfinished(self, prefix: str, older_seconds: float) -> int:
        """Do nothing: registries do that themselves."""
        check_prefix(prefix)
        return 0

    def _at(self, key: str) -> tuple[str, str]:
        place = self.names.place(check_key(key))
        return place.repository, place.tag

    def _readable(self, key: str) -> StoredValue:
        """Return the value of a key; that of an archive is asked for once."""
        if value := self.known.archives.get(key):
            return value
        value = self.values.find(key)
        if value is None:
            self._require_no_other_image(key)
            raise self._missing(key)
        # Archives alone: they are read in many ranges, and never replaced.
        if archive_name(key):
            self.known.archives[key] = value
        return value

    def _missing(self, key: str) -> NotFound:
        message = f"{key} is not in the registry {self.url}"
        return NotFound(message, hint="run `envferry ls` to see what is")

    def _require_no_other_image(self, key: str) -> None:
        """Raise IntegrityError where a tag is an image that another tool has made."""
        if tag := tag_name(key):
            self.views.require_no_other_image(tag)

    def _require_free(self, key: str) -> None:
        # Asked, for a registry has no write that fails where a tag exists.
        if self.space.manifest_digest(*self._at(key)):
            raise KeyTaken.at(key, self.url)

    def _require_ours(self, key: str, digest: str) -> None:
        """Raise KeyTaken when another write followed ours."""
        if self.space.manifest_digest(*self._at(key)) != digest:
            raise KeyTaken.at(key, self.url)
