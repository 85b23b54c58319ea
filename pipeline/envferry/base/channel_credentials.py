"""The credentials file of rattler and pixi: logins of conda channels by host.

Its form, and which entry a host gets, are those of rattler's `rattler_networking`:
https://github.com/conda/rattler, `src/authentication_storage`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.http_login import HttpLogin, warn_if_readable
from envferry.base.json import decode_json
from envferry.base.secret import Secret
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger(__name__)

AUTH_FILE = "RATTLER_AUTH_FILE"
USUAL_FILE = ".rattler/credentials.json"
HEADER_TEXT = re.compile(r"[\x21-\x7e]+")
"""What may stand in a header, without spaces."""


def credentials_paths(environ: Mapping[str, str], home: str | None) -> tuple[Path, ...]:
    """Return where rattler and pixi keep logins, the file that counts first in front."""
    places = (environ.get(AUTH_FILE, ""), f"{home}/{USUAL_FILE}" if home else "")
    return tuple(dict.fromkeys(Path(place) for place in places if place))


def read_credentials(path: Path) -> dict[str, HttpLogin]:
    """Return the logins in a credentials file by host, or `*.HOST`; none where there is no file.

    Raises SpecError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        log.info("%s is not there", path)
        return {}
    except OSError as error:
        message = f"the credentials file {path} cannot be read: {error.strerror}"
        raise SpecError(message, hint=f"correct its mode and owner, or {AUTH_FILE}") from error
    try:
        entries = decode_json(data, dict[str, Any])
    except msgspec.MsgspecError:  # whose words may repeat a token
        message = f"the credentials file {path} is not JSON with an entry for each host"
        raise SpecError(message, hint=_write_again(path)) from None
    warn_if_readable(path)
    return {
        # Host names have no case (RFC 3986, 3.2.2).
        host.lower(): login
        for host, entry in entries.items()
        if (login := _read_entry(host, entry, path)) is not None
    }


def wildcards(host: str) -> Iterator[str]:
    """Yield the entries besides its own that a host may have, the closest first.

    `*.prefix.dev` is also for prefix.dev itself. Addresses have none.
    """
    if re.fullmatch(r"[\d.]+|.*:.*", host):
        return
    labels = host.split(".")
    for number in range(len(labels)):
        yield f"*.{'.'.join(labels[number:])}"


def _read_entry(host: str, entry: object, path: Path) -> HttpLogin | None:
    """Return the login of a host; None for a kind that channels on web servers do not have."""
    # An entry has one key, its kind: that is how serde writes an enum of Rust.
    kind, value = next(iter(entry.items())) if isinstance(entry, dict) and entry else ("", None)
    if kind == "BearerToken" and isinstance(value, str) and HEADER_TEXT.fullmatch(value):
        return HttpLogin(form="bearer", secret=Secret(value), source=str(path))
    if kind == "CondaToken" and isinstance(value, str) and value:
        return HttpLogin(form="conda_token", secret=Secret(value), source=str(path))
    if kind == "BasicHTTP" and isinstance(value, dict):
        user, password = value.get("username"), value.get("password")
        if isinstance(user, str) and isinstance(password, str):
            return HttpLogin.basic(user, password, str(path))
    # Such as S3Credentials, which rattler keeps in the same file.
    if kind not in ("", "BearerToken", "CondaToken", "BasicHTTP"):
        log.debug("%s: the %s of %s is not used", path, kind, host)
        return None
    message = f"the entry of {host} in the credentials file {path} is not valid"
    raise SpecError(message, hint=_write_again(path))


def _write_again(path: Path) -> str:
    return f"correct it, or remove {path} and log in again with `pixi auth login HOST`"
