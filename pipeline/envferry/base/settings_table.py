"""Every setting of envferry: its key in a file, its variable, its default; and who sets it.

Files of TOML, the least important first: /etc/envferry/config.toml, then the user's. Variables win
over files, and the command line over all.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from envferry.base.inputs import without_waiting
from envferry.errors import SpecError
from envferry.suggestions import closest, is_nearly, perhaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SYSTEM_FILE = Path("/etc/envferry/config.toml")
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
LINKS = ("auto", "reflink", "hardlink", "copy")
OTHERS_WRITE, GROUP_WRITES = stat.S_IWOTH, stat.S_IWGRP
VARIABLES = "ENVFERRY_"
DEFAULT = "default"
MOST_LINKS = 40
"""Linux follows no more in one path."""
IS_SET = "(set)"
"""What is shown of a secret."""

ValueKind = Literal["text", "path", "paths", "flag", "number", "days", "umask", "link", "secret"]
Value = str | bool | int | tuple[str, ...] | None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    key: str
    """In a file; one that no file may have is known by its variable only."""
    variable: str
    kind: ValueKind
    help: str
    default: Value = None
    shown_default: str = ""
    option: str = ""
    in_files: bool = True


SETTINGS = (
    Setting(
        key="registry",
        variable="ENVFERRY_REGISTRY",
        kind="text",
        default="./artifacts",
        option="--registry",
        help="Where artifacts live: a directory, `s3://bucket/prefix` or `https://…`.",
    ),
    Setting(
        key="envs_dir",
        variable="ENVFERRY_ENVS_DIR",
        kind="path",
        default="/opt/conda/envs",
        option="--envs-dir",
        help="The directory that holds this host's environments.",
    ),
    Setting(
        key="trusted_dir",
        variable="ENVFERRY_TRUSTED_DIR",
        kind="path",
        default="/etc/envferry/trusted.d",
        option="--trusted-key adds to it",
        help="The directory of the public keys (`*.pub`) that this host trusts.",
    ),
    Setting(
        key="require_signatures",
        variable="ENVFERRY_REQUIRE_SIGNATURES",
        kind="flag",
        default=False,
        option="--require-signature",
        help="Accept nothing unsigned. True in one place is true: no other place revokes it.",
    ),
    Setting(
        key="tag_grace_days",
        variable="ENVFERRY_TAG_GRACE_DAYS",
        kind="days",
        default=14,
        help="How many days a signed tag is taken, with a warning, after it has expired.",
    ),
    Setting(
        key="link",
        variable="ENVFERRY_LINK",
        kind="link",
        default="auto",
        option="--link",
        help="How installations share files: `auto`, `reflink`, `hardlink` or `copy`.",
    ),
    Setting(
        key="umask",
        variable="ENVFERRY_UMASK",
        kind="umask",
        shown_default="that of the process",
        help='The umask to work with, in octal as text: `"022"`. Files of an environment have the '
        "archive's modes whatever it is.",
    ),
    Setting(
        key="post_install_hooks",
        variable="ENVFERRY_POST_INSTALL_HOOKS",
        kind="paths",
        default=(),
        shown_default="none",
        help="Programs to run when an environment was installed, rolled back or removed, with the "
        "arguments EVENT (`install`, `rollback`, `remove`), NAME, ID, PREFIX; only root or the "
        "user who runs envferry may be able to change them. The variable separates by `:`.",
    ),
    Setting(
        key="kernel_dir",
        variable="ENVFERRY_KERNEL_DIR",
        kind="path",
        option="--kernel",
        shown_default="none",
        help="Every environment with ipykernel gets a Jupyter kernel in this directory.",
    ),
    Setting(
        key="modulefile_dir",
        variable="ENVFERRY_MODULEFILE_DIR",
        kind="path",
        option="--modulefile",
        shown_default="none",
        help="Every environment gets a modulefile (Lmod, Environment Modules) in this directory.",
    ),
    Setting(
        key="report_to",
        variable="ENVFERRY_REPORT_TO",
        kind="text",
        shown_default="none",
        help="The registry that learns what this host has installed (`envferry fleet`): a "
        "directory or `s3://bucket/prefix`; this host must be allowed to write to `v1/hosts` "
        "there.",
    ),
    Setting(
        key="cache",
        variable="ENVFERRY_CACHE",
        kind="path",
        shown_default="`$XDG_CACHE_HOME/envferry`, else `~/.cache/envferry`",
        help="Downloads, builds and indexes; safe to delete.",
    ),
    Setting(
        key="min_speed",
        variable="ENVFERRY_MIN_SPEED",
        kind="number",
        default=1024,
        help="Bytes per second: a server that sends less for half a minute is given up; 0 for any.",
    ),
    Setting(
        key="sigstore_root",
        variable="ENVFERRY_SIGSTORE_ROOT",
        kind="path",
        shown_default="the one that sigstore's own package has",
        help="A Sigstore `trusted_root.json`, for the attestations of pip packages.",
    ),
    Setting(
        key="audit_database",
        variable="ENVFERRY_AUDIT_DATABASE",
        kind="path",
        option="--database",
        shown_default="`audit/advisories.json.zst` in the cache",
        help="The database of advisories that `envferry audit update` makes.",
    ),
    Setting(
        key="allow_races",
        variable="ENVFERRY_ALLOW_RACES",
        kind="flag",
        default=False,
        help="Write to object storage that ignores conditions on writes. The site sees to it that "
        "only one command writes at a time.",
    ),
    Setting(
        key="sign_key",
        variable="ENVFERRY_SIGN_KEY",
        kind="secret",
        shown_default="none",
        option="--sign-key",
        help="A private key in PEM, for CI, or the name of one: `ssh:…`, `pkcs11:…`. Never in a"
        " file.",
        in_files=False,
    ),
    Setting(
        key="key_passphrase",
        variable="ENVFERRY_KEY_PASSPHRASE",
        kind="secret",
        shown_default="asked at the terminal",
        help="The passphrase of a key to sign with, or the PIN of a token. Never in a file of"
        " settings.",
        in_files=False,
    ),
    Setting(
        key="key_passphrase_file",
        variable="ENVFERRY_KEY_PASSPHRASE_FILE",
        kind="path",
        shown_default="none",
        help="A file whose first line is that passphrase or PIN.",
    ),
    Setting(
        key="tool_dir",
        variable="ENVFERRY_TOOL_DIR",
        kind="path",
        shown_default="see docs/one-file.md",
        help="Where the one file `envferry.run` unpacks itself.",
        in_files=False,
    ),
    Setting(
        key="run_file",
        variable="ENVFERRY_RUN_FILE",
        kind="path",
        shown_default="set by `envferry.run`",
        help="The one file that was started, which hints and systemd units then name.",
        in_files=False,
    ),
    Setting(
        key="config",
        variable="ENVFERRY_CONFIG",
        kind="path",
        shown_default="`$XDG_CONFIG_HOME/envferry/config.toml`, else in `~/.config/envferry`",
        help="The user's settings file. /etc/envferry/config.toml is read before it.",
        in_files=False,
    ),
)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a setting, and what says so."""

    value: Value
    source: str
    """`default`, the name of a variable, or `FILE:LINE`."""


