"""What an environment holds that advisories may speak of, and by which names.

The packages come from the manifest, which signatures bind. An SBOM, which they do not, adds names
and parts; it takes nothing away.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import msgspec
from packaging.utils import canonicalize_name

from envferry.audit.advisory import package_key
from envferry.audit.distributions import distribution_name
from envferry.base.json import decode_json
from envferry.errors import IntegrityError
from envferry.lock.pypi_names import is_known_to_differ, pypi_name
from envferry.pack.c_libraries import c_library

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envferry.models import PackageFacts
    from envferry.pack.c_libraries import CLibrary
    from envferry.pack.vendored import VendoredLibrary

PYTHON_BUILD = re.compile(r"(?:^|_)py(?:\d|h[0-9a-f]|_|$)")
"""conda's build strings of Python packages: `py311h1234567_0`, `pyhd8ed1ab_0`, `py_0`."""
PURL = re.compile(r"pkg:(?P<type>[a-z.+-]+)/(?P<name>[^@?#]+)(?:@(?P<version>[^?#]+))?[^#]*")
ECOSYSTEMS = {"pypi": "PyPI", "cargo": "crates.io", "npm": "npm", "golang": "Go", "hex": "Hex"}
"""The ecosystems of OSV whose versions we compare, by the types of purls."""

PATCHED = ("apk", "deb", "rpm")
"""Purls of distributions, which fix faults without taking a newer version: theirs say nothing to
advisories about upstream's."""

PartKind = Literal["conda", "pypi", "vendored"]


class UpstreamName(msgspec.Struct, frozen=True, kw_only=True):
    """One name under which advisories may know a component."""

    ecosystem: str
    name: str
    version: str
    certain: bool = True
    """Whether it is more than a guess by an equal name."""

    @property
    def key(self) -> str:
        """What the database calls it."""
        return package_key(self.ecosystem, self.name)


class AuditComponent(msgspec.Struct, frozen=True, kw_only=True):
    """A package, or a part of one."""

    kind: PartKind
    name: str
    version: str
    within: str = ""
    """The package that a vendored library is in."""
    upstream: tuple[UpstreamName, ...] = ()
    library: CLibrary | None = None
    unknown: str = ""
    """Why no advisory could be found; empty where one could."""


class _Component(msgspec.Struct):
    name: str
    version: str = ""
    purl: str = ""
    components: tuple[_Component, ...] = ()


class _Sbom(msgspec.Struct):
    components: tuple[_Component, ...] = ()


class SbomParts(msgspec.Struct, frozen=True):
    """The parts that an SBOM gives packages: by kind and canonical name."""

    parts: Mapping[tuple[str, str], tuple[_Component, ...]] = msgspec.field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes, what: str) -> SbomParts:
        """Read an SBOM; raise IntegrityError for one that is damaged."""
        try:
            found = decode_json(data, _Sbom)
        except msgspec.MsgspecError as error:
            message = f"the SBOM of {what} is damaged: {error}"
            hint = "push the artifact again, or audit without: the manifest lists its packages"
            raise IntegrityError(message, hint=hint) from error
        parts: dict[tuple[str, str], tuple[_Component, ...]] = {}
        for one in found.components:
            kind = one.purl.removeprefix("pkg:").partition("/")[0]
            # Nested components are the parts of a package: vendored libraries, or its name on
            # PyPI.
            parts[kind, str(canonicalize_name(one.name))] = one.components
        return cls(parts)

    @classmethod
    def of_tree(cls, found: Mapping[tuple[str, str], Iterable[VendoredLibrary]]) -> SbomParts:
        """Return the parts that were found in a tree."""
        return cls(
            {
                key: tuple(_Component(one.name, one.version, one.purl) for one in parts)
                for key, parts in found.items()
            }
        )


NO_PARTS = SbomParts()


