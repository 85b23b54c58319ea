"""What other tools see of a registry: images, indexes of tags, and what refers to an image.

All of it follows from the keys, and is made again whenever these change.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from envferry.base.json import decode_json
from envferry.base.retry import RACES, Transient, persistently
from envferry.errors import IntegrityError, StoreError
from envferry.stores.oci.documents import (
    CONFIG,
    COSIGN_ANNOTATIONS,
    INDEX,
    KEY,
    MANIFEST,
    REF_NAME,
    Descriptor,
    Platform,
    describe,
    digest_of,
    image_config,
    image_index,
    image_manifest,
    not_ours,
    read_index,
    read_manifest,
    titled,
)
from envferry.stores.oci.key_tags import RUNNABLE, RUNNABLE_TAG, TAG_TAG, ArchiveName
from envferry.stores.oci.sending import send_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envferry.stores.oci.key_tags import Names, OciTag
    from envferry.stores.oci.port import Repositories

log = logging.getLogger(__name__)

ENVIRONMENT = "vnd.envferry.environment"
"""Annotation of the index of a tag: whose it is."""


class _TagRecord(msgspec.Struct, frozen=True):
    id: str


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = "no media type"
    artifact_type: str = ""
    config: dict[str, object] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Views:
    """Images and lists beside the keys of a store."""

    space: Repositories
    names: Names
    images: dict[ArchiveName, Descriptor] = field(default_factory=dict, compare=False)
    """Those that were asked for: an image is a function of its archive."""

    def make_image(
        self,
        key: str,
        archive: ArchiveName,
        layers: tuple[Descriptor, ...],
        diff_ids: tuple[str, ...],
    ) -> Descriptor:
        """Write the image whose layers an archive is; equal archives give equal images."""
        repository = self.names.repository(archive.name)
        config = image_config(archive.platform, diff_ids)
        blob = describe(config, CONFIG)
        send_bytes(self.space, repository, config, blob)
        named = titled(layers, key.rpartition("/")[2])
        # No time in it, so that equal archives have equal digests; the
        # key's manifest has the time.
        data = image_manifest(config=blob, layers=named, annotations={KEY: key})
        self.space.put_manifest(repository, archive.tag, data, MANIFEST)
        self.images[archive] = describe(data, MANIFEST)
        return self.images[archive]

    def image(self, archive: ArchiveName) -> Descriptor | None:
        """Return the image of an archive; None where the archive is not there."""
        if archive not in self.images:
            found = self.space.manifest(self.names.repository(archive.name), archive.tag)
            if found is None:
                return None
            self.images[archive] = describe(found.data, MANIFEST)
        return self.images[archive]

    def remove_image(self, archive: ArchiveName) -> None:
        """Remove an image, and the list of what refers to it."""
        repository = self.names.repository(archive.name)
        # `image` notes what it finds, so it is taken out once more below.
        image = self.images.pop(archive, None) or self.image(archive)
        self.images.pop(archive, None)
        self._remove_runnable(archive)
        if image is None:
            return
        listed = self.space.manifest_digest(repository, referrers_tag(image))
        # Before the image, whose digest these tags are made of: a crash must not leave them alone.
        self.forget_attestation(repository, image)
        self.space.delete_manifest(repository, image.digest)
        if listed:
            self.space.delete_manifest(repository, listed)

    def make_runnable(
        self,
        archive: tuple[str, str, str],
        config: bytes,
        layers: tuple[Descriptor, ...],
        tags: Sequence[str],
    ) -> tuple[str, ...]:
        """Write an image that has a system below an archive, and have tags name it.

        `archive` is its name, platform and id. The index of a tag keeps the images that it has for
        other platforms, also those that others write meanwhile. Returns what the image is called.
        """
        named = ArchiveName(*archive)
        repository = self.names.repository(named.name)
        blob = describe(config, CONFIG)
        send_bytes(self.space, repository, config, blob)
        data = image_manifest(config=blob, layers=layers, annotations={ENVIRONMENT: named.name})
        self.space.put_manifest(repository, f"{RUNNABLE}{named.tag}", data, MANIFEST)
        for tag in tags:
            # Before the index, which is made of these, whoever writes it.
            alone = f"{RUNNABLE}_t.{named.platform}.{tag}"
            self.space.put_manifest(repository, alone, data, MANIFEST)
            self._settle(repository, f"{RUNNABLE}{tag}", partial(self._runnable_index, named, tag))
        names = (*tags, named.tag)
        return tuple(f"{self.space.name}/{repository}:{RUNNABLE}{tag}" for tag in names)

    def _runnable_index(self, named: ArchiveName, tag: str) -> bytes | None:
        """Return the index of the images that have a system below them; None without any."""
        repository, name = self.names.repository(named.name), f"{RUNNABLE}{tag}"
        found = self.space.manifest(repository, name)
        # Those of envferry 0.2 are in the index alone.
        there = read_index(found.data, f"{repository}:{name}").manifests if found else ()
        images = {one.platform: one for one in there if one.platform}
        for one in self.space.tags(repository):
            match = RUNNABLE_TAG.fullmatch(one)
            image = self.space.manifest(repository, one) if match and match["tag"] == tag else None
            if match and image:
                platform = Platform.of(match["platform"])
                described = describe(image.data, MANIFEST)
                images[platform] = msgspec.structs.replace(described, platform=platform)
        # In one order, by which equal indexes are known.
        listed = sorted(images.items(), key=lambda item: (item[0].os, item[0].architecture))
        annotations = {REF_NAME: name, ENVIRONMENT: named.name}
        return image_index(tuple(image for _, image in listed), annotations) if listed else None

    def _remove_runnable(self, archive: ArchiveName) -> None:
        """Remove what has a system below an archive, also from the indexes that list it."""
        repository = self.names.repository(archive.name)
        digest = self.space.manifest_digest(repository, f"{RUNNABLE}{archive.tag}")
        if digest is None:
            return
        lists: list[str] = []
        for tag in [one for one in self.space.tags(repository) if one.startswith(RUNNABLE)]:
            found = self.space.manifest(repository, tag)
            # Searched as text: in an index that we wrote, a digest stands
            # for an image and nothing else.
            if found and digest.encode() in found.data:
                self.space.delete_manifest(repository, found.digest)
                lists.append(tag)
        self.space.delete_manifest(repository, digest)
        # The images of other platforms keep the name.
        for name in lists:
            tag = name.removeprefix(RUNNABLE)
            self._settle(repository, name, partial(self._runnable_index, archive, tag))

    def note_referrer(
        self, repository: str, subject: Descriptor, referrer: Descriptor, *, is_kept: bool
    ) -> None:
        """See to it that what refers to an image can be found.

        Older registries keep no such lists: clients do it, under a tag of the image's digest
        (distribution-spec 1.1, "Pushing Manifests with Subject"). Raises StoreError where it is
        not found afterwards.
        """
        # It claims to (OCI-Subject): that is looked at, for no one else would keep the list.
        if is_kept:
            listed = self.space.referrers(repository, subject.digest)
            if listed is not None and any(one.digest == referrer.digest for one in listed):
                return
            message = f"{self.space.name} took {referrer.digest}, which refers to {subject.digest}"
            hint = (
                "ask the administrator of that registry: it claims to keep such lists (OCI-Subject)"
            )
            msg = f"{message}, and does not list it"
            raise StoreError(msg, hint=hint)

        def attempt() -> None:
            there = self._listed(repository, subject)
            # The entry of the same key is of the value that was replaced.
            others = tuple(one for one in there if not _is_same_key(one, referrer))
            self._write_list(repository, subject, (*others, referrer))
            # Of two clients that write the list at once, one finds itself missing.
            if referrer not in self._listed(repository, subject):
                message = f"{self.space.name} does not keep what refers to {subject.digest}"
                error = StoreError(message, hint="run the command again: nothing is sent twice")
                raise Transient(error)

        persistently(attempt, RACES)

    def remove_referrer(self, repository: str, subject: Descriptor, key: str) -> None:
        """Take a file out of the list of its image, where we keep that."""
        there = self._listed(repository, subject)
        kept = tuple(one for one in there if (one.annotations or {}).get(KEY) != key)
        if kept != there:
            self._write_list(repository, subject, kept)

    def _listed(self, repository: str, subject: Descriptor) -> tuple[Descriptor, ...]:
        found = self.space.manifest(repository, referrers_tag(subject))
        what = f"{repository}:{referrers_tag(subject)} at {self.space.name}"
        return read_index(found.data, what).manifests if found else ()

    def _write_list(
        self, repository: str, subject: Descriptor, listed: tuple[Descriptor, ...]
    ) -> None:
        data = image_index(listed, {"org.opencontainers.referrers.subject": subject.digest})
        self.space.put_manifest(repository, referrers_tag(subject), data, INDEX)

    def name_attestation(
        self, repository: str, subject: Descriptor, layers: tuple[Descriptor, ...]
    ) -> None:
        """Give an attestation the tag and the form in which cosign looks for it, too."""
        before = self.space.manifest_digest(repository, attestation_tag(subject))
        signed = tuple(
            msgspec.structs.replace(one, annotations=dict(COSIGN_ANNOTATIONS)) for one in layers
        )
        # These layers are not compressed, so that their digests are their diff ids.
        config = image_config("", tuple(one.digest for one in layers))
        blob = describe(config, CONFIG)
        send_bytes(self.space, repository, config, blob)
        data = image_manifest(config=blob, layers=signed)
        self.space.put_manifest(repository, attestation_tag(subject), data, MANIFEST)
        if before and before != digest_of(data):
            self._forget(repository, before)

    def forget_attestation(self, repository: str, subject: Descriptor) -> None:
        """Remove what was made for cosign."""
        if there := self.space.manifest_digest(repository, attestation_tag(subject)):
            self.space.delete_manifest(repository, there)

    def _forget(self, repository: str, digest: str) -> None:
        """Remove what a tag held before; where that is not allowed, it stays without a name."""
        try:
            self.space.delete_manifest(repository, digest)
        except StoreError as error:
            log.info("%s stays: %s", digest, error)

    def update_tag(self, tag: OciTag) -> None:
        """Rewrite the index of a tag: one image for each platform that has this tag."""
        repository = self.names.repository(tag.name)
        self._settle(repository, tag.tag, lambda: self._index_of(repository, tag))

    def _settle(self, repository: str, name: str, make: Callable[[], bytes | None]) -> None:
        """Write the index that follows from other tags; remove it where none does.

        Two writers, each for a platform of its own, may both have begun before the other had
        written: so each looks again, until what is there follows from what is there.
        """

        def attempt() -> None:
            wanted = make()
            there = self.space.manifest_digest(repository, name)
            if there == (digest_of(wanted) if wanted else None):
                return
            if wanted:
                self.space.put_manifest(repository, name, wanted, INDEX)
            elif there:
                self.space.delete_manifest(repository, there)
            message = f"{name} in {repository} at {self.space.name} is changed again and again"
            # Written, so look once more: only when a look finds nothing to change is it right.
            raise Transient(StoreError(message, hint="run it again"))

        persistently(attempt, RACES)

    def _index_of(self, repository: str, tag: OciTag) -> bytes | None:
        """Return the index that follows from the records of a tag; None where there is none."""
        found = (TAG_TAG.fullmatch(one) for one in self.space.tags(repository))
        platforms = sorted(one["platform"] for one in found if one and one["tag"] == tag.tag)
        listed = []
        for platform in platforms:
            id_ = self._id_of(repository, f"_t.{platform}.{tag.tag}")
            image = self.image(ArchiveName(tag.name, platform, id_)) if id_ else None
            if image:
                listed.append(msgspec.structs.replace(image, platform=Platform.of(platform)))
        annotations = {REF_NAME: tag.tag, ENVIRONMENT: tag.name}
        return image_index(tuple(listed), annotations) if listed else None

    def _id_of(self, repository: str, tag: str) -> str | None:
        """Read where a tag points to; None where nothing sensible says it."""
        found = self.space.manifest(repository, tag)
        if found is None:
            return None
        try:
            (layer,) = read_manifest(found.data, f"{repository}:{tag}").layers
            record = self.space.read_blob(repository, layer, 0, layer.size)
            return decode_json(record, _TagRecord).id
        except (IntegrityError, ValueError, msgspec.MsgspecError) as error:
            # ValueError: it has more layers than one, or none.
            log.info("%s:%s is damaged: %s", repository, tag, error)
            return None

    def require_no_other_image(self, tag: OciTag) -> None:
        """Raise IntegrityError where a tag names an image that another tool has made."""
        repository = self.names.repository(tag.name)
        found = self.space.manifest(repository, tag.tag)
        if found is None:
            return
        try:
            kind = decode_json(found.data, _Kind)
        except msgspec.MsgspecError:
            kind = _Kind()
        if ENVIRONMENT not in kind.annotations:
            said = kind.artifact_type or str(kind.config.get("mediaType", "")) or kind.media_type
            raise not_ours(said, f"{self.space.name}/{repository}:{tag.tag}")


def referrers_tag(subject: Descriptor) -> str:
    """Return the tag under which older registries keep what refers to a manifest."""
    return subject.digest.replace(":", "-")


def attestation_tag(subject: Descriptor) -> str:
    """Return the tag under which cosign looks for the attestations of an image."""
    return f"{referrers_tag(subject)}.att"


def _is_same_key(one: Descriptor, other: Descriptor) -> bool:
    key = (other.annotations or {}).get(KEY)
    return one.digest == other.digest or (one.annotations or {}).get(KEY) == key
