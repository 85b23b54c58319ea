"""An environment on top of a system's image: what sites run that start one image for each job."""

from __future__ import annotations

import os
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from envferry.archive.reader import Archive, FileSource
from envferry.archive.rooted import root_frames
from envferry.errors import UsageError
from envferry.stores.source import ContentSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from envferry.models import Artifact, Manifest
    from envferry.progress import Progress
    from envferry.registry.registry import Registry
    from envferry.stores.oci.base_image import BaseImage
    from envferry.stores.oci.image_store import OciStore

USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_base_image(registry: Registry, manifest: Manifest, base: str) -> BaseImage:
    """Find the image that an artifact is to be put on: before anything is sent.

    Raises UsageError for a registry that has no images, and what `find_base` raises.
    """
    from envferry.stores.oci.base_image import find_base

    return find_base(base, manifest.platform, _images_of(registry).space)


def publish_runnable(
    artifact: Artifact,
    registry: Registry,
    base: BaseImage,
    tags: Sequence[str],
    progress: Progress,
) -> tuple[str, ...]:
    """Write an image of a base with an environment at its prefix; return what it is called.

    Base and archive alone decide about its bytes.
    """
    from envferry.stores.oci.documents import LAYER, encode
    from envferry.stores.oci.sending import send_blob

    store, manifest = _images_of(registry), artifact.manifest
    repository = store.names.repository(manifest.name)
    label = f"push {manifest.name} on {base.shown}"
    with (
        progress.task(label, None) as advance,
        TemporaryFile(dir=artifact.directory) as scratch,
        FileSource(artifact.archive_path) as source,
    ):
        layers = base.bring_layers(store.space, repository, advance)
        rooted = _layer(Archive(source), scratch)
        sent = send_blob(store.space, repository, rooted, advance, media_type=LAYER)
    config = encode(_config(base.config, manifest, sent.diff_id))
    return store.views.make_runnable(
        (manifest.name, manifest.platform, manifest.id),
        config,
        (*layers, sent.descriptor),
        tags,
    )


def _images_of(registry: Registry) -> OciStore:
    if registry.store.images:
        return registry.store.images
    message = f"{registry.url} keeps no images: --base is for oci://HOST/REPOSITORY"
    raise UsageError(message, hint="leave out --base")


def _layer(archive: Archive, scratch: BinaryIO) -> ContentSource:
    """Write the layer to a file, for its length must be known, and return it."""
    for frame in root_frames(archive):
        scratch.write(frame)
    scratch.flush()
    descriptor = scratch.fileno()
    return ContentSource(
        name=f"{archive.name} as a layer",
        size=scratch.tell(),
        token=archive.index.id,
        read_at=lambda offset, length: os.pread(descriptor, length, offset),
        digests=None,
    )


def _config(base: dict[str, Any], manifest: Manifest, diff_id: str) -> dict[str, Any]:
    """Return the base's configuration with one layer more, and the environment on PATH."""
    inner = dict(base.get("config") or {})
    said = dict(line.partition("=")[::2] for line in inner.get("Env") or () if "=" in line)
    prefix = manifest.prefix
    said |= {
        "PATH": f"{prefix}/bin:{said.get('PATH', USUAL_PATH)}",
        "CONDA_PREFIX": prefix,
        "CONDA_DEFAULT_ENV": manifest.name,
    }
    inner["Env"] = [f"{name}={text}" for name, text in said.items()]
    rootfs = {"type": "layers", "diff_ids": [*base["rootfs"]["diff_ids"], diff_id]}
    config = {**base, "config": inner, "rootfs": rootfs}
    if base.get("history"):
        config["history"] = [*base["history"], {"created_by": f"envferry push {manifest.stem}"}]
    return config
