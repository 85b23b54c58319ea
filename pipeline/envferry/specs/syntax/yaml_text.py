"""Parse YAML that people write: every scalar a string, every fault with its line."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from envferry.base.inputs import open_input
from envferry.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

# The largest real spec holds a few hundred lines; a file of this size is something else.
MAX_BYTES = 8 << 20
"""Of a spec: pins with the hashes of all their files take some kB for each package."""
MAX_DEPTH = 12
TOO_DEEP = "nests far deeper than any spec"
MAX_REPEATED = 10_000
"""Values that aliases may stand for: nine lines can mean billions."""
# Takes the byte order mark off, which Windows' editors write.
UTF_8 = "utf-8-sig"
BYTE_ORDER_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""How a file says its encoding, as pip and YAML know it; PowerShell's `>` writes UTF-16."""
KNOWN_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map", "int", "float"))

# No implicit types: `3.10` must not be the number 3.1, nor `no` a boolean.
Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Text(str):
    """A scalar as written, with the line it stands on."""

    __slots__ = ("line",)
    line: int

    @classmethod
    def at(cls, text: str, line: int) -> Text:
        """Make the scalar that stands on `line`, counted from 1."""
        value = cls(text)
        value.line = line
        return value


def line_of(value: object) -> int:
    """Return the line that a value parsed here starts on, 0 when it is not known."""
    return getattr(value, "line", 0)


class Mapping(dict[str, Any]):
    """A mapping with the line it starts on."""

    line = 0
    weight, depth = 1, 1


class Sequence(list[Any]):
    """A list with the line it starts on."""

    line = 0
    weight, depth = 1, 1


def count_values(value: Mapping | Sequence) -> None:
    """Note how many values a finished one holds, itself and what aliases repeat included."""
    parts = value.values() if isinstance(value, Mapping) else value
    inner = [part for part in parts if not isinstance(part, str)]
    # Of finished values only, so each is counted once and nothing recurses.
    value.weight = 1 + len(value) - len(inner) + sum(part.weight for part in inner)
    value.depth = 1 + max((part.depth for part in inner), default=0)


def plain(value: Any) -> Any:  # noqa: ANN401  (what YAML holds is what it holds)
    """Turn values parsed here into plain ones, without lines."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value)


def too_large(path: Path, max_bytes: int = MAX_BYTES) -> SpecError:
    """Return the error for a file that is larger than any that is meant."""
    message = f"{path} is larger than {max_bytes >> 20} MB, expected a YAML file of a few kB"
    return SpecError(message, hint="check that this is the file you meant")


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read a file that must be small text; raise SpecError when it is not."""
    with open_input(path) as stream:
        # One byte more than allowed: a device or a pipe has no size to look at.
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(path, max_bytes)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), UTF_8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != UTF_8:
            message = f"{path} begins as {encoding.upper()} text but is not"
            raise SpecError(message, hint="save the file as UTF-8") from error
        line = data.count(b"\n", 0, error.start) + 1
        message = (
            f"{path}:{line}: expected UTF-8 text, found the byte 0x{data[error.start]:02x} "
            f"at offset {error.start}"
        )
        raise SpecError(message, hint="save the file as UTF-8") from error
    if "\0" in text:
        message = f"{path} is a binary file, expected YAML text"
        raise SpecError(message, hint="check that this is the file you meant")
    return text


def parse_yaml(text: str, path: Path) -> Any:  # noqa: ANN401  (what YAML holds is what it holds)
    """Parse YAML into mappings, lists and scalars that know their lines; None when empty.

    Raises SpecError for what is not YAML, for duplicate keys and for absurd nesting. Reads events,
    not nodes: composing nodes recurses on the C stack and dies of 100,000 open brackets.
    """
    tree = _Tree(path=path)
    try:
        for event in yaml.parse(text, Loader=Loader):
            tree.take(event)
    except yaml.YAMLError as error:
        raise _explain(error, text, path) from error
    return tree.root


