"""What solvers print, made fit for an error message: no colours, no credentials, no warnings."""

from __future__ import annotations

import re

from envferry.base.logins import FOR_CHANNELS
from envferry.base.proxies import proxies_words
from envferry.config import network
from envferry.errors import NotFound, StoreError
from envferry.redaction import fit_to_show

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MAX_LINES = 40

# How uv, rattler and conda say that they got no answer from a server or a channel.
UNREACHABLE = re.compile(
    r"error sending request|Failed to fetch|Request failed|dns error|tcp connect|timed out"
    r"|HTTP status (?:client|server) error|[Nn]etwork connectivity is disabled"
    r"|could not find subdir|error decoding response body"
    r"|failed to (?:read|decode|parse) .*repodata"
)
# How uv, rattler and conda say, while they are offline, that their cache lacks something.
# uv's words for it, `Network connectivity is disabled`, are among those of UNREACHABLE.
NOT_CACHED = re.compile(
    rf"{UNREACHABLE.pattern}|no usable repodata cache"
    r"|(?i:not in the cache|network was disabled|offline)"
)


def tidy(text: str) -> str:
    """Strip colours, blank lines and credentials from what a solver printed."""
    lines = [line.rstrip() for line in fit_to_show(ANSI.sub("", text)).splitlines()]
    kept = [line for line in lines if line.strip()]
    if len(kept) > MAX_LINES:
        kept = [*kept[: MAX_LINES - 1], f"… {len(kept) - MAX_LINES + 1} more lines"]
    return "\n".join(kept)


def unreachable_channel(words: str, channels: tuple[str, ...]) -> StoreError:
    """Say that a channel gave no answer, or not the one that was hoped for."""
    names = fit_to_show(", ".join(channels))
    message = f"a conda channel cannot be reached ({names}): {words}"
    # Solvers print the status of the answer somewhere in a sentence; a refusal needs a login.
    if re.search(r"\b(401|403)\b", words):
        return StoreError(message, hint=FOR_CHANNELS)
    hint = "check the spec's `channels:`, or give `--channel`"
    return StoreError(message, hint=hint + proxies_hint())


def not_cached(words: str) -> NotFound:
    """Say that what a lock without network needs is not in a solver's cache."""
    message = f"the cache does not hold all that the lock needs: {words}"
    return NotFound(message, hint="run it once without `--offline`, then again with it")


def proxies_hint() -> str:
    """Say which proxies this machine's solvers go through: they do not say it themselves."""
    words = proxies_words(network().proxies)
    return f" ({words})" if words else ""
