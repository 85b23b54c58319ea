"""What envferry says to people: plain, in the field's words, with the thing's name in it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parents[1] / "pipeline/envferry"
BAD = {
    r"\b(no|some|any|every)body\b": "say who: `not verified`, `another process`, `every user`",
    r"\b(is|are) no (?!longer\b)[a-zA-Z]": "`is not a valid X`, `is not an X`, `has no X`",
    r"\bno such\b": "name the thing: `X does not exist`",
    r"\bthere (is|are|was|were) no\b": "name the thing first: `X does not exist`, `X has no Y`",
    r"\bmend(s|ed|ing)?\b": "`fix`, `correct`, `repair`",
    r"\b(artifacts?|bytes|files?) (came|went)\b|\b(is|are) there already\b": "`received`, `added`",
    r"\bmay this user\b": "`check that this user can`",
    r"\bask who\b": "`ask the administrator of`, `ask the person who`",
    r"\b(shall|needs? not|whence|whither|lest|anew)\b": "the English of today",
    r"\bwith this\b.*\bno other\b": "say what it does",
    r"\bpass(ed|es)? over\b": "`skipped`, `ignored`",
    r"\bobey(s|ed)?\b": "`ignored`, `honours`, `supports`, `uses`",
    r"\bdo(es)? not go together\b|\bexclude each other\b": "`cannot be combined`",
    r"\b[Hh]olds? [^.,]*\bagainst\b": "`check X against Y`",
    r"\ba text\b|\btexts\b": "`a string`",
    r"\b(say|says|know|knows) nothing (of|about)\b": "`X has no Y`",
    r"\b(who|user|this process) may\b": "`can`, `is allowed to`",
    r"\bfrom nothing\b": "`from scratch`",
    r"\bthe (build|lock|one|version) before\b": "`the previous build`",
    r"\bbreaks? off\b": "`is truncated`, `is interrupted`",
    r"\ban umask\b": "`a umask`",
}
"""Patterns that no message has, each with what to write instead."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that may be shown: all but docstrings, with `{}` for values."""
    tree = ast.parse(path.read_text())
    docstrings, parts = set(), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a statement that is a text documents what stands before it
            docstrings |= {id(item.value) for item in body if isinstance(item, ast.Expr)}
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        if id(node) in docstrings | parts:
            continue
        if isinstance(node, ast.JoinedStr):
            pieces = (getattr(value, "value", "") for value in node.values)
            yield node.lineno, "".join(str(x) if isinstance(x, str) else "{}" for x in pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def command_helps(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of commands, which are their help texts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any(
            "command" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            yield node.lineno, ast.get_docstring(node) or ""


def test_messages_are_said_plainly() -> None:
    found = [
        f"{path.name}:{line}: {text!r}: {better}"
        for path in sorted(SOURCES.rglob("*.py"))
        for line, text in [*texts(path), *command_helps(path)]
        if " " in text
        for pattern, better in BAD.items()
        if re.search(pattern, text)
    ]
    assert not found


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_say_it_plainly(path: Path) -> None:
    said = re.findall(r"(?:printf|fail|echo) (['\"].*)", path.read_text())
    assert said
    assert not [line for line in said if any(re.search(pattern, line) for pattern in BAD)]


@pytest.mark.parametrize(
    "said",
    [
        "nobody checks who made demo",
        "`x` is no platform",
        "no such file",
        "there is no policy here",
        "mend it",
        "1 artifact came",
        "ask who runs it",
        "a line of it is passed over",
        "`x` is not obeyed",
        "--a and --b do not go together",
        "a folder that this user may write to",
        "built from nothing",
    ],
)
def test_what_is_forbidden_is_found(said: str) -> None:
    assert any(re.search(pattern, said) for pattern in BAD)


BAD_IN_PROSE = {
    r"(?i)\b(no|some|every|any)body\b": "say who: `another process`, `every user`, `no host`",
    r"(?i)\bobey(s|ed|ing)?\b": "`uses`, `honours`, `supports`",
    r"(?i)\bpass(ed|es|ing)? over\b": "`skipped`, `ignored`",
    r"(?i)\bfrom nothing\b": "`from scratch`",
    r"(?i)\bmend(s|ed|ing)?\b": "`fix`, `repair`",
    r"(?i)\b(anew|lest|whence|whither|shall)\b": "the English of today",
    r"\b(came|went) (in|to) (this|the|its|their) (registry|host)\b": "`was published`, `got to`",
}
"""Patterns that neither docstrings, comments nor the documentation have."""


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page without its code, or the docstrings and comments of a module."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
        text = re.sub(r"`[^`\n]*`|\]\([^)\n]*\)", "", text)
        yield from enumerate(text.splitlines(), 1)
        return
    docstrings = {
        node.value.lineno: node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
    }
    yield from docstrings.items()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


PAGES = [
    path
    for path in (*SOURCES.parents[1].glob("*.md"), *(SOURCES.parents[1] / "docs").rglob("*.md"))
    if "zh" not in path.parts and not path.name.endswith(".zh.md")
]


def test_prose_is_of_today() -> None:
    assert PAGES
    found = [
        f"{path.name}:{line}: {found[0]!r}: {better}"
        for path in (*sorted(SOURCES.rglob("*.py")), *PAGES)
        for line, text in prose(path)
        for pattern, better in BAD_IN_PROSE.items()
        if (found := re.search(pattern, text))
    ]
    assert not found
