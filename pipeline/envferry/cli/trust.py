"""Commands and options about keys and signatures: keygen, and `verify` of artifacts."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.artifacts import ARCHIVE_SUFFIX, MANIFEST_SUFFIX, read_artifact, read_proof
from envferry.cli.command import argument, command
from envferry.config import settings
from envferry.errors import HostError, NotFound, TargetOccupied, UsageError
from envferry.install.env_home import IMAGE_SUFFIX
from envferry.models import Ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.artifacts import Proof
    from envferry.cli.console import Console
    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.bundle import TrustBundle
    from envferry.trust.host_trust import Trust
    from envferry.trust.signed_clock import SignedClock
    from envferry.trust.signing import PublicKey, Signer

NOWHERE = Path("/nonexistent")


@dataclass(frozen=True, kw_only=True)
class KeygenOptions:
    """What to call the pair of keys."""

    name: Path = argument(type=click.Path(path_type=Path))


@command(KeygenOptions)
def keygen(console: Console, options: KeygenOptions) -> None:
    """Generate a pair of keys: NAME.key signs and stays secret, NAME.pub verifies.

    Hosts trust the keys in /etc/envferry/trusted.d: copy NAME.pub there.
    """
    from envferry.trust.signing import generate_key, parse_public_key

    private, public = Path(f"{options.name}.key"), Path(f"{options.name}.pub")
    secret, known = generate_key()
    _write_new(private, secret, 0o600)
    _write_new(public, known, 0o644)
    facts = {"private": private, "public": public, "id": parse_public_key(known, str(public)).id}
    lines = [f"{private}  signs: keep it secret", f"{public}  verifies: copy it to the hosts"]
    console.result(facts, lambda: lines)


@dataclass(frozen=True, kw_only=True)
class SignedRef:
    """An artifact whose signatures are to be verified."""

    ref: str
    platform: str
    registry: str


def verify_ref(console: Console, wanted: SignedRef, trust: Trust) -> None:
    """Verify the signatures of an artifact in a registry or on a disk, and read all of its bytes.

    So too the `tool/` of an export, and the one-file tool: they are code that hosts run.
    """
    from envferry.install.image import is_image
    from envferry.trust.image_signature import verify_image
    from envferry.trust.tool_signature import is_run_file, is_tool, verify_run_file, verify_tool

    if not trust.keys:
        message = f"{wanted.ref}: signature not verified (no trusted keys)"
        hint = "name one with --trusted-key FILE.pub; `envferry check --bytes` needs none"
        raise UsageError(message, hint=hint)
    tool_keys = trust.keys_for("tool")
    if is_tool(Path(wanted.ref)):
        verified = verify_tool(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_run_file(Path(wanted.ref)):
        verified = verify_run_file(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_image(Path(wanted.ref)):
        least = trust.least_for("release")
        verified = verify_image(Path(wanted.ref), trust.keys_for("release"), least=least)
    elif is_file_ref(wanted.ref):
        verified = _verify_file(console, Path(wanted.ref), trust)
    else:
        ref, platform = Ref.parse(wanted.ref), wanted.platform
        place = open_trusting(wanted.registry, trust)
        manifest = place.manifest(ref.name, platform, place.resolve(ref, platform))
        verified = _verify_published(console, manifest, place, trust)
    line = f"{verified.artifact} is signed by {', '.join(verified.signed_by)}"
    by = f"built by {verified.who}, {verified.time}"
    console.result(verified, lambda: [line, by])


def is_file_ref(ref: str) -> bool:
    """Whether a ref is the path of an archive, a manifest or an image."""
    return ref.endswith((ARCHIVE_SUFFIX, MANIFEST_SUFFIX, IMAGE_SUFFIX)) or "/" in ref


def load_signer(files: Iterable[Path], tag_days: int | None = None) -> Signer | None:
    """Read the keys to sign with: the files, else ENVFERRY_SIGN_KEY; None when there are none.

    Tags that it moves expire after `tag_days`; None for never.
    """
    from envferry.base.times import rfc3339
    from envferry.trust.signing import Signer, parse_signing_key, read_signing_key

    keys = tuple(read_signing_key(path) for path in files)
    secret = settings().sign_key
    if not keys and secret:
        keys = (parse_signing_key(secret.reveal().encode(), "ENVFERRY_SIGN_KEY"),)
    if not keys:
        if tag_days is not None:
            message = "--tag-expires needs a key: only signed tags expire"
            raise UsageError(message, hint="add --sign-key FILE")
        return None
    now = datetime.now(timezone.utc)
    expires = "" if tag_days is None else rfc3339(now + timedelta(days=tag_days))
    return Signer(keys=keys, who=_who(), time=rfc3339(now), tags_expire=expires)


def load_trust(
    files: Iterable[Path],
    envs_dir: Path | None = None,
    *,
    allow_downgrade: bool = False,
    require_signature: bool = False,
    takes_in: bool = True,
) -> Trust:
    """Read the keys that this host trusts; `envs_dir` is where it remembers tags.

    With a trust bundle beside `trusted.d`, its keys count, and those that `files` name; the keys in
    `trusted.d` only accepted the first bundle. Raises UsageError where signatures are required, by
    `require_signature` or a setting, and no key is trusted, if the command takes artifacts in.
    """
    from envferry.trust.host_trust import Trust
    from envferry.trust.signed_clock import SignedClock
    from envferry.trust.signing import read_trusted_keys

    here, named = settings(), tuple(files)
    clock = SignedClock.here(envs_dir)
    bundle = read_kept_bundle(bundle_path())
    named_keys = read_trusted_keys(NOWHERE, named)
    keys = read_trusted_keys(here.trusted_dir, named)
    if bundle:
        keys = _bundle_keys(bundle, clock, named_keys)
    required_by = "--require-signature" if require_signature else here.signatures_required_by()
    if takes_in and required_by and not keys:
        message = f"{required_by} requires signatures, but this host trusts no keys"
        hint = f"copy the public key to {here.trusted_dir}/NAME.pub, or give --trusted-key FILE"
        raise UsageError(message, hint=hint)
    return Trust(
        keys=keys,
        keys_dir=here.trusted_dir,
        envs_dir=envs_dir,
        allow_downgrade=allow_downgrade,
        bundle=bundle,
        named_keys=named_keys,
        clock=clock,
        grace=timedelta(days=here.tag_grace_days),
    )


def bundle_path() -> Path:
    """Return where this host keeps its trust bundle: beside the directory of trusted keys."""
    from envferry.trust.bundle import BUNDLE_NAME

    return settings().trusted_dir.parent / BUNDLE_NAME


def read_kept_bundle(path: Path) -> TrustBundle | None:
    """Read the bundle that this host accepted; None where it never had one.

    Raises IntegrityError for one that is damaged: a host must not come to trust more because of
    that.
    """
    from envferry.trust.bundle import decode_bundle

    if not os.path.lexists(path):
        return None
    if not path.is_file():
        message = f"the trust bundle {path} is not a file"
        raise UsageError(message, hint="replace it by the file that `envferry trust update` wrote")
    try:
        return decode_bundle(path.read_bytes(), f"the trust bundle {path}").bundle
    except OSError as error:
        message = f"cannot read the trust bundle {path}: {error.strerror}"
        raise UsageError(message, hint="check who may read it") from error


def _bundle_keys(
    bundle: TrustBundle, clock: SignedClock, named: tuple[PublicKey, ...]
) -> tuple[PublicKey, ...]:
    """Return all keys that count for anything; raise UsageError where none is left.

    Without a key a host accepts everything: that must not come from keys that ended.
    """
    from envferry.trust.bundle import ROLES

    found = [key for role in ROLES for key in bundle.keys_for(role, clock.now)]
    found += [key for key in named if key.id not in bundle.revoked_ids]
    if not found:
        message = (
            f"no key of trust bundle {bundle.version} is valid now: all are revoked or expired"
        )
        hint = "get a newer one, and run `envferry trust update`; look at this machine's clock, too"
        raise UsageError(message, hint=hint)
    return tuple({key.id: key for key in found}.values())


def open_trusting(url: str, trust: Trust) -> Registry:
    """Open a registry that hands out nothing unsigned, if any keys are trusted."""
    from envferry.registry import Registry

    return Registry.open(url, trust=trust if trust.keys else None)


def check_file(path: Path, manifest: Manifest, trust: Trust) -> None:
    """Check who signed an artifact on a disk."""
    proof = read_proof(path)
    trust.check_artifact(manifest, proof.manifest_data, proof.attestation)


def _verify_file(console: Console, path: Path, trust: Trust) -> VerifiedArtifact:
    from envferry.archive.identity import check_manifest
    from envferry.archive.reader import Archive, FileSource
    from envferry.artifacts import verify_artifact

    artifact, proof = read_artifact(path), read_proof(path)
    verified = _verify_proof(artifact.manifest, proof, trust)
    verify_artifact(artifact, progress=console.progress)
    with FileSource(artifact.archive_path) as source:
        check_manifest(Archive(source), artifact.manifest)
    return verified


def _verify_proof(manifest: Manifest, proof: Proof, trust: Trust) -> VerifiedArtifact:
    from envferry.trust.attestations import verify_attestation

    trust.forbid_revoked(manifest.name, manifest.platform, manifest.id)
    keys, least = trust.keys_for("release"), trust.least_for("release")
    return verify_attestation(manifest, proof.manifest_data, proof.attestation, keys, least=least)


def _verify_published(
    console: Console, manifest: Manifest, registry: Registry, trust: Trust
) -> VerifiedArtifact:
    proof = registry.proof(manifest)
    verified = _verify_proof(manifest, proof, trust)
    registry.verify_archive(manifest, progress=console.progress)
    registry.require_installable(manifest)
    return verified


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, from its first moment with the right mode."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        message = f"{path} already exists, and keys are never overwritten"
        raise TargetOccupied(message, hint="choose another name, or move it") from error
    except FileNotFoundError as error:
        msg = f"the directory {path.parent} does not exist"
        raise NotFound(msg) from error
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise HostError(message, hint="choose another directory") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def _who() -> str:
    """Return USER@HOST as the provenance says it."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
