"""The package indexes that a machine's settings name: uv's and pip's, variables and files.

https://pip.pypa.io/en/stable/topics/configuration/,
https://docs.astral.sh/uv/concepts/configuration-files/. What else stands there is skipped: a
lock depends on what its spec asks for.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAIN, EXTRA = "index-url", "extra-index-url"
DECIDING = (
    "constraint",
    "find-links",
    "no-binary",
    "no-deps",
    "no-index",
    "only-binary",
    "pre",
    "prefer-binary",
)
"""Settings of pip that change what is chosen, and are ignored."""
UV_MAIN = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
UV_EXTRA = ("UV_INDEX", "UV_EXTRA_INDEX_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIndex:
    """One index, and who names it."""

    url: str = field(repr=False)
    """May hold a login."""
    source: str
    """A variable or a file."""


class SiteIndexes(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked where a spec names no index of its own."""

    main: SiteIndex | None = None
    """Instead of the public one."""
    extra: tuple[SiteIndex, ...] = ()
    """Beside the main one."""
    passed_over: tuple[str, ...] = ()
    """Settings that are ignored, each with its source."""


class _Found(msgspec.Struct):
    """What one source says."""

    source: str
    main: str = ""
    extra: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_site_indexes(environ: Mapping[str, str], home: Path | None) -> SiteIndexes:
    """Read the settings of uv, then of pip; of each, the earlier source wins.

    A file that cannot be read is skipped: who starts a command may not be its author.
    """
    sources = [
        _uv_variables(environ),
        *(_uv_file(path) for path in _uv_files(environ, home)),
        _pip_variables(environ),
        *(_pip_file(path) for path in _pip_files(environ, home)),
    ]
    main = next((SiteIndex(url=one.main, source=one.source) for one in sources if one.main), None)
    extra: dict[str, SiteIndex] = {}
    passed_over = [item for one in sources for item in one.passed_over]
    for one in sources:
        for url in one.extra:
            if _is_local(url):
                passed_over.append(f"{EXTRA} {url} ({one.source})")
            else:
                extra.setdefault(url, SiteIndex(url=url, source=one.source))
    return SiteIndexes(
        main=main, extra=tuple(extra.values()), passed_over=tuple(dict.fromkeys(passed_over))
    )


def plain_url(text: str) -> str:
    """Return the URL of an index without the name that uv allows before it: `mine=https://…`."""
    return re.sub(r"^[\w.-]+=(?=\w+://)", "", text)


def _is_local(url: str) -> bool:
    """Whether an index is on the disk: a lock with its URLs would be for this machine alone."""
    return urlsplit(plain_url(url)).scheme not in ("http", "https")


def _uv_variables(environ: Mapping[str, str]) -> _Found:
    named = next((name for name in UV_MAIN if environ.get(name)), "")
    extra = [(name, word) for name in UV_EXTRA for word in environ.get(name, "").split()]
    # They are uv's own, and stay in its environment: folders, too.
    words = tuple(word for _, word in extra if not _is_local(word))
    names = dict.fromkeys([*([named] if named else []), *(name for name, _ in extra)])
    return _Found(", ".join(names), environ.get(named, ""), words)


def _uv_files(environ: Mapping[str, str], home: Path | None) -> Iterator[Path]:
    if config := _config_home(environ, home):
        yield config / "uv/uv.toml"
    for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"):
        yield Path(folder) / "uv/uv.toml"
    yield Path("/etc/uv/uv.toml")


def _uv_file(path: Path) -> _Found:
    found = _Found(str(path))
    try:
        # Imported here: a Python 3.10 without tomli cannot, and skips the file.
        from envferry.base.toml import decode_toml

        content = decode_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return found
    except (OSError, ValueError, ModuleNotFoundError) as error:
        found.passed_over = (f"all of it, which cannot be read: {error} ({path})",)
        return found
    pip = content.get("pip")
    for table in (pip if isinstance(pip, dict) else {}, content):
        # `[pip]` comes first: uv lets its settings win over those of the top level.
        found.main = found.main or str(table.get(MAIN, ""))
        found.extra = (*found.extra, *_texts(table.get(EXTRA)))
    for item in _tables(content.get("index")):
        url = str(item.get("url", ""))
        if item.get("default"):
            found.main = url
        # An explicit index is only for the packages that `tool.uv.sources` binds to it.
        elif not item.get("explicit") and url:
            found.extra = (*found.extra, url)
    known = {MAIN, EXTRA, "index"}
    names = {*content, *(f"pip.{name}" for name in (pip if isinstance(pip, dict) else {}))}
    rest = sorted(name for name in names if name.removeprefix("pip.") not in known | {"pip"})
    found.passed_over = tuple(f"{name} ({path})" for name in rest)
    return found


def _pip_variables(environ: Mapping[str, str]) -> _Found:
    values = {
        name.removeprefix("PIP_").lower().replace("_", "-"): (text, name)
        for name, text in environ.items()
        if name.startswith("PIP_") and text
    }
    main, extra = values.get(MAIN, ("", "")), values.get(EXTRA, ("", ""))
    source = ", ".join(name for _, name in (main, extra) if name)
    passed_over = tuple(f"{key} ({name})" for key, (_, name) in values.items() if key in DECIDING)
    return _Found(source, main[0], tuple(extra[0].split()), passed_over)


def _pip_files(environ: Mapping[str, str], home: Path | None) -> Iterator[Path]:
    """Yield pip's settings files, the strongest first."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == "/dev/null":  # pip then reads none
        return
    if named:
        yield Path(named)
    # pip reads global, user, then site files, and the last one wins: here the strongest is first.
    yield Path(sys.prefix) / "pip.conf"
    if config := _config_home(environ, home):
        yield config / "pip/pip.conf"
    if home:
        yield home / ".pip/pip.conf"
    yield Path("/etc/pip.conf")
    for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
        yield Path(folder) / "pip/pip.conf"


def _pip_file(path: Path) -> _Found:
    import configparser

    found = _Found(str(path))
    parser = configparser.RawConfigParser()
    try:
        if not path.is_file():
            return found
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # configparser's messages have several lines.
        words = " ".join(str(error).split())
        found.passed_over = (f"all of it, which cannot be read: {words} ({path})",)
        return found
    values: dict[str, str] = {}
    for section in ("global", "install"):  # what is of one command is stronger
        if parser.has_section(section):
            items = parser.items(section)
            values.update({key.replace("_", "-").lstrip("-"): text for key, text in items})
    found.main = values.get(MAIN, "").strip()
    found.extra = tuple(values.get(EXTRA, "").split())
    found.passed_over = tuple(f"{key} ({path})" for key in sorted(values) if key in DECIDING)
    return found


def _texts(value: object) -> Iterable[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _tables(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _config_home(environ: Mapping[str, str], home: Path | None) -> Path | None:
    """Return where a user's settings are; None for a user without a home."""
    if named := environ.get("XDG_CONFIG_HOME"):
        return Path(named)
    return home / ".config" if home else None