def read_settings(environ: Mapping[str, str], files: Iterable[Path]) -> dict[str, Told]:
    """Return the value of every setting, by key.

    Raises SpecError, with the place, for a value that is not valid, for a key that is unknown, for
    a variable that looks like a misspelled one, and for a file that others may write.
    """
    _refuse_misspelled(environ)
    told = {one.key: Told(value=one.default, source=DEFAULT) for one in SETTINGS}
    for path in files:
        told.update(_merged(told, read_file(path)))
    from_variables = {}
    for one in SETTINGS:
        text = environ.get(one.variable, "")
        if text:
            value = IS_SET if one.kind == "secret" else _parse(one, text)
            from_variables[one.key] = Told(value=value, source=one.variable)
    return {**told, **_merged(told, from_variables)}


def _refuse_misspelled(environ: Mapping[str, str]) -> None:
    """Raise SpecError for a variable whose name is close to that of a setting.

    Whoever misspells the name of `require_signatures` believes that signatures are verified. Names
    that are close to none may be of a site's own.
    """
    known = {one.variable.removeprefix(VARIABLES): one.variable for one in SETTINGS}
    for variable in sorted(environ):
        if meant := _meant(variable, known):
            message = f"the variable {variable} is not a setting"
            hint = f"did you mean `{meant}`? Else unset {variable}, or give it another name"
            raise SpecError(message, hint=hint)


