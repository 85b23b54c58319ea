"""What a tree follows from: its packages, and all else that tells one build from another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry import __version__
from envferry.base.sha256 import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.build.build_options import BuildOptions
    from envferry.engines.port import Sandbox
    from envferry.models import LockedPackage

INSIDE = Path(__file__).with_name("inside")


class LockedWheel(msgspec.Struct, frozen=True, order=True):
    """What tells one wheel from all others."""

    name: str
    version: str
    sha256: str


class LockedConda(msgspec.Struct, frozen=True, order=True):
    """What tells one conda package from all others, and from itself with another record."""

    name: str
    digest: str
    """Of all that the lock says of it."""


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a tree follows from, but for its data and what activation sets."""

    base: str
    """A digest of all but the packages: the prefix, the options, the builder."""
    conda: tuple[LockedConda, ...]
    wheels: tuple[LockedWheel, ...]


def locked_wheel(package: LockedPackage) -> LockedWheel:
    """Return what tells a wheel of a lock from all others."""
    return LockedWheel(package.name, package.version, package.sha256 or "")


def describe_materials(
    packages: Sequence[LockedPackage], prefix: str, sandbox: Sandbox, options: BuildOptions
) -> Materials:
    """Return what a tree of these packages follows from; sources must be replaced by wheels."""
    conda = (
        LockedConda(package.name, sha256_hex(msgspec.json.encode(package, order="deterministic")))
        for package in packages
        if package.manager == "conda"
    )
    base = {
        "prefix": prefix,
        "platform": packages[0].platform,
        "allowed": [sorted(options.allow_clobber), sorted(options.allow_conflict)],
        # Scripts of packages run with the programs of this image.
        "sandbox": [sandbox.name, sandbox.image],
        # A change of the builder may change the tree, and a checkout keeps its version meanwhile.
        "builder": [__version__, *_builder_sources()],
    }
    wheels = (locked_wheel(package) for package in packages if package.manager == "pip")
    digest = sha256_hex(msgspec.json.encode(base, order="deterministic"))
    return Materials(base=digest, conda=tuple(sorted(conda)), wheels=tuple(sorted(wheels)))


def _builder_sources() -> Iterator[str]:
    """Yield what tells this builder from others of the same version: a checkout is one, too."""
    for path in sorted(INSIDE.glob("*.py")):
        yield sha256_hex(path.read_bytes())
