"""An environment on top of a system's image: what sites run that start one image for each job."""

from __future__ import annotations

import os
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from envferry.archive.prefix_layer import root_frames
from envferry.archive.reader import Archive, FileSource
from envferry.errors import UsageError
from envferry.stores.source import ContentSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from envferry.models import Artifact, Manifest
    from envferry.progress import Progress
    from envferry.registry.registry import Registry
    from envferry.stores.port import SystemImage

# What docker sets in a container whose image names no PATH.
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_base_image(registry: Registry, manifest: Manifest, base: str) -> SystemImage:
    """Find the image that an artifact is to be put on: before anything is sent.

    Raises UsageError for a registry that has no images, and what `ImageStore.find_base` raises.
    """
    if registry.store.images is None:
        message = f"{registry.url} keeps no images: --base is for oci://HOST/REPOSITORY"
        raise UsageError(message, hint="leave out --base")
    return registry.store.images.find_base(base, manifest.platform)


def publish_runnable(
    artifact: Artifact, base: SystemImage, tags: Sequence[str], progress: Progress
) -> tuple[str, ...]:
    """Write an image of a base with an environment at its prefix; return what it is called.

    Base and archive alone decide about its bytes.
    """
    manifest = artifact.manifest
    label = f"push {manifest.name} on {base.shown}"
    with (
        progress.task(label, None) as advance,
        TemporaryFile(dir=artifact.directory) as scratch,
        FileSource(artifact.archive_path) as source,
    ):
        return base.put_on(
            (manifest.name, manifest.platform, manifest.id),
            _layer(Archive(source), scratch),
            lambda diff_id: _config(base.config, manifest, diff_id),
            tags,
            advance,
        )


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
        # pread leaves the file's position alone: several threads read ahead at once.
        read_at=lambda offset, length: os.pread(descriptor, length, offset),
        digests=None,
    )


def _config(base: dict[str, Any], manifest: Manifest, diff_id: str) -> dict[str, Any]:
    """Return the base's configuration with one layer more, and the environment on PATH."""
    # A copy: the base's configuration is not ours to change.
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
    # Optional; but where it is, each layer has an entry (OCI image-spec, config.md).
    if base.get("history"):
        config["history"] = [*base["history"], {"created_by": f"envferry push {manifest.stem}"}]
    return config
