"""Linux distributions: their names in OSV, by purls, and the orders of their versions.

Wheels bring libraries of the image that they were repaired in: auditwheel says which, as `pkg:rpm`,
`pkg:deb` and `pkg:apk`. Versions go by rpm-version(7), deb-version(7) and apk-version(8).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

ECOSYSTEMS = {
    ("rpm", "almalinux"): "AlmaLinux",
    ("rpm", "rocky"): "Rocky Linux",
    ("rpm", "rockylinux"): "Rocky Linux",
    ("deb", "debian"): "Debian",
    ("apk", "alpine"): "Alpine",
}
PURL = re.compile(
    r"pkg:(?P<type>apk|deb|rpm)/(?P<place>[^/@?#]+)/[^@?#]+(?:@(?P<version>[^?#]+))?"
    r"(?:\?(?P<more>[^#]*))?(?:#.*)?"
)
RPM = ("AlmaLinux", "Rocky Linux")
BUG_FIXES = ("ALBA-", "ALEA-", "RLBA-", "RLEA-")
"""Ids of records that are about bugs and enhancements, not about security."""
EL = re.compile(r"[._]el(\d+)")
DEB = re.compile(r"[+~]deb(\d+)u")
DISTRO = re.compile(r"[a-z]+-(\d+)(?:\.(\d+))?.*")
RPM_TOKEN = re.compile(r"[~^]|[0-9]+|[A-Za-z]+")
RPM_VERSION = re.compile(r"(?:(\d+):)?([^:-]+)-([^:-]+)")
DEB_VERSION = re.compile(
    r"(?:(\d+):)?(\d(?:[0-9A-Za-z.+~-]*?[0-9A-Za-z.+~])??)(?:-([0-9A-Za-z.+~]+))?"
)
DEB_PART = re.compile(r"([^0-9]*)([0-9]*)")
APK_VERSION = re.compile(
    r"(\d+)((?:\.\d+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)"
    r"(?:~([0-9a-f]+))?(?:-r(\d+))?"
)
APK_SUFFIX = re.compile(r"_([a-z]+)(\d*)")
BEFORE, AFTER = ("alpha", "beta", "pre", "rc"), ("cvs", "svn", "git", "hg", "p")


class DistributionName(msgspec.Struct, frozen=True, kw_only=True):
    """A package of a distribution, as OSV calls it."""

    ecosystem: str
    """With the release: `AlmaLinux:8`, `Debian:12`, `Alpine:v3.19`; without, where none is said."""
    version: str
    names_sources: bool
    """Whether OSV names source packages, and purls the binary ones, which may differ."""

    @property
    def has_release(self) -> bool:
        """Whether the release is known: each has advisories of its own."""
        return ":" in self.ecosystem


def distribution_name(purl: str) -> DistributionName | None:
    """Return what a purl of a distribution means; None for other purls."""
    found = PURL.fullmatch(purl)
    base = ECOSYSTEMS.get((found["type"], found["place"].lower())) if found else None
    if found is None or base is None:
        return None
    # purl percent-encodes versions: `+` and `~` of Debian, `:` of an epoch.
    version, qualifiers = unquote(found["version"] or ""), dict(parse_qsl(found["more"] or ""))
    said = DISTRO.fullmatch(qualifiers.get("distro", ""))
    # Without `distro` the version still may tell: `.el8`, `+deb12u1`.
    told = (EL if base in RPM else DEB).search(version)
    release = said[1] if said else told[1] if told else ""
    if base == "Alpine":
        # Alpine has advisories for each minor release: `Alpine:v3.19`.
        release = f"v{said[1]}.{said[2]}" if said and said[2] else ""
    epoch = qualifiers.get("epoch", "")
    return DistributionName(
        ecosystem=f"{base}:{release}" if release else base,
        version=f"{epoch}:{version}" if epoch and ":" not in version else version,
        names_sources=base not in RPM,
    )


def rpm_key(text: str) -> tuple[Any, ...] | None:
    """Return `EPOCH:VERSION-RELEASE` in rpm's order; None for what lacks a release."""
    found = RPM_VERSION.fullmatch(text.strip())
    if not found:
        return None
    # No epoch is epoch 0 (rpm-version(7)).
    return (int(found[1] or 0), _rpm_tokens(found[2]), _rpm_tokens(found[3]))


def _rpm_tokens(text: str) -> tuple[tuple[Any, ...], ...]:
    """Numbers are newer than words, these than `^`, than the end, than `~`."""
    kinds: Mapping[str, tuple[Any, ...]] = {"~": (-1,), "^": (1,)}
    tokens = (
        kinds.get(one) or ((3, int(one)) if one.isdigit() else (2, one))
        for one in RPM_TOKEN.findall(text)
    )
    # The mark of the end takes part in the order: `1.0~rc` is before `1.0`, and `1.0^git` after
    # it.
    return (*tokens, (0,))


def dpkg_key(text: str) -> tuple[Any, ...] | None:
    """Return `EPOCH:VERSION-REVISION` in dpkg's order; None for what is not one."""
    found = DEB_VERSION.fullmatch(text.strip())
    if not found:
        return None
    return (int(found[1] or 0), _deb_parts(found[2]), _deb_parts(found[3] or ""))


def _deb_parts(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """`~` is before the end, that before letters, these before all else."""
    parts = [
        ((*map(_deb_rank, words), 0), int(number or 0))
        for words, number in DEB_PART.findall(text)
        if words or number
    ]
    return (*parts, ((0,), 0))


def _deb_rank(character: str) -> int:
    if character == "~":
        return -1
    # Letters sort before all other characters (deb-version(7)).
    return ord(character) + (0 if character.isalpha() else 256)


def apk_key(text: str) -> tuple[Any, ...] | None:
    """Return `1.2.3a_rc1-r0` in apk's order; None for what is not one."""
    found = APK_VERSION.fullmatch(text.strip())
    if not found:
        return None
    # What a token begins with is its rank where two versions part: one more number is newer than a
    # letter, then come `_p` and its like, their number, a commit, a revision, the end, and `_rc`.
    tokens: list[tuple[Any, ...]] = [(8, 1, int(found[1]))]
    tokens += [_apk_number(one) for one in found[2].split(".")[1:]]
    tokens += [(7, found[3])] if found[3] else []
    for name, number in APK_SUFFIX.findall(found[4]):
        tokens.append((0, BEFORE.index(name)) if name in BEFORE else (6, AFTER.index(name)))
        tokens += [(5, int(number))] if number else []
    tokens += [(4, found[5])] if found[5] else []
    tokens += [(3, int(found[6]))] if found[6] else []
    return (*tokens, (2,))


def _apk_number(digits: str) -> tuple[Any, ...]:
    """Order a number after the first; one that begins with a zero is a fraction: .02 before .1."""
    return (8, 0, digits) if digits.startswith("0") else (8, 1, int(digits))
