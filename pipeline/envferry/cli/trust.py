"""Commands and options about keys and signatures: keygen, and `verify` of artifacts."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.artifacts import ARCHIVE_SUFFIX, MANIFEST_SUFFIX, read_artifact, read_proof
from envferry.cli.options import common_options
from envferry.config import settings
from envferry.errors import HostError, NotFound, TargetOccupied, UsageError
from envferry.models import Ref

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.cli.console import Console
    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.host_trust import Trust
    from envferry.trust.signing import Signer

REQUIREMENT = "envferry.require_signature"
"""Where the context of a command keeps `--require-signature`."""

sign_key_option = click.option(
    "--sign-key", "sign_keys", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Sign with this key; repeatable. Default: the key in ENVFERRY_SIGN_KEY, if any.",
)  # fmt: skip
trusted_key_option = click.option(
    "--trusted-key", "trusted_keys", multiple=True, type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also trust this public key, besides /etc/envferry/trusted.d/*.pub; repeatable.",
)  # fmt: skip
allow_downgrade_option = click.option(
    "--allow-downgrade", is_flag=True, help="Accept a tag that was moved back."
)


def _note_requirement(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    context.meta[REQUIREMENT] = is_set


require_signature_option = click.option(
    "--require-signature", is_flag=True, expose_value=False, callback=_note_requirement,
    help="Refuse what is unsigned, also where no key is trusted. See ENVFERRY_REQUIRE_SIGNATURES.",
)  # fmt: skip


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@common_options
def keygen(console: Console, name: Path) -> None:
    """Make a pair of keys: NAME.key, which signs and stays secret, and NAME.pub, which checks.

    Hosts trust what is in /etc/envferry/trusted.d: copy NAME.pub there.
    """
    from envferry.trust.signing import generate_key, parse_public_key

    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    secret, known = generate_key()
    _write_new(private, secret, 0o600)
    _write_new(public, known, 0o644)
    facts = {"private": private, "public": public, "id": parse_public_key(known, str(public)).id}
    console.result(facts, lambda: [f"{private}  signs: keep it secret", f"{public}  checks"])


def verify_ref(
    console: Console, ref: str, trusted_keys: Iterable[Path], platform: str, registry: str
) -> None:
    """Check who signed an artifact in a registry or on a disk, and read all of its bytes.

    The `tool/` of an export is one, too: it is code that hosts run.
    """
    from envferry.trust.tool_signature import is_tool, verify_tool

    trust = load_trust(trusted_keys)
    if not trust.keys:
        message = "no trusted keys: there is nothing to check a signature with"
        hint = "name one with --trusted-key FILE.pub; `envferry check --bytes` needs none"
        raise UsageError(message, hint=hint)
    if is_tool(Path(ref)):
        verified = verify_tool(Path(ref), trust.keys)
    elif is_file_ref(ref):
        verified = _verify_file(console, Path(ref), trust)
    else:
        wanted = Ref.parse(ref)
        place = open_trusting(registry, trust)
        manifest = place.manifest(wanted.name, platform, place.resolve(wanted, platform))
        verified = _verify_published(console, manifest, place, trust)
    line = f"{verified.artifact} is signed by {', '.join(verified.signed_by)}"
    by = f"built by {verified.who}, {verified.time}"
    console.result(verified, lambda: [line, by])


def is_file_ref(ref: str) -> bool:
    """Whether a ref is the path of an archive or a manifest."""
    return ref.endswith((ARCHIVE_SUFFIX, MANIFEST_SUFFIX)) or "/" in ref


def load_signer(files: Iterable[Path]) -> Signer | None:
    """Read the keys to sign with: the files, else ENVFERRY_SIGN_KEY; None when there are none."""
    from envferry.trust.signing import parse_signing_key, read_signing_key

    keys = tuple(read_signing_key(path) for path in files)
    secret = settings().sign_key
    if not keys and secret:
        keys = (parse_signing_key(secret.reveal().encode(), "ENVFERRY_SIGN_KEY"),)
    if not keys:
        return None
    from envferry.trust.signing import Signer

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Signer(keys=keys, who=_who(), time=now.replace("+00:00", "Z"))


def load_trust(
    files: Iterable[Path],
    envs_dir: Path | None = None,
    *,
    allow_downgrade: bool = False,
    takes_in: bool = True,
) -> Trust:
    """Read the keys that this host trusts; `envs_dir` is where it remembers tags.

    Raises UsageError where signatures are required and no key is trusted, if the command takes
    artifacts in.
    """
    from envferry.trust.host_trust import Trust
    from envferry.trust.signing import read_trusted_keys

    here = settings()
    keys = read_trusted_keys(here.trusted_dir, files)
    context = click.get_current_context(silent=True)
    required_by = here.signatures_required_by()
    if context and context.meta.get(REQUIREMENT):
        required_by = "--require-signature"
    if takes_in and required_by and not keys:
        message = f"{required_by} demands signatures, and this host trusts no key to check them"
        hint = f"copy the public key to {here.trusted_dir}/NAME.pub, or name it: --trusted-key FILE"
        raise UsageError(message, hint=hint)
    return Trust(keys=keys, envs_dir=envs_dir, allow_downgrade=allow_downgrade)


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
    from envferry.trust.attestations import verify_attestation

    artifact, proof = read_artifact(path), read_proof(path)
    verified = verify_attestation(
        artifact.manifest, proof.manifest_data, proof.attestation, trust.keys
    )
    verify_artifact(artifact, progress=console.progress)
    with FileSource(artifact.archive_path) as source:
        check_manifest(Archive(source), artifact.manifest)
    return verified


def _verify_published(
    console: Console, manifest: Manifest, registry: Registry, trust: Trust
) -> VerifiedArtifact:
    from envferry.trust.attestations import verify_attestation

    proof = registry.proof(manifest)
    verified = verify_attestation(manifest, proof.manifest_data, proof.attestation, trust.keys)
    registry.verify_archive(manifest, progress=console.progress)
    registry.require_installable(manifest)
    return verified


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, from its first moment with the right mode."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        message = f"{path} exists and is never overwritten"
        raise TargetOccupied(message, hint="choose another name, or move it away") from error
    except FileNotFoundError as error:
        raise NotFound(f"the directory {path.parent} is not there") from error
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise HostError(message, hint="choose another place for it") from error
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
