"""The Sigstore bundle of a published artifact: made, or carried, and written once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.artifacts import REGISTRY_MANIFEST, SIGSTORE
from envferry.errors import IntegrityError, NotFound
from envferry.registry.compare_and_swap import compare_and_swap
from envferry.registry.layout import folder_of
from envferry.trust.sigstore_bundle import claimed_identity, is_sound_bundle

if TYPE_CHECKING:
    from envferry.artifacts import Proof
    from envferry.models import Manifest
    from envferry.registry.registry import Registry

log = logging.getLogger(__name__)


def sigstore_bundle_for(
    target: Registry, manifest: Manifest, proof: Proof, data: bytes | None = None
) -> bytes | None:
    """Return the bundle to publish with an artifact: the registry's, else ours.

    That is a new one where the registry signs without a key, else what comes with the artifact.
    `data` is the manifest to sign; None: as it is stored, or will be.
    Raises IntegrityError when that is about another manifest than the one which is published.
    """
    there = _read(target, folder_of(manifest) + SIGSTORE)
    if data is None:
        data = _read(target, folder_of(manifest) + REGISTRY_MANIFEST) or proof.manifest_data
    if there and is_sound_bundle(there, manifest, data):
        if target.keyless:
            who = claimed_identity(there, f"{SIGSTORE} of {manifest.stem}")
            log.warning("%s has a signature of %s already, which is kept", manifest.stem, who)
        return there
    # Nothing sound is there: a bundle about another manifest is replaced.
    if target.keyless:
        return target.keyless.sign(manifest, data, target.url)
    if proof.sigstore and not is_sound_bundle(proof.sigstore, manifest, data):
        message = f"{manifest.stem} in {target.url} has a different manifest than the signed one"
        raise IntegrityError(message, hint="it was built twice; push it there with --sigstore")
    return proof.sigstore


def place_sigstore_bundle(target: Registry, manifest: Manifest, wanted: bytes | None) -> bool:
    """Write the bundle that `sigstore_bundle_for` returned; return whether that was needed."""
    # Whatever is there: `sigstore_bundle_for` has decided already. None writes nothing.
    return compare_and_swap(target, folder_of(manifest) + SIGSTORE, lambda _: wanted)


def _read(target: Registry, key: str) -> bytes | None:
    try:
        return target.store.read(key)
    except NotFound:
        return None
