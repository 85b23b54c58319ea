"""Sizes on the command line."""

from __future__ import annotations

import re

import click

SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>|[KMGT](i?B)?)", re.IGNORECASE)


def size_of(text: str) -> int | None:
    """Parse bytes as people write them: 650M, 4G (powers of 1000), 4GiB (of 1024)."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        return None
    unit = found["unit"].upper()
    base = 1024 if unit.endswith("IB") else 1000
    return int(float(found["number"]) * base ** (" KMGT".index(unit[:1] or " ")))


def parse_size(context: click.Context, option: click.Parameter, text: str) -> int:
    """Parse the size that an option has."""
    size = size_of(text)
    if size is None:
        message = f"{text!r} is not a valid size: write 650M or 20G"
        raise click.BadParameter(message, context, option)
    return size
