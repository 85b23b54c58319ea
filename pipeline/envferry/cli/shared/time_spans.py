"""Time spans on the command line."""

from __future__ import annotations

import re
from datetime import timedelta

import click

AGE_PATTERN = re.compile(r"(\d{1,6})([hdw])")


def parse_age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Parse a time span such as `12h`, `90d`, `8w`."""
    if value is None:
        return None
    found = AGE_PATTERN.fullmatch(value)
    if not found:
        message = f"{value!r} is not a time span such as 12h, 90d or 8w"
        raise click.BadParameter(message, ctx, param)
    unit = {"h": "hours", "d": "days", "w": "weeks"}[found[2]]
    return timedelta(**{unit: int(found[1])})
