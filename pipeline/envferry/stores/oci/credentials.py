"""Logins of registries, as podman and docker keep them: auth.json, config.json, helpers.

https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md and
https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import TYPE_CHECKING

import msgspec

from envferry.base.inputs import read_input
from envferry.base.json import decode_json
from envferry.base.secret import Secret
from envferry.config import child_environ, registry_login_paths
from envferry.errors import SpecError, ToolFailed
from envferry.process import find_program, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

TOKEN_USER = "<token>"
"""The user's name that helpers give with what is an identity token (no secret of its own)."""
MOST_BYTES = 1 << 20
ASK_HELPER = 'printf "%s\\n" "$2" | "$1" get'


class Login(msgspec.Struct, frozen=True):
    """Who asks: a name and a password, or an identity token."""

    user: str = ""
    password: Secret = msgspec.field(default_factory=lambda: Secret(""))
    token: Secret | None = None
    """To be exchanged for tokens of the Bearer flow."""

    @property
    def basic(self) -> str:
        """The `Authorization` header of RFC 7617."""
        pair = f"{self.user}:{self.password.reveal()}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Entry] = msgspec.field(default_factory=dict)
    helpers: dict[str, str] = msgspec.field(default_factory=dict)
    store: str = ""


class _Answer(msgspec.Struct, frozen=True, rename={"user": "Username", "secret": "Secret"}):
    """What a credential helper prints."""

    user: str
    secret: str


def find_login(host: str, repository: str) -> Login | None:
    """Return the login for a repository from the first file that has one; None without one.

    Raises SpecError for a file or an entry that cannot be read, ToolFailed for a helper that is
    missing: an anonymous request would fail with a misleading error.
    """
    for path in registry_login_paths():
        if path.is_file() and (login := _find(_read(path), path, host, repository)):
            return login
    return None


def _read(path: Path) -> _File:
    try:
        return decode_json(read_input(path, MOST_BYTES), _File)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SpecError(message, hint="it holds the logins of registries") from error
    except msgspec.MsgspecError as error:
        # What is wrong is not repeated: it may be a password.
        message = f"{path} is not a file of registry logins"
        raise SpecError(message, hint="log in again with `podman login`") from error


def _find(file: _File, path: Path, host: str, repository: str) -> Login | None:
    # First, as for docker: a helper of this host wins over entries in the file.
    if helper := file.helpers.get(host):
        return _ask(helper, host)
    entries = {_plain(name): entry for name, entry in file.auths.items()}
    for name in _names(host, repository):
        entry = entries.get(name)
        if entry and (login := _login(entry, name, path)):
            return login
    # Last: an entry may be for one repository, a store knows hosts only.
    return _ask(file.store, host) if file.store else None


def _names(host: str, repository: str) -> Iterator[str]:
    """Yield what an entry for a repository may be called, the narrowest first."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((host, *parts[:count]))
    yield host


def _plain(name: str) -> str:
    """Return an entry's name without what docker once wrote around it."""
    plain = name.removeprefix("https://").removeprefix("http://").rstrip("/")
    return plain.removesuffix("/v1").removesuffix("/v2")


def _login(entry: _Entry, name: str, path: Path) -> Login | None:
    if entry.identitytoken:
        return Login(token=Secret(entry.identitytoken))
    if entry.username:
        return Login(entry.username, Secret(entry.password))
    if not entry.auth:
        return None  # docker leaves such entries for what a helper keeps
    try:
        user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeError):
        colon = ""
    # A user name has no colon (RFC 7617, 2), a password may have several.
    if not colon:
        message = f"the entry for {name} in {path} is not a login"
        raise SpecError(message, hint=f"log in again with `podman login {name}`")
    # docker strips NULs from what it decodes, too.
    return Login(user, Secret(password.strip("\0")))


def _ask(helper: str, host: str) -> Login | None:
    """Ask a credential helper; None when it has nothing for that registry."""
    name = f"docker-credential-{helper}"
    program = find_program(name)
    if program is None:
        message = f"{name} is not installed, which keeps the login of {host}"
        raise ToolFailed(message, hint="install it, or log in with `podman login`")
    # By a shell, for the helper reads the host from stdin, and not from its arguments.
    found = run(
        ("/bin/sh", "-c", ASK_HELPER, "sh", program, host), env=child_environ(), check=False
    )
    if found.returncode:
        log.info("%s has no login for %s", name, host)
        return None
    try:
        answer = decode_json(found.stdout, _Answer)
    except msgspec.MsgspecError as error:
        message = f"{name} answered with something that is not a login of {host}"
        raise ToolFailed(message, hint="log in again with `podman login`") from error
    if answer.user == TOKEN_USER:
        return Login(token=Secret(answer.secret))
    return Login(answer.user, Secret(answer.secret))
