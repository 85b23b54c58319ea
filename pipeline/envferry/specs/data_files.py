"""What `envferry: data:` may say: files that come with an environment and are in no package."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envferry.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import DataFile, SpecOptions

SHA256 = re.compile(r"[0-9a-f]{64}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SCHEMES = ("http", "https", "file")
RESERVED = ("conda-meta", ".envferry")
"""Folders in which tools expect nothing but their own files."""


def check_data(options: SpecOptions, path: Path) -> None:
    """Raise SpecError, with the thing, for data that cannot be carried; `path` is the spec's."""
    targets: set[str] = set()
    set_before = set(options.variables)
    for item in options.data:
        where = f"{path}: `{item.path or item.url}` under `envferry: data:`"
        fault, hint = _fault(item)
        if not fault and item.path in targets:
            fault, hint = "is listed twice", "give each file a `path:` of its own"
        for name in item.variables:
            if not fault and name in set_before:
                fault, hint = f"sets {name}, which is set already", "set it in one place"
        if fault:
            msg = f"{where} {fault}"
            raise SpecError(msg, hint=hint)
        targets.add(item.path)
        set_before.update(item.variables)


def _fault(item: DataFile) -> tuple[str, str]:
    """Return what is wrong with one file, and what would be right; two empty texts if nothing."""
    if not SHA256.fullmatch(item.sha256):
        hint = "write the 64 hex digits that `sha256sum FILE` prints"
        return f"has the sha256 {item.sha256!r}", hint
    if not _is_inside(item.path) or item.path.split("/")[0] in RESERVED:
        return "is not a path inside the environment", "write one such as share/tiktoken/NAME"
    parts = urlsplit(item.url)
    if "://" in item.url and parts.scheme not in SCHEMES:
        return f"comes from {parts.scheme}://", f"use one of {', '.join(SCHEMES)}, or a path"
    if parts.username is not None and "://" in item.url:
        return "has a login in its url", "leave it out: a login belongs in ~/.netrc"
    if not item.url or item.url.endswith("/"):
        return "has a url that names no file", "write the URL or the path of a file"
    for name, value in item.variables.items():
        if not VARIABLE.fullmatch(name):
            return f"sets {name!r}, which is not a variable", "write a name such as NLTK_DATA"
        # `.` is the environment's own folder.
        if value != "." and not _is_inside(value):
            hint = "write a path relative to the environment, such as share/nltk_data"
            return f"sets {name} to {value!r}", hint
    return "", ""


def _is_inside(path: str) -> bool:
    """Whether a relative path stays where it starts, in its plainest form."""
    parts = path.split("/")
    # One spelling for each path: `a//b` or `a/./b` would pass for another file than `a/b`.
    is_plain = all(part not in ("", ".", "..") for part in parts)
    return is_plain and path.isprintable() and "\\" not in path
