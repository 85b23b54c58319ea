"""Commands and options about keys and signatures: keygen, and `verify` of artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.errors import HostError, NotFound, TargetOccupied, UsageError
from envferry.names import Ref

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.trust.host_trust import Trust


class KeygenOptions(CommandOptions):
    """What to call the pair of keys."""

    name: Path = argument(type=click.Path(path_type=Path))
    passphrase: bool = option(
        "--passphrase",
        is_flag=True,
        help="Encrypt NAME.key with a passphrase: ENVFERRY_KEY_PASSPHRASE, its file, or asked for.",
    )
    of: str = option(
        "--of",
        default="",
        metavar="KEY",
        help="Make no pair: write NAME.pub of a key that is elsewhere (`ssh:…`, `pkcs11:…`, FILE).",
    )


@command(KeygenOptions)
def keygen(console: Console, options: KeygenOptions) -> None:
    """Generate a pair of keys: NAME.key signs and stays secret, NAME.pub verifies.

    Hosts trust the keys in /etc/envferry/trusted.d: copy NAME.pub there.
    """
    from envferry.trust.passphrases import new_passphrase
    from envferry.trust.signing import generate_key, parse_public_key

    private, public = Path(f"{options.name}.key"), Path(f"{options.name}.pub")
    if options.of:
        _write_public(console, options, public)
        return
    secret, known = generate_key(new_passphrase(str(private)) if options.passphrase else "")
    _write_new(private, secret, 0o600)
    _write_new(public, known, 0o644)
    facts = {"private": private, "public": public, "id": parse_public_key(known, str(public)).id}
    lines = [f"{private}  signs: keep it secret", f"{public}  verifies: copy it to the hosts"]
    console.result(facts, lambda: lines)


def _write_public(console: Console, options: KeygenOptions, public: Path) -> None:
    """Write the public half of a key that an agent, a token or a file holds."""
    from envferry.trust.key_locations import open_signing_key
    from envferry.trust.signing import pem_of

    if options.passphrase:
        message = "--passphrase and --of cannot be combined: the key already exists"
        raise UsageError(message, hint="leave one of them out")
    found = open_signing_key(options.of).public
    _write_new(public, pem_of(found.key), 0o644)
    facts = {"private": options.of, "public": public, "id": found.id}
    lines = [f"{options.of}  signs", f"{public}  verifies: copy it to the hosts"]
    console.result(facts, lambda: lines)


class SignedRef(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact whose signatures are to be verified."""

    ref: str
    platform: str
    registry: str


def verify_ref(console: Console, wanted: SignedRef, trust: Trust) -> None:
    """Verify the signatures of an artifact in a registry or on a disk, and read all of its bytes.

    So too the `tool/` of an export, and the one-file tool: they are code that hosts run.
    """
    from envferry.install.image import is_image, read_image
    from envferry.registry.accepted_sources import (
        is_file_ref,
        open_trusting,
        verify_signed,
        verify_signed_file,
    )
    from envferry.trust.image_signature import verify_image
    from envferry.trust.tool_signature import is_run_file, is_tool, verify_run_file, verify_tool

    path = Path(wanted.ref)
    is_for_keys = is_tool(path) or is_run_file(path) or is_image(path)
    if not (trust.keys if is_for_keys else trust.if_any):
        message = f"{wanted.ref}: signature not verified (no trusted keys)"
        hint = "name one with --trusted-key FILE.pub; `envferry check --bytes` needs none"
        raise UsageError(message, hint=hint)
    tool_keys = trust.keys_for("tool")
    if is_tool(Path(wanted.ref)):
        verified = verify_tool(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_run_file(Path(wanted.ref)):
        verified = verify_run_file(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_image(Path(wanted.ref)):
        trust.forbid_revoked_index(read_image(Path(wanted.ref)).index)
        least = trust.least_for("release")
        verified = verify_image(Path(wanted.ref), trust.keys_for("release"), least=least)
    elif is_file_ref(wanted.ref):
        verified = verify_signed_file(Path(wanted.ref), trust, progress=console.progress)
    else:
        ref, platform = Ref.parse(wanted.ref), wanted.platform
        place = open_trusting(wanted.registry, trust)
        manifest = place.manifest(ref.name, platform, place.resolve(ref, platform))
        verified = verify_signed(manifest, place, trust, progress=console.progress)
    line = f"{verified.artifact} is signed by {', '.join(verified.signed_by)}"
    by = f"built by {verified.who}, {verified.time}"
    console.result(verified, lambda: [line, by])


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
