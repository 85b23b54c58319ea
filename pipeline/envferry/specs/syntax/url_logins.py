"""Logins and tokens in the URLs of a spec, told from names of variables that stand for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envferry.redaction import without_credentials, without_login
from envferry.specs.syntax.conda_lines import TEMPLATE
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

# Variables, templates, and the stars by which pip masks what it prints.
STANDS_FOR = rf"(?:\$\{{?\w+\}}?|{TEMPLATE.pattern}|\*+)"
NO_LOGIN = re.compile(rf"://(?:[^/\s:@'\"]*:)?{STANDS_FOR}@")
NO_TOKEN = re.compile(rf"/t/{STANDS_FOR}(?=[/:\s'\"]|$)")
NO_URLS = ("dependencies", "readme")
"""The first has lines, which are looked at as such; the second is a text for people."""


def has_login(text: str, *, is_channel: bool) -> bool:
    """Whether a URL in a text has a login; one of a channel or its package, or a token."""
    # Only channels have tokens in paths: in another URL, `/t/NAME/` is a part of the path.
    without = without_credentials if is_channel else without_login
    shown = NO_TOKEN.sub("", NO_LOGIN.sub("://", text))
    return without(shown) != shown


def without_channel_login(text: str) -> str:
    """Return a channel or a conda line without login and token; variables for them stay."""
    return without_credentials(text) if has_login(text, is_channel=True) else text


def channel_texts(root: Mapping) -> Iterator[Text]:
    """Yield what may be the URL of a channel, wherever it is told."""
    for key, value in root.items():
        if key in NO_URLS:
            continue
        parts = value if isinstance(value, Sequence) else (value,)
        yield from (part for part in parts if isinstance(part, Text))
        for part in parts:
            if isinstance(part, Mapping):
                yield from channel_texts(part)
