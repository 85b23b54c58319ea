"""A spec in the making: what an importer found, and the text that it becomes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Literal

RelaxLevel = Literal["build", "patch", "all"]
PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+~^=<>!,;()*\[\]' -]*")
NOT_PLAIN = re.compile(r"[-?:]( |$)|.*(: |:$| #)|.*,\s*$|(?i:true|false|yes|no|on|off|null|~)$")
NUMBER = re.compile(r"[-+.\d][\d._eE+-]*|0[xo].*")
UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
EXACT = re.compile(
    r"(?P<name>(?:[^\s:]+::)?[A-Za-z0-9_][\w.-]*)"
    r"(?:=(?P<version>[^=<>!~*,|\s]+)(?:=(?P<build>[^=\s]+))?|==(?P<exact>[^=<>!~*,|\s]+))"
)
MINOR = re.compile(r"(\d+\.\d+)(\.[\w.+!]*)?")


@dataclass(slots=True, kw_only=True)
class Draft:
    """What is known of a spec that is to be written."""

    name: str
    channels: list[str] = field(default_factory=list)
    platforms: list[str] = field(default_factory=list)
    conda: list[str] = field(default_factory=list)
    pip: list[str] = field(default_factory=list)
    system: dict[str, str] = field(default_factory=dict)
    selectors: dict[str, str] = field(default_factory=dict)
    """Lines that are for one platform, with its selector."""
    notes: list[str] = field(default_factory=list)
    """What the importer changed or left out, for people."""


def render_draft(draft: Draft) -> str:
    """Write a draft as a spec."""
    lines = [f"name: {quoted(draft.name)}", "channels:"]
    lines += [f"  - {quoted(channel)}" for channel in draft.channels]
    if draft.platforms:
        lines += ["platforms:", *(f"  - {platform}" for platform in draft.platforms)]
    lines.append("dependencies:")
    lines += [f"  - {quoted(line)}{_selector(draft, line)}" for line in draft.conda]
    if draft.pip:
        lines += ["  - pip:"]
        lines += [f"      - {quoted(line)}{_selector(draft, line)}" for line in draft.pip]
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
    return f"{pin['name']}={version}" if pin["version"] else line


def _selector(draft: Draft, line: str) -> str:
    selector = draft.selectors.get(line)
    return f"  # [{selector}]" if selector else ""
