"""The documents of OCI registries: descriptors, manifests, indexes and configurations.

https://github.com/opencontainers/image-spec, version 1.1. What is written has sorted keys and no
blanks, so that equal contents have equal digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json
from envferry.base.sha256 import sha256_hex
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
BYTES = "application/octet-stream"
DOCKER_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
# The two bytes that the image-spec prescribes for an empty descriptor.
EMPTY_CONFIG = b"{}"

ARTIFACT_TYPES: Mapping[str, str] = {
    "manifest.json": "application/vnd.envferry.manifest.v1+json",
    "conda-lock.yml": "application/vnd.conda.lock.v1+yaml",
    "sbom.cdx.json": "application/vnd.cyclonedx+json",
    "attestation.json": "application/vnd.dsse.envelope.v1+json",
    "manifest.json.sigstore.json": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "pruning.json": "application/vnd.envferry.pruning.v1+json",
}
"""By the last part of a key."""
ARCHIVE_TYPE = "application/vnd.envferry.archive.v1"
CHECKSUM_TYPE = "application/vnd.envferry.checksum.v1"
TAG_TYPE = "application/vnd.envferry.tag.v1+json"
VALUE_TYPE = "application/vnd.envferry.value.v1"
ENVIRONMENT_TYPE = "application/vnd.envferry.environment.v1"

KEY = "vnd.envferry.key"
"""Annotation: the key that a manifest holds the value of."""
CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
COSIGN_ANNOTATIONS = {
    "dev.cosignproject.cosign/signature": "",
    "predicateType": "https://slsa.dev/provenance/v1",
}
"""What cosign has at the layer of an attestation: the signatures are in its envelope.
https://github.com/sigstore/cosign/blob/main/specs/ATTESTATION_SPEC.md."""

MACHINES: Mapping[str, str] = {
    "64": "amd64",
    "32": "386",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
SYSTEMS: Mapping[str, str] = {"linux": "linux", "osx": "darwin", "win": "windows"}


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machines that an image is for, in the words of Go."""

    architecture: str
    os: str

    @classmethod
    def of(cls, platform: str) -> Platform:
        """Translate conda's word for a platform; one that is not known is passed on."""
        system, _, machine = platform.partition("-")
        return cls(
            architecture=MACHINES.get(machine, machine or platform),
            os=SYSTEMS.get(system, system),
        )


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What names a blob or a manifest: its type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class ImageManifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image, or an artifact of another kind: one manifest serves both."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    # Defaults that are never written: `omit_defaults` would leave out a 2.
    schema_version: int = 0
    media_type: str = ""
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    @property
    def size(self) -> int:
        """The bytes of the value that the layers hold, one after the other."""
        return sum(layer.size for layer in self.layers)


class ImageIndex(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Several manifests: those of a tag by platform, or those that refer to an image."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 0
    media_type: str = ""
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    """What tells manifests from indexes, and from what is neither."""

    media_type: str = ""
    schema_version: int = 0
    manifests: Any = None
    layers: Any = None


def digest_of(data: bytes) -> str:
    """Return what names these bytes in a registry."""
    return f"sha256:{sha256_hex(data)}"


def describe(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of some bytes."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def encode(document: object) -> bytes:
    """Encode a document in the one form that we write."""
    return msgspec.json.encode(document, order="sorted")


def image_manifest(**fields: Any) -> bytes:  # noqa: ANN401  (the fields of ImageManifest)
    """Return the bytes of a manifest with these fields."""
    return encode(ImageManifest(schema_version=2, media_type=MANIFEST, **fields))


def titled(layers: tuple[Descriptor, ...], file: str) -> tuple[Descriptor, ...]:
    """Return layers with the names that tools give them in a folder: FILE, or FILE.001 …."""
    return tuple(
        msgspec.structs.replace(
            one, annotations={TITLE: file if len(layers) == 1 else f"{file}.{number:03d}"}
        )
        for number, one in enumerate(layers, 1)
    )


def image_index(manifests: tuple[Descriptor, ...], annotations: dict[str, str]) -> bytes:
    """Return the bytes of an index."""
    return encode(
        ImageIndex(
            schema_version=2,
            media_type=INDEX,
            manifests=manifests,
            annotations=annotations or None,
        )
    )


def image_config(platform: str, diff_ids: tuple[str, ...]) -> bytes:
    """Return the configuration of an image: what it is for, and its layers uncompressed."""
    machine = Platform.of(platform)
    return encode(
        {
            "architecture": machine.architecture,
            "os": machine.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def read_manifest(data: bytes, what: str) -> ImageManifest:
    """Decode a manifest that holds a value; `what` names it in errors.

    Raises IntegrityError for one that is damaged, or whose type says that it is something else.
    """
    try:
        kind = decode_json(data, _Kind)
        # The media type is optional in a manifest of OCI; layers tell it from an index.
        if kind.media_type not in ("", MANIFEST) or kind.layers is None:
            raise not_ours(kind.media_type or "no media type", what)
        return decode_json(data, ImageManifest)
    except msgspec.MsgspecError as error:
        message = f"{what} is not a manifest of an OCI registry: {error}"
        raise IntegrityError(message, hint="remove it there, then push again") from error


def read_index(data: bytes, what: str) -> ImageIndex:
    """Decode an index; raise IntegrityError for anything else."""
    try:
        return decode_json(data, ImageIndex)
    except msgspec.MsgspecError as error:
        message = f"{what} is not an index of an OCI registry: {error}"
        raise IntegrityError(message, hint="remove it there, then push again") from error


def not_ours(media_type: str, what: str) -> IntegrityError:
    """Say that an image was made by something else."""
    message = f"{what} was not written by envferry: its type is {media_type}"
    hint = "name another repository, or remove that tag there"
    return IntegrityError(message, hint=hint)
