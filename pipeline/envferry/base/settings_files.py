"""Reading settings, and who said what.

Files of TOML, the least important first: /etc/envferry/config.toml, then the user's. Variables win
over files, and the command line over all.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.file_owners import who_else_may_change
from envferry.base.inputs import without_waiting
from envferry.base.settings_table import LINKS, SETTINGS, SYSTEM_FILE, Setting, Value, ValueKind
from envferry.errors import SpecError
from envferry.suggestions import closest, is_nearly, perhaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
VARIABLES = "ENVFERRY_"
DEFAULT = "default"
IS_SET = "(set)"
"""What is shown of a secret."""


class SettingValue(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a setting, and what says so."""

    value: Value
    source: str
    """`default`, the name of a variable, or `FILE:LINE`."""

    @property
    def set_by(self) -> str:
        """The source of a value that is not the default; else empty."""
        return "" if self.source == DEFAULT else self.source


def read_settings(environ: Mapping[str, str], files: Iterable[Path]) -> dict[str, SettingValue]:
    """Return the value of every setting, by key.

    Raises SpecError, with the place, for a value that is not valid, for a key that is unknown, for
    a variable that looks like a misspelled one, and for a file that others may write.
    """
    _refuse_misspelled(environ)
    told = {one.key: SettingValue(value=one.default, source=DEFAULT) for one in SETTINGS}
    for path in files:
        told.update(_merged(told, read_file(path)))
    from_variables = {}
    for one in SETTINGS:
        text = environ.get(one.variable, "")
        if text:
            value = IS_SET if one.kind == "secret" else _parse(one, text)
            from_variables[one.key] = SettingValue(value=value, source=one.variable)
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


def _merged(
    told: Mapping[str, SettingValue], newer: Mapping[str, SettingValue]
) -> dict[str, SettingValue]:
    """Return what counts of what a more important place says."""
    return {
        key: one
        for key, one in newer.items()
        # Whoever requires signatures has the last word.
        if not (key == "require_signatures" and told[key].value is True)
    }


def read_file(path: Path) -> dict[str, SettingValue]:
    """Return what one settings file says, by key; nothing where there is none."""
    try:
        # Opening a pipe must not wait for a writer.
        with open(path, "rb", opener=without_waiting) as stream:
            # Of the open file: what is judged is what is read.
            _refuse_writable(path, os.fstat(stream.fileno()))
            text = stream.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        # Never the system's file: what it requires must not be skipped because it cannot be
        # reached.
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
        found[key] = SettingValue(value=_check(known[key], value, place), source=place)
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
    # tomllib does not tell on which line a key stands.
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
        "gigabytes": (int, "a number of gigabytes"),
        "paths": (list, "a list of paths"),
    }
    kind, expected = wanted.get(setting.kind, (str, "a quoted string"))
    # In Python true is an int: `min_speed = true` is not 1.
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
    full = os.path.expanduser(text)  # noqa: PTH111  (the string is otherwise unchanged)
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
    elif setting.kind in ("number", "days", "gigabytes"):
        is_right = bool(re.fullmatch(r"[0-9]{1,12}", stripped))
        what = "bytes per second" if setting.kind == "number" else setting.kind
        value, expected = int(stripped) if is_right else 0, f"a number of {what}"
    elif setting.kind == "umask":
        is_right, expected = bool(re.fullmatch(r"0?[0-7]{1,3}", stripped)), "a umask such as 022"
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