class _Tree(msgspec.Struct, kw_only=True):
    """Values grown from YAML events."""

    path: Path
    root: Any = None
    documents: int = 0
    repeated: int = 0
    anchors: dict[str, Any] = msgspec.field(default_factory=dict)
    open: list[Mapping | Sequence] = msgspec.field(default_factory=list)
    keys: list[Text | None] = msgspec.field(default_factory=list)
    """For each open value the key that waits for its value."""

    def take(self, event: yaml.Event) -> None:
        """Add what one event says."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in KNOWN_TAGS:
            raise self._fault(line, f"the tag `{tag}` is not supported", "leave it out")
        if isinstance(event, yaml.ScalarEvent):
            self._add(Text.at(event.value, line), event.anchor, line)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            value = Mapping() if isinstance(event, yaml.MappingStartEvent) else Sequence()
            value.line = line
            self._add(value, event.anchor, line)
            self.open.append(value)
            self.keys.append(None)
            if len(self.open) > MAX_DEPTH:
                raise self._fault(line, TOO_DEEP, "check the file")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            count_values(value := self.open.pop())
            self.keys.pop()
            # Aliases may nest more deeply than the text does.
            if value.depth > MAX_DEPTH:
                raise self._fault(line, TOO_DEEP, "check the file")
        elif isinstance(event, yaml.AliasEvent):
            self._repeat(str(event.anchor), line)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self._fault(line, "a second YAML document starts here", "keep one of them")

    def _repeat(self, anchor: str, line: int) -> None:
        """Add what an alias stands for."""
        if anchor not in self.anchors:
            raise self._fault(line, f"*{anchor} is not defined", "write it out")
        value = self.anchors[anchor]
        # By identity: an equal value elsewhere is not a cycle.
        if any(value is holder for holder in self.open):
            raise self._fault(line, f"*{anchor} refers to itself", "write it out")
        self.repeated += getattr(value, "weight", 1)
        if self.repeated > MAX_REPEATED:
            problem = f"aliases repeat more than {MAX_REPEATED:,} values, far more than any spec"
            raise self._fault(line, problem, "write it out")
        self._add(value, None, line)

    def _add(self, value: Any, anchor: str | None, line: int) -> None:  # noqa: ANN401
        if anchor:
            self.anchors[anchor] = value
        if not self.open:
            self.root = value
            return
        parent = self.open[-1]
        if isinstance(parent, Sequence):
            parent.append(value)
        # In a mapping, keys and values come in turns.
        elif self.keys[-1] is not None:
            parent[self.keys[-1]] = value
            self.keys[-1] = None
        elif not isinstance(value, Text):
            hint = "quote the key; in the place of a template (`{{ name }}`) write the value itself"
            raise self._fault(line, "expected a key, found a list or mapping", hint)
        elif value in parent:
            raise self._fault(line, f"the key `{value}` is repeated", "keep one of them")
        else:
            self.keys[-1] = value

    def _fault(self, line: int, problem: str, hint: str) -> SpecError:
        return SpecError(f"{self.path}:{line}: {problem}", hint=hint)


def _explain(error: yaml.YAMLError, text: str, path: Path) -> SpecError:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = str(getattr(error, "problem", "") or error).splitlines()[0]
    hint = "correct that line"
    # libyaml's own limit, since 0.2.6: it looks ahead of the events.
    if "nesting depth" in problem:
        return SpecError(f"{place}: {TOO_DEEP}", hint="check the file")
    lines = text.splitlines()
    if mark and mark.line < len(lines) and lines[mark.line].lstrip(" ").startswith("\t"):
        problem, hint = "a tab indents this line, YAML allows only spaces", "use spaces"
    elif "==" in text and "dependencies" not in text:
        hint = f"if it is a requirements.txt, run `envferry import {path}`"
    elif re.match(r"\s*\[[\w.-]+\]\s*$", lines[0] if lines else ""):
        hint = f"if it is a pyproject.toml or a pixi.toml, run `envferry import {path}`"
    return SpecError(f"{place}: expected YAML: {problem}", hint=hint)
