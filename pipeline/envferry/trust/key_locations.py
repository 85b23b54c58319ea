"""Keys that sign, wherever they are: in a file, an ssh-agent, a PKCS #11 token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envferry.config import settings
from envferry.trust.passphrases import find_passphrase
from envferry.trust.pkcs11_token import SCHEME as PKCS11
from envferry.trust.pkcs11_token import open_token_key
from envferry.trust.signing import parse_signing_key, read_signing_key
from envferry.trust.ssh_agent import SCHEME as SSH
from envferry.trust.ssh_agent import open_agent_key

if TYPE_CHECKING:
    from envferry.trust.passphrases import PassphrasePrompt
    from envferry.trust.signing import SigningKey


def open_signing_key(name: str, ask: PassphrasePrompt = find_passphrase) -> SigningKey:
    """Open a key by its name on the command line: FILE, `ssh:…` or `pkcs11:…`.

    A file that is called like that is named with a folder: `./ssh:key`. Raises UsageError, NotFound
    or HostError, as the place has it.
    """
    if name.startswith(SSH):
        return open_agent_key(name, settings().ssh_agent)
    if name.startswith(PKCS11):
        return open_token_key(name, ask)
    return read_signing_key(Path(name), ask)


def open_told_key(text: str, source: str, ask: PassphrasePrompt = find_passphrase) -> SigningKey:
    """Open the key that a variable holds, or names; `source` is its name in errors."""
    name = text.strip()
    # Any other text is the key itself: CI services hand secrets over in variables.
    if name.startswith((SSH, PKCS11)):
        return open_signing_key(name, ask)
    return parse_signing_key(text.encode(), source, ask)