def _meant(variable: str, known: Mapping[str, str]) -> str:
    """Return the setting's variable that a name is a misspelling of; empty for other names.

    `ENVFERY_REGISTRY`, `ENV_FERRY_REGISTRY` and `envferry_registry` are some, too: there the rest
    is the very name of a setting.
    """
    if variable.startswith(VARIABLES):
        name = variable.removeprefix(VARIABLES)
        close = [] if name in known else closest(name, known)
        return known[close[0]] if close else ""
    upper = variable.upper()
    names = (name for name in known if upper.endswith(f"_{name}"))
    heads = {name: upper.removesuffix(f"_{name}").replace("_", "") for name in names}
    own = VARIABLES.rstrip("_")
    return next((known[name] for name, head in heads.items() if is_nearly(head, own)), "")


def _merged(told: Mapping[str, Told], newer: Mapping[str, Told]) -> dict[str, Told]:
    """Return what counts of what a more important place says."""
    return {
        key: one
        for key, one in newer.items()
        # Whoever requires signatures has the last word.
        if not (key == "require_signatures" and told[key].value is True)
    }


def read_file(path: Path) -> dict[str, Told]:
    """Return what one settings file says, by key; nothing where there is none."""
    try:
        # Nobody waits for a pipe.
        with open(path, "rb", opener=without_waiting) as stream:
            _refuse_writable(path, os.fstat(stream.fileno()))
            text = stream.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if path != SYSTEM_FILE and is_out_of_reach(path):
            return {}
        message = f"cannot read the settings in {path}: {error.strerror}"
        raise SpecError(message, hint="check its permissions, or remove it") from error
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8"
        raise SpecError(message, hint="save it as UTF-8") from error
    known = {one.key: one for one in SETTINGS if one.in_files}
    found = {}
    for key, value in _loads(text, path).items():
        place = f"{path}:{_line_of(text, key)}"
        if key not in known:
            raise _unknown(key, place, known)
        found[key] = Told(value=_check(known[key], value, place), source=place)
    return found


def is_out_of_reach(path: Path) -> bool:
    """Whether a folder above a file is closed to this user, who cannot say whether it exists.

    `su USER` leaves HOME at another user's directory: the settings in it are not theirs.
    """
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _refuse_writable(path: Path, status: os.stat_result) -> None:
    """Raise SpecError for a file that others could change: it decides what programs run here."""
    reason = who_else_may_change(path, status)
    if reason:
        message = f"the settings in {path} are refused: it {reason}"
        raise SpecError(message, hint=f"run `chmod go-w {path}`, and let root or you own it")


def who_else_may_change(path: Path, status: os.stat_result) -> str:
    """Say who may change a file but root and this user; nothing if nobody may.

    Root obeys only what nobody else may change.
    """
    user = os.geteuid()
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "is not a file"
    elif status.st_mode & OTHERS_WRITE:
        reason = "is writable by every user"
    elif status.st_uid not in (0, user):
        reason = f"belongs to the user {status.st_uid}, not to root or the user who runs envferry"
    elif user == 0 and status.st_mode & GROUP_WRITES and status.st_gid != 0:
        reason = f"can be written by the group {status.st_gid}, which root does not accept"
    return reason or who_may_replace(path)


def may_everybody_change(path: Path) -> str:
    """Say how everybody may change a file; nothing if not.

    Less strict than `who_else_may_change`: in a container, root reads files that belong to the user
    who mounted them.
    """
    if path.stat().st_mode & OTHERS_WRITE:
        return "is writable by every user"
    for folder in deciding_folders(path):
        if is_open_to_everybody(folder.stat()):
            return f"lies in {folder}, where every user can replace it"
    return ""


def deciding_folders(path: Path) -> tuple[Path, ...]:
    """Return the folders that a path leads through, the nearest first: also those of its links.

    Whoever may change one of them decides which file the path means.
    """
    found: dict[Path, None] = {}
    here, links = Path("/"), 0
    left = [*reversed(path.absolute().parts[1:])]
    while left:
        part = left.pop()
        if part == "..":
            here = here.parent
            continue
        found[here] = None
        place = here / part
        if place.is_symlink() and links < MOST_LINKS:
            links += 1
            target = place.readlink()
            here = Path("/") if target.is_absolute() else here
            left += [one for one in reversed(target.parts) if one != "/"]
        else:
            here = place
    return tuple(reversed(found))


