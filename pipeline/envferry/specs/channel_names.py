"""Where a channel is that goes by a name: the spec's own table, then conda's `.condarc`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.errors import SpecError
from envferry.redaction import without_credentials
from envferry.specs.channel_variables import with_variables
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from envferry.models import ChannelPriority

PRIORITY_WORDS: dict[ChannelPriority, tuple[str, ...]] = {
    "strict": ("strict",),
    "flexible": ("flexible", "true", "yes", "on"),
    "disabled": ("disabled", "false", "no", "off"),
}
"""What conda reads them from."""

# Only conda's own servers may be left out of a channel's name: on any other, a channel of the same
# name is another channel.
DEFAULT_PARTS = re.compile(
    r"https?://repo\.(anaconda|continuum)\.(com|io)/pkgs/(main|r|free|msys2)"
)
NAMED_CHANNEL = re.compile(r"https?://conda\.anaconda\.org/(?P<name>[^/]+(/label/[^/]+)?)")


class ChannelNames(msgspec.Struct, frozen=True, kw_only=True):
    """What names of channels stand for; names that are not here are left to the solver."""

    own: dict[str, str] = msgspec.field(default_factory=dict)
    """The spec's `envferry: channels:`, which wins."""
    mirrored: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """`mirrored_channels`: the mirrors of each, of which the first is taken."""
    custom: dict[str, str] = msgspec.field(default_factory=dict)
    """`custom_channels`: the URL that the name comes after."""
    defaults: tuple[str, ...] = ()
    """`default_channels`: what `defaults` stands for."""
    alias: str | None = None
    """`channel_alias`: the URL that every other name comes after."""
    priority: ChannelPriority | None = None
    """`channel_priority`: whether channels behind the first that has a name count."""

    def with_mirrors_that(
        self, answers: Callable[[str], bool], used: Iterable[str]
    ) -> ChannelNames:
        """Drop the mirrors before the first that answers; where none does, the first stays.

        Only those of the channels `used` are asked, and only where there are several.
        """
        mirrored = dict(self.mirrored)
        for name in {*used} & {*mirrored}:
            mirrors = mirrored[name]
            # A single mirror is taken whether it answers or not, so it is not asked.
            places = mirrors if mirrors[1:] else ()
            first = next((place for place in places if answers(with_variables(place))), mirrors[0])
            mirrored[name] = mirrors[mirrors.index(first) :]
        return replace(self, mirrored=mirrored)

    def resolve(self, channels: Iterable[str]) -> tuple[str, ...]:
        """Return names, URLs and paths with every known name replaced, each once.

        Raises SpecError for variables in URLs that have no value; see `with_variables`.
        """
        found: list[str] = []
        for channel in channels:
            # The one name that stands for several channels.
            if channel == "defaults" and self.defaults and channel not in self.own:
                found += [self._place(part) for part in self.defaults]
            else:
                found.append(self._place(channel))
        return tuple(dict.fromkeys(found))

    def resolve_spec(self, match_spec: str) -> str:
        """Replace the name before `::` in a match spec."""
        channel, colons, rest = match_spec.partition("::")
        return f"{self._place(channel)}::{rest}" if colons else match_spec

    def _place(self, name: str) -> str:
        return with_variables(self._written_place(name))

    def _written_place(self, name: str) -> str:
        # Before the check for URLs and paths: the spec's own table wins for whatever it has.
        if name in self.own:
            return self.own[name]
        if _is_place(name):
            return name
        if name in self.mirrored:
            return self.mirrored[name][0]
        # By its first part: `NAME/label/dev` lies below the URL of NAME.
        base = self.custom.get(name.split("/", maxsplit=1)[0]) or self.alias
        # conda's own name for several channels is not below the alias.
        if base and (name != "defaults" or name in self.custom):
            return f"{base.rstrip('/')}/{name}"
        return name


def channel_name(url: str) -> str:
    """Return the short name of a channel that is one of conda's own servers, else its URL."""
    url = without_credentials(url)
    bare = url.rstrip("/")
    if DEFAULT_PARTS.fullmatch(bare):
        return "defaults"
    named = NAMED_CHANNEL.fullmatch(bare)
    return named["name"] if named else url


def read_channel_names(condarcs: Iterable[Path], own: dict[str, str]) -> ChannelNames:
    """Read conda's settings files, of which the later ones win; raise SpecError for bad ones."""
    names = ChannelNames(own=dict(own))
    for path in condarcs:
        names = _with_condarc(names, path)
    return names


def _with_condarc(names: ChannelNames, path: Path) -> ChannelNames:
    # An empty .condarc is as good as none.
    root = parse_yaml(read_text(path), path)
    if root is None:
        return names
    if not isinstance(root, Mapping):
        msg = f"{path} is not a mapping, expected conda settings"
        raise SpecError(msg, hint="correct it")
    mirrors = _table(root, "mirrored_channels", path)
    alias = root.get("channel_alias")
    return ChannelNames(
        own=names.own,
        mirrored={**names.mirrored, **{name: _urls(item, path) for name, item in mirrors.items()}},
        custom={**names.custom, **_texts(_table(root, "custom_channels", path), path)},
        defaults=_list(root, "default_channels", path) or names.defaults,
        alias=str(alias) if isinstance(alias, Text) and alias else names.alias,
        priority=_priority(root, path) or names.priority,
    )


def _priority(root: Mapping, path: Path) -> ChannelPriority | None:
    """Read `channel_priority`, of which older condas know only true and false."""
    value = root.get("channel_priority", "")
    if value == "":
        return None
    for priority, words in PRIORITY_WORDS.items():
        if str(value).lower() in words:
            return priority
    message = f"{path}:{line_of(value)}: `channel_priority: {value}` is not valid"
    raise SpecError(message, hint="write strict, flexible or disabled")


def _is_place(channel: str) -> bool:
    return "://" in channel or channel.startswith((".", "~", "/"))


def _table(root: Mapping, key: str, path: Path) -> Mapping:
    value = root.get(key, "")
    if value == "":
        return Mapping()
    if not isinstance(value, Mapping):
        msg = f"{path}:{line_of(value)}: `{key}` is not a mapping"
        raise SpecError(msg, hint="correct it")
    return value


def _texts(table: Mapping, path: Path) -> dict[str, str]:
    return {name: _urls(item, path)[0] for name, item in table.items()}


def _urls(value: object, path: Path) -> tuple[str, ...]:
    """Return a URL, or a list of URLs."""
    items = [*value] if isinstance(value, Sequence) and value else [value]
    for item in items:
        if not isinstance(item, Text) or not item:
            msg = f"{path}:{line_of(value)}: expected a URL"
            raise SpecError(msg, hint="correct it")
    return tuple(map(str, items))


def _list(root: Mapping, key: str, path: Path) -> tuple[str, ...]:
    value = root.get(key, "")
    if value == "":
        return ()
    if not isinstance(value, Sequence):
        msg = f"{path}:{line_of(value)}: `{key}` is not a list"
        raise SpecError(msg, hint="correct it")
    return tuple(str(item) for item in value)
