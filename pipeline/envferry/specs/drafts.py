"""A spec in the making: what an importer found, and the text that it becomes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.specs.syntax.selectors import SELECTORS, is_selected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEFT_OUT_MARK = "# Not carried over: "
"""What starts a comment on a line of the source that the spec does not have: lint counts them."""
PLATFORM_SELECTORS = {
    "linux-64": "linux64",
    "linux-aarch64": "aarch64",
    "linux-ppc64le": "ppc64le",
    "osx-64": "osx64",
    "osx-arm64": "arm64",
}
RelaxLevel = Literal["build", "patch", "all"]
PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+~^=<>!,;()*\[\]' -]*")
# What YAML 1.1 would read as a list, a mapping, a comment, a boolean or null.
NOT_PLAIN = re.compile(r"[-?:]( |$)|.*(: |:$| #)|.*,\s*$|(?i:true|false|yes|no|on|off|null|~)$")
# Numbers and dates: other tools would read `3.10` as 3.1.
NUMBER = re.compile(r"[-+.\d][\d._eE+-]*|0[xo].*")
# What YAML takes for a line break, or does not allow unescaped (YAML 1.2, 5.1).
UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
EXACT = re.compile(
    r"(?P<name>(?:[^\s:]+::)?[A-Za-z0-9_][\w.-]*)"
    r"(?:=(?P<version>[^=<>!~*,|\s]+)(?:=(?P<build>[^=\s]+))?|==(?P<exact>[^=<>!~*,|\s]+))"
)
MINOR = re.compile(r"(\d+\.\d+)(\.[\w.+!]*)?")


class SpecDraft(msgspec.Struct, kw_only=True):
    """What is known of a spec that is to be written."""

    name: str
    channels: list[str] = msgspec.field(default_factory=list)
    platforms: list[str] = msgspec.field(default_factory=list)
    conda: list[str] = msgspec.field(default_factory=list)
    pip: list[str] = msgspec.field(default_factory=list)
    system: dict[str, str] = msgspec.field(default_factory=dict)
    conda_selectors: dict[str, str] = msgspec.field(default_factory=dict)
    """Lines of the conda half that are for some platforms, with their selector."""
    pip_selectors: dict[str, str] = msgspec.field(default_factory=dict)
    notes: list[str] = msgspec.field(default_factory=list)
    """What people should know of the source."""
    left_out: list[str] = msgspec.field(default_factory=list)
    """What the source says and the spec does not, each with the reason."""

    def add_conda(self, lines: Mapping[str, Iterable[str]]) -> None:
        """Add conda lines by platform; those that are not for all get a selector."""
        _add(self.conda, self.conda_selectors, lines)

    def add_pip(self, lines: Mapping[str, Iterable[str]]) -> None:
        """Add pip lines by platform; those that are not for all get a selector."""
        _add(self.pip, self.pip_selectors, lines)


def render_draft(draft: SpecDraft) -> str:
    """Write a draft as a spec."""
    lines = [left_out_comment(item) for item in draft.left_out]
    lines += [f"name: {quoted(draft.name)}", "channels:"]
    lines += [f"  - {quoted(channel)}" for channel in draft.channels]
    if draft.platforms:
        lines += ["platforms:", *(f"  - {platform}" for platform in draft.platforms)]
    lines.append("dependencies:")
    lines += [f"  - {quoted(line)}{_suffix(draft.conda_selectors, line)}" for line in draft.conda]
    if draft.pip:
        lines += ["  - pip:"]
        lines += [
            f"      - {quoted(line)}{_suffix(draft.pip_selectors, line)}" for line in draft.pip
        ]
    if draft.system:
        lines += ["envferry:", "  system:"]
        lines += [f'    {name}: "{version}"' for name, version in sorted(draft.system.items())]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Write a scalar so that YAML reads it as this very text."""
    if PLAIN.fullmatch(text) and not NOT_PLAIN.match(text) and not NUMBER.fullmatch(text):
        return text
    # A JSON string is a double-quoted YAML scalar.
    return UNPRINTABLE.sub(lambda at: f"\\u{ord(at[0]):04x}", json.dumps(text, ensure_ascii=False))


def relaxed(line: str, level: RelaxLevel | None) -> str:
    """Loosen a conda pin: drop its build, keep major.minor of its version, or drop both."""
    pin = EXACT.fullmatch(line.strip()) if level else None
    if not pin:
        return line
    version = pin["version"] or pin["exact"]
    if level == "all":
        return pin["name"]
    minor = MINOR.fullmatch(version)
    if level == "patch" and minor:
        return f"{pin['name']}={minor[1]}.*"
    # `NAME==1.2` has no build that could be dropped.
    return f"{pin['name']}={version}" if pin["version"] else line


def left_out_comment(text: str) -> str:
    """Return the comment on what a spec does not have of its source."""
    return LEFT_OUT_MARK + " ".join(UNPRINTABLE.sub("?", text).split())


def _add(target: list[str], selectors: dict[str, str], lines: Mapping[str, Iterable[str]]) -> None:
    """Add each line once, with the selector of the platforms that have it."""
    by_line: dict[str, list[str]] = {}
    for platform, items in lines.items():
        for line in items:
            by_line.setdefault(line, []).append(platform)
    for line, platforms in by_line.items():
        if line not in target:
            target.append(line)
        # A line of all platforms needs no selector.
        if {*platforms} != {*lines}:
            selectors[line] = _selector_of({*platforms}, {*lines})


def _selector_of(chosen: set[str], all_platforms: set[str]) -> str:
    """Return the shortest selector that tells some platforms from the others."""
    rest = all_platforms - chosen
    if len(chosen) == 1:
        # Never `not linux64` for osx-64 alone: the spec may be locked for osx-arm64 later.
        return PLATFORM_SELECTORS[next(iter(chosen))]
    if len(rest) == 1:
        return f"not {PLATFORM_SELECTORS[rest.pop()]}"
    for name in ("linux", "osx"):
        if {item for item in all_platforms if is_selected(name, item)} == chosen:
            return name
    return " or ".join(PLATFORM_SELECTORS[item] for item in SELECTORS if item in chosen)


def _suffix(selectors: dict[str, str], line: str) -> str:
    return f"  # [{selectors[line]}]" if line in selectors else ""
