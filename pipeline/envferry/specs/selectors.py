"""The `# [linux]` comments by which a spec keeps a line for some platforms only.

The same few that conda-lock knows (its src_parser/selectors.py), which had them from conda-build.
"""

from __future__ import annotations

import re

SELECTORS = {
    "linux-64": {"linux64", "unix", "linux"},
    "linux-aarch64": {"aarch64", "unix", "linux"},
    "linux-ppc64le": {"ppc64le", "unix", "linux"},
    "osx-64": {"osx64", "osx", "unix"},
    "osx-arm64": {"arm64", "osx", "unix"},
}
KNOWN_SELECTORS = sorted(
    {*(name for names in SELECTORS.values() for name in names), "win", "win64"}
)
SELECTED_LINE = re.compile(r".+?\s*#.*\[(?P<selector>[^\[\]]+)\][^()]*$")


def select_platform(text: str, platform: str) -> str:
    """Blank the lines that are not for `platform`; line numbers stay as they are."""
    accepted = SELECTORS.get(platform, set())
    return "\n".join(
        "" if selector is not None and selector not in accepted else line
        for line, selector in _selected(text)
    )


def selector_lines(text: str) -> list[tuple[int, str, str]]:
    """Return the lines that carry a selector: number from 1, the line stripped, the selector."""
    return [
        (number, line.strip(), selector)
        for number, (line, selector) in enumerate(_selected(text), start=1)
        if selector is not None
    ]


def _selected(text: str) -> list[tuple[str, str | None]]:
    """Pair every line with its selector."""
    pairs: list[tuple[str, str | None]] = []
    for line in text.split("\n"):
        found = None if line.lstrip().startswith("#") else SELECTED_LINE.match(line)
        pairs.append((line, found["selector"] if found else None))
    return pairs
