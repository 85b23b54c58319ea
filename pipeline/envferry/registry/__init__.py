"""The registry: artifacts and tags under one URL, on any store.

    v1/envs/NAME/PLATFORM/ID/NAME-PLATFORM-ID.tar.zst          write-once
    v1/envs/NAME/PLATFORM/ID/NAME-PLATFORM-ID.tar.zst.xxh128
    v1/envs/NAME/PLATFORM/ID/conda-lock.yml
    v1/envs/NAME/PLATFORM/ID/manifest.json                     after all of these
    v1/envs/NAME/PLATFORM/ID/{attestation.json,sbom.cdx.json,manifest.json.sigstore.json}  optional
    v1/tags/NAME/PLATFORM/TAG                                  moved by compare-and-swap

An artifact is published when its manifest is there; a copy of the files is a registry.
"""

from __future__ import annotations

from envferry.registry.layout import ATTACHMENTS, ENVS, LOCK_FILE, TAGS, check_tag
from envferry.registry.published_archive import PublishedArchive
from envferry.registry.registry import Registry
from envferry.registry.removal import RemovedMeanwhile

__all__ = [
    "ATTACHMENTS",
    "ENVS",
    "LOCK_FILE",
    "TAGS",
    "PublishedArchive",
    "Registry",
    "RemovedMeanwhile",
    "check_tag",
]