def components_of(
    packages: Iterable[PackageFacts], parts: SbomParts = NO_PARTS
) -> tuple[AuditComponent, ...]:
    """Return what is to be looked for: every package, then the parts of each."""
    found: list[AuditComponent] = []
    for package in packages:
        inner = parts.parts.get((package.kind, str(canonicalize_name(package.name))), ())
        names = [_upstream(one) for one in inner]
        own = [name for name in names if name and name.ecosystem == "PyPI"]
        if package.kind == "conda":
            found.append(_conda_component(package, tuple(own)))
            # Its PyPI names are the package itself and not parts, so they are not listed a second
            # time.
            inner = tuple(one for one, name in zip(inner, names, strict=True) if name not in own)
        else:
            name = UpstreamName(ecosystem="PyPI", name=package.name, version=package.version)
            found.append(
                AuditComponent(
                    kind="pypi", name=package.name, version=package.version, upstream=(name,)
                )
            )
        found += [_vendored(one, package.name) for one in inner]
    return tuple(found)


def _conda_component(package: PackageFacts, said: tuple[UpstreamName, ...]) -> AuditComponent:
    """Return a conda package by all of its names: as a library, and on PyPI."""
    library = c_library(package.name)
    names = list(said)
    mapped = pypi_name(package.name)
    # Of other conda packages the name proves nothing: conda's `snappy` is not the `snappy` of
    # PyPI.
    if is_known_to_differ(package.name) or (not library and _is_python(package)):
        # An SBOM that says another version adds that one; the manifest's, which is signed, stays.
        known = {(canonicalize_name(one.name), one.version) for one in said}
        wanted = canonicalize_name(mapped)
        certain = is_known_to_differ(package.name) or wanted in {name for name, _ in known}
        if (wanted, package.version) not in known:
            names.append(
                UpstreamName(
                    ecosystem="PyPI", name=mapped, version=package.version, certain=certain
                )
            )
    unknown = "" if names or library else "its name outside conda is not known"
    return AuditComponent(
        kind="conda",
        name=package.name,
        version=package.version,
        upstream=tuple(names),
        library=library,
        unknown=unknown,
    )


def _is_python(package: PackageFacts) -> bool:
    return PYTHON_BUILD.search(package.build or "") is not None


def _vendored(part: _Component, within: str) -> AuditComponent:
    """Return a part of a package, by its purl or as a library that the table knows."""
    name, kind = _upstream(part), part.purl.removeprefix("pkg:").partition("/")[0]
    library = None
    if name is None and kind not in PATCHED:
        library = c_library(part.name) or c_library(part.name.removeprefix("lib"))
    unknown = ""
    if not part.version:
        unknown = "its version is not recorded"
    elif not (name or library):
        unknown = _unknown_place(part.purl) if kind in PATCHED else "it has no known name"
        if kind and kind not in PATCHED:
            unknown = f"versions of {kind} cannot be compared"
    return AuditComponent(
        kind="vendored",
        name=part.name,
        version=part.version,
        within=within,
        upstream=(name,) if name and part.version else (),
        library=library if part.version else None,
        unknown=unknown,
    )


def _upstream(part: _Component) -> UpstreamName | None:
    found = PURL.fullmatch(part.purl)
    if not found:
        return None
    name, version = unquote(found["name"]), unquote(found["version"] or "") or part.version
    if ecosystem := ECOSYSTEMS.get(found["type"]):
        return UpstreamName(ecosystem=ecosystem, name=name, version=version)
    known = distribution_name(part.purl)
    if known is None or not known.has_release:
        return None
    return UpstreamName(
        ecosystem=known.ecosystem,
        name=name.rpartition("/")[2],
        version=known.version,
        # Binary and source packages may have different names, so a name without a hit proves
        # nothing.
        certain=not known.names_sources,
    )


def _unknown_place(purl: str) -> str:
    """Say why advisories of a distribution cannot be found for a package of it."""
    known = distribution_name(purl)
    if known:
        return f"its release of {known.ecosystem} is not recorded"
    found = PURL.fullmatch(purl)
    place = unquote(found["name"]).rpartition("/")[0] if found else ""
    return f"advisories of {place or 'its distribution'} are not known here"
