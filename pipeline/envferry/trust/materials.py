"""The materials of a build, as its lock names them: what SLSA provenance calls dependencies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import check_lock
from envferry.errors import UsageError
from envferry.redaction import without_login, without_secret_parameters

if TYPE_CHECKING:
    from envferry.models import Lock, LockedPackage, Manifest

TREE_DIGEST = "envferryTree"
"""The name of `build/source_tree.py`'s digest of a folder, which no standard has."""


class Material(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A ResourceDescriptor of in-toto v1: one thing that an artifact was made from."""

    name: str
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, tuple[str, ...]] = {}
    """`publishers`: who published it, by an attestation that was verified when it was locked; empty
    where its index has none. Without it, no index was asked."""


def read_materials(manifest: Manifest, lock_data: bytes) -> tuple[Material, ...]:
    """Return what an artifact was made from, by its lock.

    The manifest binds the lock, so nothing else is believed. Raises IntegrityError when the lock is
    another one, SpecError when it is damaged, UsageError where locks cannot be read.
    """
    try:
        from envferry.specs.locks import parse_lock
    except ModuleNotFoundError as error:
        # Any other missing module is a bug and not a missing extra.
        if error.name != "yaml":
            raise
        message = f"signing {manifest.stem} reads its lock, which requires PyYAML"
        raise UsageError(message, hint='run `pip install "envferry[build]"`') from error
    name = Path(f"{manifest.stem}.conda-lock.yml")
    check_lock(manifest, lock_data, str(name))
    return list_materials(manifest, parse_lock(lock_data.decode(errors="replace"), name))


def list_materials(manifest: Manifest, lock: Lock) -> tuple[Material, ...]:
    """Return the lock, the image, every locked file, and what wheels of sources were made with."""
    platform = manifest.platform
    requirements = lock.build_requirements_for(platform)
    packages = [
        *(item for item in lock.packages if item.platform == platform),
        *(wheel for name in sorted(requirements) for wheel in requirements[name]),
    ]
    asked = lock.provenance.get(platform, {})
    publishers = {
        item.url: tuple(map(str, found.publishers))
        for item in lock.packages
        if item.platform == platform and item.manager == "pip"
        if (found := asked.get(item.name)) and not found.unasked
    }
    # By URL: a wheel that is locked may be a build requirement, too.
    files = {item.url: _material(item, publishers.get(item.url)) for item in packages}
    data = [
        Material(name=item.path, uri=_shown(item.url), digest={"sha256": item.sha256})
        for item in lock.options.data
    ]
    first = Material(name="conda-lock.yml", digest={"blake3": manifest.lock_digest})
    return (first, *_image(manifest.image), *files.values(), *data)


def _shown(url: str) -> str:
    """Return where a file is, without what gives access to it."""
    return without_secret_parameters(without_login(url))


def _image(image: str | None) -> tuple[Material, ...]:
    if not image:
        return ()
    algorithm, _, digest = image.rpartition("@")[2].rpartition(":")
    known = {algorithm: digest} if algorithm else {}
    return (Material(name="image", uri=image, digest=known),)


def _material(package: LockedPackage, publishers: tuple[str, ...] | None) -> Material:
    # Names of in-toto's DigestSet, but for TREE_DIGEST.
    strong = {"git": "gitCommit", "directory": TREE_DIGEST}.get(package.kind, "sha256")
    digests = {strong: package.sha256, "md5": package.md5}
    return Material(
        name=package.name,
        uri=_shown(package.url),
        digest={name: text for name, text in digests.items() if text},
        annotations={} if publishers is None else {"publishers": publishers},
    )