def is_open_to_everybody(status: os.stat_result) -> bool:
    """Whether everybody may put other files in the place of those in a folder."""
    return bool(status.st_mode & OTHERS_WRITE) and not status.st_mode & stat.S_ISVTX


def who_may_replace(path: Path) -> str:
    """Say who may put something else in the place of a file, by one of the folders above it."""
    for folder in deciding_folders(path):
        status = folder.stat()
        if is_open_to_everybody(status):
            return f"lies in {folder}, where every user can replace it"
        if os.geteuid() == 0 and status.st_uid != 0:
            return f"lies in {folder}, which belongs to the user {status.st_uid}, not to root"
    return ""


def _loads(text: str, path: Path) -> dict[str, Any]:
    """Parse TOML."""
    from envferry.base.toml import TomlFault, decode_toml

    try:
        return decode_toml(text)
    except TomlFault as error:
        message = f"{path} is not TOML: {error}"
        raise SpecError(message, hint="docs/settings.md has an example") from error


def _line_of(text: str, key: str) -> int:
    """Return the line on which a key of the top level first stands."""
    pattern = re.compile(rf"""\s*\[?\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    numbered = enumerate(text.splitlines(), 1)
    return next((number for number, line in numbered if pattern.match(line)), 1)


def _unknown(key: str, place: str, known: Mapping[str, Setting]) -> SpecError:
    message = f"{place}: unknown setting `{key}`{perhaps(key, known)}"
    return SpecError(message, hint=f"the settings are {', '.join(known)}")


def _check(setting: Setting, value: object, place: str) -> Value:
    """Return a value from a file; raise SpecError for one of another type."""
    wanted: dict[ValueKind, tuple[type, str]] = {
        "flag": (bool, "true or false"),
        "number": (int, "a number of bytes per second"),
        "days": (int, "a number of days"),
        "paths": (list, "a list of paths"),
    }
    kind, expected = wanted.get(setting.kind, (str, "a text in quotes"))
    is_right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not is_right:
        message = f"{place}: {setting.key} is {value!r}, expected {expected}"
        raise SpecError(message, hint=f"correct {setting.key} there")
    if isinstance(value, list):
        return tuple(_path(str(one), setting.key, place) for one in value)
    if isinstance(value, str):
        text = _parse(setting, value, place)
        is_path = setting.kind == "path" or (setting.key == "registry" and "://" not in value)
        return _path(value, setting.key, place) if is_path else text
    assert isinstance(value, bool | int)
    return value


def _path(text: str, key: str, place: str) -> str:
    """Return a path of a file; a relative one would be another in each directory."""
    full = os.path.expanduser(text)  # noqa: PTH111  (a text comes out as it went in)
    if not full.startswith("/"):
        message = f"{place}: {key} is {text!r}, expected an absolute path"
        raise SpecError(message, hint="start it with / or ~/")
    return full


def _parse(setting: Setting, text: str, place: str = "") -> Value:
    """Return what the text of a variable or of a key means; raise SpecError for nonsense."""
    where, name = (f"{place}: ", setting.key) if place else ("", setting.variable)
    stripped = text.strip()
    expected = ""
    value: Value = text
    if setting.kind == "flag":
        value, expected = stripped.lower() in YES, "1 or 0"
        is_right = stripped.lower() in (*YES, *NO)
    elif setting.kind in ("number", "days"):
        is_right = bool(re.fullmatch(r"[0-9]{1,12}", stripped))
        what = "days" if setting.kind == "days" else "bytes per second"
        value, expected = int(stripped) if is_right else 0, f"a number of {what}"
    elif setting.kind == "umask":
        is_right, expected = bool(re.fullmatch(r"0?[0-7]{1,3}", stripped)), "an umask such as 022"
        value = stripped
    elif setting.kind == "link":
        is_right, expected = stripped in LINKS, f"one of {', '.join(LINKS)}"
        value = stripped
    elif setting.kind == "paths":
        value, is_right = tuple(filter(None, stripped.split(":"))), True
    else:
        is_right = True
    if not is_right:
        message = f"{where}{name} is {text!r}, expected {expected}"
        raise SpecError(message, hint=f"correct {name}" + (" there" if place else ", or unset it"))
    return value
