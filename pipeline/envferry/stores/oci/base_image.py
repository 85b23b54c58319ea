"""A system's image that an environment is put on top of: found, and its layers taken over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json
from envferry.base.loopback import is_loopback
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.stores.oci.client import RegistryClient
from envferry.stores.oci.documents import (
    CONFIG,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Platform,
    not_ours,
)
from envferry.stores.oci.key_tags import REPOSITORY
from envferry.stores.oci.sending import send_blob
from envferry.stores.source import ContentSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.stores.oci.port import Repositories

IMAGE = re.compile(
    r"(oci://)?(?P<host>[A-Za-z0-9.-]+(:\d+)?|\[[0-9A-Fa-f:]+\](:\d+)?)/(?P<repository>[^:@]+)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# Docker's types name the same bytes: a layer is not changed by being called OCI's.
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{OCI_LAYER}+gzip",
    OCI_LAYER: OCI_LAYER,
    f"{OCI_LAYER}+gzip": f"{OCI_LAYER}+gzip",
    f"{OCI_LAYER}+zstd": f"{OCI_LAYER}+zstd",
}
"""What a layer is called in a manifest of OCI."""
CONFIG_TYPES = (CONFIG, "application/vnd.docker.container.image.v1+json")
MOST_CONFIG = 4 << 20


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest of either kind."""

    media_type: str = ""
    manifests: Any = None
    layers: Any = None


class BaseImage(msgspec.Struct, frozen=True):
    """An image of one platform in a registry."""

    space: Repositories
    repository: str
    shown: str
    """What it was called."""
    config: dict[str, Any]
    layers: tuple[Descriptor, ...]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of its layers, uncompressed."""
        return tuple(self.config["rootfs"]["diff_ids"])

    def copy_layers(
        self, target: Repositories, repository: str, advance: Callable[[int], None]
    ) -> tuple[Descriptor, ...]:
        """Have its layers in a repository: those that are there, mounted ones, the rest copied."""
        for layer in self.layers:
            is_near = self.space.name == target.name
            if target.has_blob(repository, layer.digest) or (
                is_near and target.mount(repository, layer.digest, self.repository)
            ):
                continue
            # Any type but LAYER: its diff id is known, the base's configuration has it.
            sent = send_blob(target, repository, self._source(layer), advance, media_type="base")
            if sent.descriptor.digest != layer.digest:
                message = f"{layer.digest} of {self.shown} is damaged: {sent.descriptor.digest}"
                raise IntegrityError(message, hint="pull and push that image again")
        return tuple(
            Descriptor(LAYER_TYPES[one.media_type], one.digest, one.size) for one in self.layers
        )

    def _source(self, layer: Descriptor) -> ContentSource:
        return ContentSource(
            name=f"{layer.digest} of {self.shown}",
            size=layer.size,
            token=layer.digest,
            read_at=lambda offset, length: self.space.read_blob(
                self.repository, layer, offset, length
            ),
            digests=None,
        )


def find_base(image: str, platform: str, near: Repositories) -> BaseImage:
    """Find an image, `HOST[:PORT]/REPOSITORY:TAG`, that runs on a platform.

    Raises UsageError for a name that is not one, NotFound where there is none for the platform,
    IntegrityError for what is not an image.
    """
    found = IMAGE.fullmatch(image)
    if not found or not REPOSITORY.fullmatch(found["repository"]):
        message = f"{image!r} is not the name of an image in a registry"
        raise UsageError(
            message, hint="write HOST/REPOSITORY:TAG, such as registry.example/debian:12"
        )
    host, repository = found["host"], found["repository"]
    space = near if near.name == host else _registry(host)
    # A digest wins over a tag beside it, as for other clients of registries.
    reference = found["digest"] or found["tag"] or "latest"
    manifest = _manifest(space, (repository, reference), image, Platform.of(platform))
    if manifest.config.media_type not in CONFIG_TYPES:
        raise not_ours(manifest.config.media_type, image)
    unknown = [one.media_type for one in manifest.layers if one.media_type not in LAYER_TYPES]
    if unknown:
        message = f"{image} has layers of a type that cannot be built upon: {', '.join(unknown)}"
        raise IntegrityError(message, hint="name an image of an operating system")
    # The size is the manifest's word: it is checked before so much is read.
    if manifest.config.size > MOST_CONFIG:
        size = f"{manifest.config.size:,} bytes, at most {MOST_CONFIG:,} are expected"
        message = f"the configuration of {image} has {size}"
        raise IntegrityError(message, hint="name an image of an operating system")
    data = space.read_blob(repository, manifest.config, 0, manifest.config.size)
    config = _config(data, image, len(manifest.layers))
    return BaseImage(space, repository, image, config, manifest.layers)


def _registry(host: str) -> RegistryClient:
    # `[::1]` ends with a bracket, so that only a port is cut off.
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return RegistryClient.of(f"{'http' if is_loopback(name) else 'https'}://{host}")


def _manifest(
    space: Repositories, place: tuple[str, str], image: str, wanted: Platform
) -> ImageManifest:
    """Return the manifest of a platform, by way of an index if need be."""
    found = space.manifest(*place)
    if found is None:
        message = f"the image {image} is not at {space.name}"
        raise NotFound(message, hint="push it there first: `skopeo copy … docker://HOST/…`")
    try:
        kind = decode_json(found.data, _Manifest)
        if kind.manifests is None:
            return decode_json(found.data, ImageManifest)
        listed = decode_json(found.data, ImageIndex).manifests
    except msgspec.MsgspecError as error:
        message = f"{image} is not an image: {error}"
        raise IntegrityError(message, hint="name an image of an operating system") from error
    platforms = [one.platform for one in listed if one.platform]
    for one in listed:
        if one.platform and (one.platform.os, one.platform.architecture) == (
            wanted.os,
            wanted.architecture,
        ):
            return _manifest(space, (place[0], one.digest), image, wanted)
    names = ", ".join(sorted({f"{one.os}/{one.architecture}" for one in platforms}))
    message = f"{image} is not for {wanted.os}/{wanted.architecture}: there are {names or 'none'}"
    raise NotFound(message, hint="name another image with --base")


def _config(data: bytes, image: str, layers: int) -> dict[str, Any]:
    try:
        config = decode_json(data, dict[str, Any])
        diff_ids = config["rootfs"]["diff_ids"]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        message = f"the configuration of {image} is damaged"
        raise IntegrityError(message, hint="pull and push that image again") from error
    # One diff id for each layer, in their order (OCI image-spec, config.md).
    if not isinstance(diff_ids, list) or len(diff_ids) != layers:
        message = f"the configuration of {image} does not list its {layers} layers"
        raise IntegrityError(message, hint="pull and push that image again")
    return config
