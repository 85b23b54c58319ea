"""TOML 1.0, read by the standard library, and before Python 3.11 by tomli."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlFault = tomllib.TOMLDecodeError
"""A ValueError."""


def decode_toml(text: str) -> dict[str, Any]:
    """Return the tables of a text; raises TomlFault, whose words say line and column."""
    content: dict[str, Any] = tomllib.loads(text)
    return content
