"""Hints that are true when they are typed: they name the places that the command line named."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import click

PLACES = ("--envs-dir", "--registry")
"""Options without which another command would look elsewhere."""
COMMAND = re.compile(r"`envferry (?P<name>[a-z]+)(?P<rest>[^`]*)`")


def with_places(hint: str, arguments: Sequence[str], group: click.Group) -> str:
    """Return a hint whose commands look where the command did that failed."""
    import click

    given = places_in(arguments)

    def complete(found: re.Match[str]) -> str:
        if "--help" in found["rest"]:
            return found[0]
        command = group.get_command(click.Context(group), found["name"])
        known = {name for one in command.params for name in one.opts} if command else set()
        more = "".join(
            f" {option} {shlex.quote(value)}"
            for option, value in given.items()
            if option in known and option not in found["rest"]
        )
        return f"`envferry {found['name']}{found['rest']}{more}`"

    return COMMAND.sub(complete, hint) if given else hint


def places_in(arguments: Sequence[str]) -> Mapping[str, str]:
    """Return the places that a command line names; what follows `--` is not ours."""
    ours = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    found = {}
    for word, after in zip(ours, [*ours[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in PLACES and (equals or after):
            found[option] = value if equals else after
    return found
