"""Man pages out of the commands' own help: one for envferry, one for each command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from envferry import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

Sections = Mapping[str, Mapping[str, tuple[str, str]]]
"""Of the commands: the title of each section, then each command's module and its help."""
EXIT_CODES = "0 means success; every other code has one meaning: see docs/errors.md."


def man_pages(group: click.Group, sections: Sections) -> Iterator[tuple[str, str]]:
    """Yield the file name and the text (roff, man(7)) of each page; the group's own first."""
    context = click.Context(group, info_name="envferry")
    names = group.list_commands(context)
    children = [(name, group.get_command(context, name)) for name in names]
    yield "envferry.1", _group_page(context, sections)
    for name, child in children:
        if child is not None:
            yield from _command_pages(child, name, context)


def _group_page(context: click.Context, sections: Sections) -> str:
    group = context.command
    parts = [_title("envferry"), _name("envferry", group), _synopsis(context), _description(group)]
    for title, commands in sections.items():
        parts.append(f'.SH "{_escaped(title.upper())}"')
        for name, (_, about) in commands.items():
            parts += [".TP", f"\\fBenvferry\\-{_escaped(name)}\\fR(1)", _escaped(about)]
    parts += [_options(context), '.SH "EXIT STATUS"', _escaped(EXIT_CODES)]
    return "\n".join(parts) + "\n"


def _command_pages(
    command: click.Command, name: str, parent: click.Context
) -> Iterator[tuple[str, str]]:
    """Yield the page of a command, and those of its own commands."""
    context = click.Context(command, parent, info_name=name)
    title = context.command_path.replace(" ", "-")
    parts = [_title(title), _name(title, command), _synopsis(context), _description(command)]
    children: list[tuple[str, click.Command]] = []
    if isinstance(command, click.Group):
        parts.append(".SH COMMANDS")
        children = list(command.commands.items())
        for child_name, child in children:
            about = child.get_short_help_str(limit=200)
            parts += [".TP", f"\\fB{_escaped(child_name)}\\fR", _escaped(about)]
    parts += [_options(context), '.SH "SEE ALSO"', "\\fBenvferry\\fR(1)"]
    yield f"{title}.1", "\n".join(parts) + "\n"
    for child_name, child in children:
        yield from _command_pages(child, child_name, context)


def _title(name: str) -> str:
    return f'.TH "{_escaped(name.upper())}" 1 "" "envferry {__version__}" "envferry"'


def _name(title: str, command: click.Command) -> str:
    about = command.get_short_help_str(limit=200).rstrip(".")
    return f".SH NAME\n{_escaped(title)} \\- {_escaped(about)}"


def _synopsis(context: click.Context) -> str:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f".SH SYNOPSIS\n\\fB{_escaped(context.command_path)}\\fR {_escaped(pieces)}"


def _description(command: click.Command) -> str:
    # `\b` is click's mark for a paragraph whose lines stay as they are.
    paragraphs = re.split(r"\n\s*\n", (command.help or "").replace("\b", "").strip())
    return ".SH DESCRIPTION\n" + "\n.PP\n".join(_paragraph(text) for text in paragraphs)


def _paragraph(text: str) -> str:
    """Return one paragraph; what stands between backquotes becomes bold."""
    escaped = _escaped(" ".join(text.split()))
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped)


def _options(context: click.Context) -> str:
    parts = [".SH OPTIONS"]
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            parts += [".TP", f"\\fB{_escaped(record[0])}\\fR", _paragraph(record[1])]
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """Return text that roff shows as it is."""
    # A bare hyphen may be shown as a typographic one, which cannot be copied (groff_char(7)).
    text = text.replace("\\", "\\e").replace("-", "\\-")
    # At the start of a line these begin a request (roff(7)).
    text = re.sub(r"(?m)^([.'])", r"\\&\1", text)
    return re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
