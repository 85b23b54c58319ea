"""What conda calls libraries that are no Python packages, and what the world calls them.

Their repositories are how advisories name them (OSV's GIT ranges), their CPE how NVD does.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec

from envferry.base.json import decode_json

TABLE = Path(__file__).with_name("c_libraries.json")


class CLibrary(msgspec.Struct, frozen=True):
    """A library and its names."""

    conda: tuple[str, ...]
    """The packages that have it; all have its version."""
    repositories: tuple[str, ...]
    """HOST/PATH in lower case."""
    tags: tuple[str, ...]
    """How releases are tagged: `{v}` is the version, `{v_}` and `{v-}` with `_` or `-` for `.`."""
    cpe: str
    """VENDOR:PRODUCT of its CPE 2.3 name."""

    def cpe_of(self, version: str) -> str:
        """Return the CPE 2.3 name of a version (NIST IR 7695)."""
        quoted = re.sub(r"([^A-Za-z0-9._-])", r"\\\1", version)
        return f"cpe:2.3:a:{self.cpe}:{quoted}:*:*:*:*:*:*:*"

    def tags_of(self, version: str) -> frozenset[str]:
        """Return what releases of this version are tagged as."""
        return frozenset(
            tag.replace("{v}", version)
            .replace("{v_}", version.replace(".", "_"))
            .replace("{v-}", version.replace(".", "-"))
            for tag in self.tags
        )

    def is_tag(self, text: str) -> bool:
        """Whether a text has the form of this library's tags."""
        patterns = (
            # `re.escape` puts backslashes before braces and hyphens, so before these, too.
            re.escape(tag)
            .replace(r"\{v\}", r"\d[\w.+-]*")
            .replace(r"\{v_\}", r"\d\w*")
            .replace(r"\{v\-\}", r"\d[\w-]*")
            for tag in self.tags
        )
        return any(re.fullmatch(pattern, text) for pattern in patterns)


def c_library(conda_name: str) -> CLibrary | None:
    """Return the library that a conda package is; None for those that are not in the table."""
    return _by_name().get(conda_name.lower())


@cache
def _by_name() -> dict[str, CLibrary]:
    found = decode_json(TABLE.read_bytes(), tuple[CLibrary, ...])
    return {name: one for one in found for name in one.conda}
