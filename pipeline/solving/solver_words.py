"""What solvers print, made fit for an error message: no colours, no credentials, no warnings."""

from __future__ import annotations

import re

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
URL_TOKEN = re.compile(r"(?<=/t/)[^/\s]+(?=/)")
MAX_LINES = 40


def tidy(text: str) -> str:
    """Strip colours, blank lines and credentials from what a solver printed."""
    lines = [line.rstrip() for line in without_credentials(ANSI.sub("", text)).splitlines()]
    kept = [line for line in lines if line.strip()]
    if len(kept) > MAX_LINES:
        kept = [*kept[: MAX_LINES - 1], f"… {len(kept) - MAX_LINES + 1} more lines"]
    return "\n".join(kept)


def without_credentials(text: str) -> str:
    """Remove `user:password@` and conda's `/t/TOKEN/` from every URL in a text."""
    return URL_TOKEN.sub("***", URL_CREDENTIALS.sub("", text))
