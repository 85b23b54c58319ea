"""Lint of logins and tokens in URLs: S116."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.specs.syntax.url_logins import channel_texts, has_login
from envferry.specs.syntax.yaml_text import Text, line_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.specs.syntax.yaml_text import Mapping

CODE = "S116"
_Found = tuple[str, object, str]


def login_lines(root: Mapping, pip_lines: list[Text]) -> Iterator[_Found]:
    """Yield what has a login or a token in it, each once."""
    conda = (one for one in root["dependencies"] if isinstance(one, Text))
    found = [one for one in (*channel_texts(root), *conda) if has_login(one, is_channel=True)]
    found += [one for one in pip_lines if has_login(one, is_channel=False)]
    # An alias repeats a value together with its line.
    for line in {(line_of(one), str(one)): one for one in found}.values():
        # Without it: what lint says of a line has no logins.
        yield CODE, line, f"`{line.strip()}` has a login or a token"
