"""What `release` asks a registry before it builds: may it write, is the artifact published."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from envferry import __version__
from envferry.artifacts import ATTESTATION, SIGSTORE
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.models import CHECKS, left_out
from envferry.registry.layout import ENVS, folder_of
from envferry.stores.port import KeyTaken
from envferry.trust.attestations import decode_envelope, signers_of

if TYPE_CHECKING:
    from envferry.models import Lock, Manifest
    from envferry.registry.registry import Registry

log = logging.getLogger(__name__)


def require_writable(registry: Registry, name: str, platform: str) -> None:
    """Raise StoreError unless an artifact of this environment can be published.

    An empty file is written where its folder will be, and removed.
    """
    # Only a write tells whether writes are allowed. The name cannot be an artifact's: ids are hex.
    key = f"{ENVS}{name}/{platform}/probe-{os.urandom(6).hex()}"
    # Its name is drawn by chance: only our own first attempt,
    # whose answer got lost, can have taken it.
    with suppress(KeyTaken):
        registry.store.create(key, b"")
    try:
        registry.store.delete(key)
    except StoreError as error:  # some may write, and not remove
        log.info("%s is left behind: %s", key, error)


def find_released(
    registry: Registry, lock: Lock, platform: str, *, checked: bool = True
) -> Manifest | None:
    """Return the artifact that was made of this very lock, if it is there, whole and signed.

    Unless `checked` is false, one that was built with --no-check does not count. Nor does what is
    damaged: to publish it once more says what is wrong with it.
    """
    try:
        ids = registry.ids(lock.name, platform)
    except NotFound:
        return None
    for id_ in ids:
        try:
            manifest = registry.manifest(lock.name, platform, id_)
            if checked and CHECKS in manifest.tools:
                continue
            if not differences(manifest, lock) and _is_signed(registry, manifest):
                # Whole as well: what only looks published would be tagged, and not sent again.
                registry.require_archive(manifest)
                registry.read_lock(manifest)
                return manifest
        except (IntegrityError, NotFound) as error:
            log.info("%s@%s cannot be reused: %s", lock.name, id_, error)
    return None


def differences(manifest: Manifest, lock: Lock) -> dict[str, tuple[object, object]]:
    """Return what an artifact says of itself that a build of this lock would not: found, expected.

    Empty when it is what a build of this lock would be called and checked by.
    """
    options, tools = lock.options, manifest.tools
    said = {name: text for name, text in tools.items() if name in ("exclude", "frozen")}
    compared: dict[str, tuple[object, object]] = {
        "lock": (manifest.lock_digest, lock.digest),
        "version": (manifest.version, options.version),
        "checks": (manifest.checks, options.checks),
        "system requirements": (manifest.requirements, options.system),
        "excluded files": (said, left_out(options)),
        # Another version may pack the same lock into other bytes.
        "envferry": (tools.get("envferry"), __version__),
    }
    return {what: pair for what, pair in compared.items() if pair[0] != pair[1]}


def _is_signed(registry: Registry, manifest: Manifest) -> bool:
    """Whether all the keys that a push would sign with have signed, and an identity if it would."""
    if registry.keyless and not registry.store.stat(folder_of(manifest) + SIGSTORE):
        return False
    if not registry.signer:
        return True
    key = folder_of(manifest) + ATTESTATION
    if not registry.store.stat(key):
        return False
    ours = tuple(one.public for one in registry.signer.keys)
    envelope = decode_envelope(registry.store.read(key), f"{key} in {registry.url}")
    # All of them: with one missing, a push would add its signature.
    return len(signers_of(envelope, ours)) == len(ours)
