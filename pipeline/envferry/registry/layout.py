"""Which key is what: `NAME/PLATFORM/ID` below `v1/envs`, `NAME/PLATFORM/TAG` below `v1/tags`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.artifacts import ATTESTATION, REGISTRY_MANIFEST, SBOM, SIGSTORE
from envferry.errors import UsageError
from envferry.names import ID_PATTERN, check_name

if TYPE_CHECKING:
    from envferry.models import Manifest

ENVS = "v1/envs/"
TAGS = "v1/tags/"
LOCK_FILE = "conda-lock.yml"
ATTACHMENTS = (ATTESTATION, SBOM, SIGSTORE)
DELTAS = "v1/deltas/"
HOSTS = "v1/hosts/"
"""What hosts report of themselves: one file each, which nothing depends on."""
SIDE_PREFIXES = (DELTAS, HOSTS, "keys/", "tool/", "audit/")
"""What lies beside artifacts and tags, and no registry needs."""
PRUNING = "pruning.json"
"""Lies in an artifact's folder while it is removed: no push completes what is on its way out."""


def artifact_folder(name: str, platform: str, id_: str) -> str:
    """Return the folder of an artifact; it ends in a slash."""
    check_name(name, "environment name")
    if not ID_PATTERN.fullmatch(id_):
        message = f"{id_!r} is not a valid id: ids have 12 hex digits"
        raise UsageError(message)
    return f"{ENVS}{name}/{check_name(platform, 'platform')}/{id_}/"


def folder_of(manifest: Manifest) -> str:
    """Return the folder that a manifest says it belongs to."""
    return artifact_folder(manifest.name, manifest.platform, manifest.id)


def archive_key(manifest: Manifest) -> str:
    """Return the key of an archive."""
    return folder_of(manifest) + manifest.archive.file


def attachment_key(manifest: Manifest, file: str) -> str:
    """Return the key of one of `ATTACHMENTS`."""
    # All else in a folder is written once by `publish.py`, and bound by the manifest.
    if file not in ATTACHMENTS:
        message = f"{file} cannot be attached to an artifact: only {', '.join(ATTACHMENTS)}"
        raise UsageError(message)
    return folder_of(manifest) + file


def tag_key(name: str, platform: str, tag: str) -> str:
    """Return the key of a tag."""
    check_name(name, "environment name")
    return f"{TAGS}{name}/{check_name(platform, 'platform')}/{check_tag(tag)}"


def host_key(host: str) -> str:
    """Return the key of a host's report."""
    return f"{HOSTS}{check_name(host, 'name of a host')}.json"


def check_tag(tag: str) -> str:
    """Return `tag` when it can be a tag; raise UsageError when it cannot, or looks like an id."""
    check_name(tag, "tag")
    # NAME@VERSION is a tag or an id by its form alone, without a question to the registry.
    if ID_PATTERN.fullmatch(tag):
        message = f"{tag!r} cannot be a tag: it looks like an id (12 hex digits)"
        raise UsageError(message, hint="choose one such as `stable`")
    return tag


def is_manifest(key: str) -> bool:
    """Whether a key is a manifest's: an artifact without one is not published."""
    # `v1/envs/NAME/PLATFORM/ID/manifest.json` has six parts. Deltas have as many: only keys below
    # `v1/envs/` are asked about.
    return key.endswith(f"/{REGISTRY_MANIFEST}") and len(key.split("/")) == 6
