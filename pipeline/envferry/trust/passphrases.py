"""What unlocks a key: a variable, a file, or an answer at the terminal."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Protocol

from envferry.base.inputs import open_input
from envferry.config import KEY_PASSPHRASE, settings
from envferry.errors import NotFound, UsageError

TERMINAL = Path("/dev/tty")
MOST_BYTES = 1023
"""OpenSSL encrypts with no longer passphrase."""


class PassphrasePrompt(Protocol):
    """Asks for a passphrase."""

    def __call__(self, what: str) -> str:
        """Return what unlocks `what`; raise UsageError where it cannot be asked for."""


def find_passphrase(what: str) -> str:
    """Return the passphrase of a key, or the PIN of a token, that `what` names in the question.

    ENVFERRY_KEY_PASSPHRASE says it, else the file of the setting `key_passphrase_file`, else who
    sits at the terminal. Raises UsageError where there is none and for one that no key can have,
    NotFound for a missing file.
    """
    here = settings()
    if here.key_passphrase:
        return _checked(here.key_passphrase.reveal(), KEY_PASSPHRASE)
    if here.key_passphrase_file:
        return read_passphrase(here.key_passphrase_file, "correct the setting key_passphrase_file")
    return _checked(ask_passphrase(what), "what was typed")


def new_passphrase(what: str) -> str:
    """Return a passphrase for a new key: as `find_passphrase`, but asked for twice.

    Raises UsageError for an empty one, and for two that differ.
    """
    here = settings()
    # A variable or a file is not retyped: only what was typed blind can be mistyped unseen.
    asks = not (here.key_passphrase or here.key_passphrase_file)
    found = find_passphrase(what)
    if not found:
        message = f"the passphrase for {what} is empty"
        raise UsageError(message, hint="leave --passphrase out for a key without one")
    if asks and ask_passphrase(f"{what}, again") != found:
        message = f"the two passphrases for {what} differ: no key was made"
        raise UsageError(message, hint="run the command again")
    return found


def read_passphrase(path: Path, hint: str) -> str:
    """Return the first line of a file, without its end; `hint` says where the file was named."""
    try:
        with open_input(path) as stream:
            # Three more: a line end of two bytes, and one to notice that it is too long.
            line = stream.readline(MOST_BYTES + 3).removesuffix(b"\n").removesuffix(b"\r").decode()
    except FileNotFoundError as error:
        message = f"the file of the passphrase, {path}, does not exist"
        raise NotFound(message, hint=hint) from error
    except (OSError, UnicodeDecodeError):
        # Without the cause: its text could repeat a part of the secret.
        message = f"cannot read the file of the passphrase, {path}, as text"
        raise UsageError(message, hint="check its permissions, and that it is UTF-8") from None
    return _checked(line, f"the first line of {path}")


def _checked(text: str, source: str) -> str:
    """Return a passphrase that keys can have; raise UsageError for another one."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        # Without the cause, which holds the secret.
        message = f"{source} is not UTF-8: no passphrase"
        raise UsageError(message, hint="set a UTF-8 locale and type it again") from None
    if len(data) > MOST_BYTES:
        message = f"{source} has more than {MOST_BYTES} bytes: no key has such a passphrase"
        raise UsageError(message, hint="is it a key, or a whole file? Give its passphrase")
    return text


def ask_passphrase(what: str) -> str:
    """Ask at the terminal, where what is typed is not shown; raise UsageError without one."""
    hint = f"set {KEY_PASSPHRASE}, or key_passphrase_file in a settings file"
    try:
        # getpass would fall back to stdin, and show what is typed, or read what a pipe says.
        with TERMINAL.open("r+b", buffering=0):
            pass
    except OSError as error:
        message = f"{what} asks for a passphrase, but this process has no terminal"
        raise UsageError(message, hint=hint) from error
    try:
        return getpass.getpass(f"Passphrase for {what}: ")
    except EOFError as error:
        message = f"no passphrase for {what} was typed"
        raise UsageError(message, hint=hint) from error
    except UnicodeDecodeError:
        # Without the cause, which holds the secret.
        message = f"the passphrase for {what} was not typed in this terminal's encoding"
        raise UsageError(message, hint="set a UTF-8 locale and type it again") from None
