"""The `# [linux]` comments by which a spec keeps a line for some platforms only.

The names and what joins them (`not`, `and`, `or`, brackets) are conda-build's:
https://docs.conda.io/projects/conda-build/en/latest/resources/define-metadata.html#preprocessing-selectors.
conda-lock by itself (its src_parser/selectors.py, 4.0.3) knows single names alone, without
`x86_64`, and leaves out a line with anything else. conda takes every comment for a comment, and
so do we where one holds no such names: `# see [1]`.
"""

from __future__ import annotations

import re

SELECTORS = {
    "linux-64": {"linux64", "unix", "linux", "x86_64"},
    "linux-aarch64": {"aarch64", "unix", "linux"},
    "linux-ppc64le": {"ppc64le", "unix", "linux"},
    "osx-64": {"osx64", "osx", "unix", "x86_64"},
    "osx-arm64": {"arm64", "osx", "unix"},
}
ELSEWHERE = ("win", "win32", "win64", "linux32")
"""What is true on no platform that envferry knows."""
KNOWN_SELECTORS = sorted({*(name for names in SELECTORS.values() for name in names), *ELSEWHERE})
OPERATORS = ("not", "and", "or", "(", ")")
SELECTED_LINE = re.compile(r".+?\s*#.*\[(?P<selector>[^\[\]]+)\][^()]*$")
ALONE = re.compile(r".+?\s#\s*\[(?P<selector>[^\[\]]+)\]\s*$")
WORD = re.compile(r"[()]|[^\s()]+")


def select_platform(text: str, platform: str) -> str:
    """Blank the lines that are not for `platform`; line numbers stay as they are."""
    return "\n".join(
        line if selector is None or is_selected(selector, platform) else ""
        for line, selector in _selected(text)
    )


def selector_lines(text: str) -> list[tuple[int, str, str]]:
    """Return the lines that carry a selector: number from 1, the line stripped, the selector."""
    return [
        (number, line.strip(), selector)
        for number, (line, selector) in enumerate(_selected(text), start=1)
        if selector is not None
    ]


def doubtful_comments(text: str) -> list[tuple[int, str]]:
    """Return comments that look like a selector and are none: number from 1, the bracket."""
    found = []
    for number, (line, selector) in enumerate(_selected(text), start=1):
        # Stricter than SELECTED_LINE: only a bracket that is the whole comment was meant as a
        # selector.
        alone = None if line.lstrip().startswith("#") else ALONE.fullmatch(line)
        if selector is None and alone:
            found.append((number, alone["selector"]))
    return found


def is_selected(selector: str, platform: str) -> bool:
    """Whether a selector holds on a platform; raise ValueError when it is malformed."""
    words = WORD.findall(selector)
    value = _any_of(words, SELECTORS.get(platform, set()))
    if words:
        msg = f"unexpected `{words[0]}`"
        raise ValueError(msg)
    return value


def _any_of(words: list[str], true: set[str]) -> bool:
    value = _all_of(words, true)
    while words and words[0] == "or":
        words.pop(0)
        # The words first: where `or` stops early, they would stay unread.
        value = _all_of(words, true) or value
    return value


def _all_of(words: list[str], true: set[str]) -> bool:
    value = _one(words, true)
    while words and words[0] == "and":
        words.pop(0)
        # The same for `and`.
        value = _one(words, true) and value
    return value


def _one(words: list[str], true: set[str]) -> bool:
    if not words:
        msg = "a name is missing at its end"
        raise ValueError(msg)
    word = words.pop(0)
    if word == "not":
        return not _one(words, true)
    if word != "(":
        if word in OPERATORS:
            msg = f"expected a name, found `{word}`"
            raise ValueError(msg)
        return word in true
    value = _any_of(words, true)
    if not words or words.pop(0) != ")":
        msg = "a `)` is missing"
        raise ValueError(msg)
    return value


def _selected(text: str) -> list[tuple[str, str | None]]:
    """Pair every line with its selector."""
    pairs: list[tuple[str, str | None]] = []
    # Not splitlines, which also splits at form feeds: line numbers must be those of YAML.
    for line in text.split("\n"):
        found = None if line.lstrip().startswith("#") else SELECTED_LINE.match(line)
        selector = found["selector"] if found else None
        pairs.append((line, selector if selector and _is_selector(selector) else None))
    return pairs


def _is_selector(text: str) -> bool:
    words = WORD.findall(text)
    names = [word for word in words if word not in OPERATORS]
    return bool(names) and all(word in KNOWN_SELECTORS for word in names)
