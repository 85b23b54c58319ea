"""Which of a package's wheels fits a target python and platform, whatever python runs us."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from packaging import tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_GLIBC = "2.28"
"""What wheels may ask for when a spec says nothing: RHEL 8, Debian 10, Ubuntu 20.04 and later."""

LINUX_ARCHITECTURES = {
    "linux-64": "x86_64",
    "linux-aarch64": "aarch64",
    "linux-ppc64le": "ppc64le",
}
MAC_ARCHITECTURES = {"osx-64": "x86_64", "osx-arm64": "arm64"}
MAC_VERSION = (13, 0)

# Old names of glibc floors (PEP 600); before them only x86-64 had a lower one than 2.17.
LEGACY_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
OLDEST_GLIBC_MINOR = {"x86_64": 5}
OLDEST_GLIBC_MINOR_ELSEWHERE = 17


class WheelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The interpreter and platform that wheels are chosen for."""

    python_version: str
    """Such as `3.10` or `3.10.13`."""
    platform: str
    """A conda platform, such as `linux-64`."""
    glibc: str = DEFAULT_GLIBC

    @property
    def python(self) -> tuple[int, int]:
        """The python's major and minor version."""
        found = re.match(r"(\d+)\.(\d+)", self.python_version)
        if found is None:
            message = (
                f"{self.python_version!r} is not a valid python version, expected one such as 3.10"
            )
            raise SpecError(message)
        return int(found[1]), int(found[2])

    @property
    def glibc_minor(self) -> int:
        """The 28 of glibc 2.28."""
        found = re.fullmatch(r"2\.(\d+)(\.\d+)*", self.glibc)
        if found is None:
            message = (
                f"{self.glibc!r} is not a valid glibc version, expected one such as {DEFAULT_GLIBC}"
            )
            raise SpecError(message)
        return int(found[1])


def wheel_ranks(target: WheelTarget) -> dict[tags.Tag, int]:
    """Return every wheel tag that `target` accepts with its rank, 0 the best."""
    platforms = list(_platforms(target))
    interpreter = f"cp{target.python[0]}{target.python[1]}"
    accepted = [
        # `packaging` adds the stable ABI (`abi3`) and `none` by itself.
        *tags.cpython_tags(target.python, abis=[interpreter], platforms=platforms),
        *tags.compatible_tags(target.python, interpreter=interpreter, platforms=platforms),
    ]
    ranks: dict[tags.Tag, int] = {}
    for tag in accepted:
        ranks.setdefault(tag, len(ranks))
    return ranks


def choose_wheel(file_names: Iterable[str], ranks: dict[tags.Tag, int]) -> str | None:
    """Return the wheel file name that fits best, or None when none does.

    Ties go to the higher build number, then to the name, so that the choice never depends on the
    order in which an index lists its files.
    """
    fitting = []
    for file_name in file_names:
        try:
            _, _, build, wheel_tags = parse_wheel_filename(file_name)
        # Source distributions are among the files, and old wheels whose names no longer count as
        # valid.
        except InvalidWheelFilename:
            continue
        accepted = [ranks[tag] for tag in wheel_tags if tag in ranks]
        if accepted:
            number, letters = build or (0, "")
            fitting.append((-min(accepted), number, letters, file_name))
    return max(fitting)[-1] if fitting else None


def _platforms(target: WheelTarget) -> Iterator[str]:
    """Yield the wheel platforms of a target, best first."""
    if target.platform in LINUX_ARCHITECTURES:
        yield from _manylinux(LINUX_ARCHITECTURES[target.platform], target.glibc_minor)
    elif target.platform in MAC_ARCHITECTURES:
        yield from tags.mac_platforms(MAC_VERSION, MAC_ARCHITECTURES[target.platform])
    else:
        known = ", ".join((*LINUX_ARCHITECTURES, *MAC_ARCHITECTURES))
        message = f"no wheels can be chosen for the platform {target.platform!r} (known: {known})"
        raise SpecError(message)


def _manylinux(architecture: str, glibc_minor: int) -> Iterator[str]:
    oldest = OLDEST_GLIBC_MINOR.get(architecture, OLDEST_GLIBC_MINOR_ELSEWHERE)
    for minor in range(glibc_minor, oldest - 1, -1):
        yield f"manylinux_2_{minor}_{architecture}"
        if minor in LEGACY_MANYLINUX:
            yield f"{LEGACY_MANYLINUX[minor]}_{architecture}"
    # Last: such a tag does not tell the glibc that the wheel needs, but pip accepts it, too.
    yield f"linux_{architecture}"
