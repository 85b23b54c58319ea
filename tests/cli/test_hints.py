"""Every command that a message names can be typed: it exists, with its options and arguments."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from envferry.cli.main import envferry
from envferry.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parents[2] / "pipeline/envferry"
COMMAND = re.compile(r"(?P<run>\brun )?`envferry (?P<words>[a-z][^`>|]*)[^`]*`")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
UNKNOWN = "12"
"""Stands for what a message fills in: a number is a name, a path and a count."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A command in backticks."""

    place: str
    words: str
    is_instruction: bool
    """Whether it is to be typed as it stands; else it may only be mentioned."""


def texts_of(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield the texts of a module: its line, and whether it is a docstring.

    What is filled in becomes a word.
    """
    skipped = set()
    for node in ast.walk(tree):
        first = node.body[:1] if isinstance(node, DOCUMENTED) else []
        for statement in first:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                skipped.add(id(statement.value))
                yield statement.lineno, str(statement.value.value), True
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = (
                str(part.value) if isinstance(part, ast.Constant) else UNKNOWN
                for part in node.values
            )
            yield node.lineno, "".join(parts), False
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            yield node.lineno, str(node.value), False


def named_commands() -> Iterator[Named]:
    """Yield the commands in backticks in all messages and docstrings."""
    for path in sorted(SOURCES.rglob("*.py")):
        for line, text, is_docstring in texts_of(ast.parse(path.read_text())):
            for found in COMMAND.finditer(" ".join(text.split())):
                has_words = not re.fullmatch(r"[a-z ]+", found["words"])
                yield Named(
                    place=f"{path.relative_to(SOURCES)}:{line}",
                    words=found["words"],
                    is_instruction=not is_docstring and bool(found["run"] or has_words),
                )


def complaint(words: list[str], *, is_instruction: bool = True) -> str:
    """Return what the command line says of words before it runs anything; nothing if they fit."""
    context = click.Context(envferry, info_name="envferry", **envferry.context_settings)
    try:
        _, found, words = envferry.resolve_command(context, words)
        assert found is not None
        if isinstance(found, click.Group):
            default = getattr(found, "default_command", "")
            name = words[0] if words and words[0] in found.commands else default
            if not name:
                return f"{found.name} needs a command" if is_instruction else ""
            words = words[1:] if words and words[0] == name else words
            found = found.commands[name]
        found.make_context(found.name, list(words), parent=context)
    except click.exceptions.Exit:  # of --help
        return ""
    except click.MissingParameter as error:
        return error.format_message() if is_instruction else ""
    except (click.NoSuchOption, click.BadOptionUsage, UsageError) as error:
        return str(error)
    except (click.BadParameter, PipelineError):
        return ""  # a placeholder where a choice or a number is wanted
    except click.UsageError as error:
        return error.format_message()
    return ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("install demo@stable", ""),
        ("audit --tagged", ""),
        ("qqq demo", "not a command"),
        ("install", "Missing argument"),
        ("push demo --sign-key", "requires an argument"),
        ("list --nothing", "No such option"),
    ],
)
def test_what_cannot_be_typed_is_found(line: str, expected: str) -> None:
    said = complaint(shlex.split(line))
    assert expected in said if expected else not said


def test_commands_in_messages_can_be_typed() -> None:
    found = list(named_commands())
    assert sum(one.is_instruction for one in found) > 60
    wrong = [
        f"{one.place}: `envferry {one.words}`: {said}"
        for one in found
        if (said := complaint(shlex.split(one.words), is_instruction=one.is_instruction))
    ]
    assert not wrong, "\n".join(wrong)


def hints_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the hints of a module: what is given as `hint`, or assigned to it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            value: ast.expr = node.value
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hint":
            value = node.value
        else:
            continue
        for line, text, _ in texts_of(value):
            yield line, text


def test_commands_in_hints_are_in_backticks() -> None:
    """Only those are completed by --registry and --envs-dir, and by the name of the one file."""
    bare = re.compile(r"(?<!`)\benvferry (\w+)")
    names = envferry.list_commands(click.Context(envferry))
    found = [
        (f"{path.relative_to(SOURCES)}:{line}", text)
        for path in sorted(SOURCES.rglob("*.py"))
        for line, text in hints_of(ast.parse(path.read_text()))
    ]
    assert len(found) > 500
    wrong = [
        f"{place}: {text}"
        for place, text in found
        if any(name in names for name in bare.findall(text))
    ]
    assert not wrong, "\n".join(wrong)
