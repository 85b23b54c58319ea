"""Versions in the order that each ecosystem gives them.

PyPI: PEP 440, by packaging. SEMVER ranges, and the ecosystems that use it: https://semver.org
Linux distributions: `distributions.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from envferry.audit.distributions import RPM, apk_key, dpkg_key, rpm_key

if TYPE_CHECKING:
    from collections.abc import Callable

SEMVER = re.compile(
    r"v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
MOST_CHARACTERS = 500
"""Of a version; python refuses to read numbers of thousands of digits."""
SEMVER_ECOSYSTEMS = ("crates.io", "Go", "Hex", "npm")


def version_key(range_type: str, ecosystem: str) -> Callable[[str], Any] | None:
    """Return how versions of a range are compared; None where we do not know the rules.

    What it returns turns a version into what can be compared, or None where it is not valid.

    The type of a range decides, then its ecosystem:
    https://ossf.github.io/osv-schema/#affectedrangestype-field
    """
    if range_type == "SEMVER" or (
        range_type == "ECOSYSTEM" and base_ecosystem(ecosystem) in SEMVER_ECOSYSTEMS
    ):
        return semver_key
    if range_type != "ECOSYSTEM":
        return None
    orders = {"PyPI": pep440_key, "Debian": dpkg_key, "Alpine": apk_key} | dict.fromkeys(
        RPM, rpm_key
    )
    return _bounded(orders.get(base_ecosystem(ecosystem)))


def _bounded(key: Callable[[str], Any] | None) -> Callable[[str], Any] | None:
    """Take no version that is longer than any."""
    return key and (lambda text: key(text) if len(text) <= MOST_CHARACTERS else None)


def pep440_key(text: str) -> Version | None:
    """Return a version by PEP 440; None for one that is not valid."""
    if len(text) > MOST_CHARACTERS:
        return None
    try:
        return Version(text)
    except InvalidVersion:
        return None


def semver_key(text: str) -> tuple[Any, ...] | None:
    """Return a version by semantic versioning 2.0, a `v` before it or not; None for others.

    Of pre-releases numbers come before words, and all of them before the release (rule 11).
    """
    found = SEMVER.fullmatch(text.strip()) if len(text) <= MOST_CHARACTERS else None
    if not found:
        return None
    numbers = tuple(int(found[group]) for group in (1, 2, 3))
    # Build metadata after `+` does not take part in the order (rule 10).
    if not found[4]:
        return (*numbers, (1,))
    parts = tuple(
        # Triples of equal shape: numbers and words are never compared with each other.
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in found[4].split(".")
    )
    return (*numbers, (0, parts))


def public_version(text: str) -> str:
    """Return a version of PyPI without its local part: `2.8.0+cu128` is a build of 2.8.0.

    Advisories speak of what is published, and a local part would count as newer (PEP 440).
    """
    version = pep440_key(text)
    return version.public if version else text


def base_ecosystem(ecosystem: str) -> str:
    """Return an ecosystem without its release: `Debian` of `Debian:12`."""
    return ecosystem.partition(":")[0]
