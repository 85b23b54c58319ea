"""What a line of the conda half asks for, as far as one must know before anything is solved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from envferry.lock.conda.repodata_text import name_of
from envferry.redaction import without_credentials
from envferry.specs.syntax.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE_URL = re.compile(
    r"(?P<channel>(?:https?|file)://[^\s\[\]#]+)/(?P<subdir>[a-z]+-[a-z0-9]+|noarch)/"
    r"(?P<file>[^/\s\[\]#]+\.(?:conda|tar\.bz2))(?:#(?:sha256:)?(?P<digest>[0-9a-fA-F]+))?"
)
FIELD = r"""\b{}\s*=\s*(?P<quote>['"]?)(?P<value>[^'"\],\s]+)(?P=quote)"""
URL_FIELD, CHANNEL_FIELD = (re.compile(FIELD.format(name)) for name in ("url", "channel"))
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SUBDIR = re.compile(r"/(?:noarch|(?:linux|osx|win|emscripten|wasi|freebsd|zos)-[a-z0-9]+)$")


class RequestedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a spec as rattler is to read it."""

    line: str
    """As people wrote it, for errors."""
    spec: str
    name: str
    """The package, in lower case; empty when the line names none."""
    channel: str = ""
    """The channel that it must come from, with a login if the list of channels has one."""


def requested_package(line: str, channels: Sequence[str]) -> RequestedPackage:
    """Read a line; `channels` are those of the spec, with their logins."""
    before, bracket, fields = line.partition("[")
    prefix, colons, rest = before.rpartition("::")
    url = PACKAGE_URL.fullmatch(line.strip()) or _url_field(fields)
    if url:
        return _by_url(line, url, fields if "::" not in line and bracket else "", channels)
    named = NAME.match(rest.strip())
    name = named[0].lower() if named else ""
    # The subdir is taken off for the comparison only: rattler reads it before `::`, too.
    if colons:
        subdir = SUBDIR.search(prefix)
        base = prefix[: subdir.start()] if subdir else prefix
        channel = known_channel(base, channels)
        spec = f"{channel.rstrip('/')}{subdir[0] if subdir else ''}::{rest}{bracket}{fields}"
        return RequestedPackage(line=line, spec=spec, name=name, channel=channel)
    if found := CHANNEL_FIELD.search(fields):
        channel = known_channel(found["value"], channels)
        fields = f"{fields[: found.start()]}channel='{channel}'{fields[found.end() :]}"
        return RequestedPackage(line=line, spec=f"{before}[{fields}", name=name, channel=channel)
    return RequestedPackage(line=line, spec=line, name=name)


def is_exact(line: str) -> bool:
    """Whether a line names one version and build, as exported files do."""
    parsed = parse_conda_line(line)
    if parsed is None or not parsed.build or "*" in parsed.build:
        return False
    return parsed.version.startswith("==") or parsed.version[:1].isdigit()


def known_channel(text: str, channels: Sequence[str]) -> str:
    """Return a channel as the list of channels has it, with its login; else as it stands."""
    bare = text.rstrip("/")
    for channel in channels:
        if bare in (channel.rstrip("/"), without_credentials(channel).rstrip("/")):
            return channel
    # What conda-lock passes on: of a URL, the last part.
    ending = f"/{bare}"
    listed = (item for item in channels if without_credentials(item).rstrip("/").endswith(ending))
    return next(listed, text) if "://" not in text else text


def _url_field(fields: str) -> re.Match[str] | None:
    found = URL_FIELD.search(fields)
    return PACKAGE_URL.fullmatch(found["value"]) if found else None


def _by_url(
    line: str, url: re.Match[str], fields: str, channels: Sequence[str]
) -> RequestedPackage:
    """Read a line that names one file: it is looked up in the index of its channel."""
    channel = known_channel(url["channel"], channels)
    place = f"{without_credentials(channel).rstrip('/')}/{url['subdir']}/{url['file']}"
    parts = [f'url="{place}"', f'channel="{channel}"']
    if digest := url["digest"]:
        parts.append(f'{"sha256" if len(digest) == 64 else "md5"}="{digest.lower()}"')
    # `url` and `channel` stand above in full; what else stood in brackets stays.
    others = URL_FIELD.sub("", CHANNEL_FIELD.sub("", fields)).rstrip("] ").strip(", ")
    name = name_of(url["file"])
    spec = f"{name}[{', '.join([*parts, *([others] if others else [])])}]"
    return RequestedPackage(line=line, spec=spec, name=name.lower(), channel=channel)
