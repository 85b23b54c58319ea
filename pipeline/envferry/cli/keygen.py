"""The command keygen: a pair of keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.errors import HostError, NotFound, TargetOccupied, UsageError

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


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
        help="Generate no pair: write NAME.pub for an existing key (`ssh:…`, `pkcs11:…`, FILE).",
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
