"""Why a package is in an environment: who needs it, and who needs those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from packaging.utils import canonicalize_name

from envferry.artifacts import SBOM
from envferry.base.json import decode_json
from envferry.errors import IntegrityError, NotFound
from envferry.suggestions import closest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envferry.models import LockedPackage, Manifest
    from envferry.registry.registry import Registry

MOST_LEVELS = 200
"""Deeper trees are made to keep a reader busy."""


class _Component(msgspec.Struct, frozen=True, rename={"ref": "bom-ref"}):
    ref: str
    name: str
    version: str = ""


class _Link(msgspec.Struct, frozen=True, rename="camel"):
    ref: str
    depends_on: tuple[str, ...] = ()


class _Bill(msgspec.Struct, frozen=True):
    """The part of a CycloneDX list that says who needs what."""

    metadata: dict[str, Any]
    components: tuple[_Component, ...] = ()
    dependencies: tuple[_Link, ...] = ()


class PackageNode(msgspec.Struct, frozen=True, order=True):
    """A package of an environment."""

    name: str
    version: str
    kind: str
    """`conda` or `pypi`."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """A package, and those that need it."""

    name: str
    version: str
    kind: str
    needed_by: tuple[Need, ...] = ()
    """Empty when nothing needs it: then it was asked for."""
    repeated: bool = False
    """It stands in the tree already, with those that need it."""


class Dependencies(msgspec.Struct, frozen=True):
    """Who needs whom in an environment."""

    packages: frozenset[PackageNode]
    needed_by: Mapping[PackageNode, tuple[PackageNode, ...]] = msgspec.field(default_factory=dict)

    @classmethod
    def of_sbom(cls, data: bytes, what: str) -> Dependencies:
        """Read a CycloneDX list; `what` names it in errors."""
        try:
            bill = decode_json(data, _Bill)
        except msgspec.MsgspecError as error:
            message = f"{what} is damaged: {error}"
            raise IntegrityError(message, hint="`envferry check` says how to repair it") from error
        # Data files are components, too, and nothing needs them.
        packages = {one.ref: _package(one) for one in bill.components if is_package(one.ref)}
        links = {link.ref: link.depends_on for link in bill.dependencies}
        return cls._of(packages, links)

    @classmethod
    def of_lock(cls, locked: tuple[LockedPackage, ...]) -> Dependencies:
        """Take what a lock says of one platform."""
        # The manager belongs to the key: conda and pip may each have a package of one name.
        packages = {_ref(item.manager, item.name): _locked(item) for item in locked}
        links: dict[str, tuple[str, ...]] = {}
        for item in locked:
            own = [_ref(item.manager, need) for need in item.dependencies]
            conda = [_ref("conda", need) for need in item.dependencies]
            # A pip package needs conda's where pip has no package of that name.
            needs = (a if a in packages else b for a, b in zip(own, conda, strict=True))
            links[_ref(item.manager, item.name)] = tuple(needs)
        return cls._of(packages, links)

    @classmethod
    def _of(
        cls, packages: Mapping[str, PackageNode], links: Mapping[str, tuple[str, ...]]
    ) -> Dependencies:
        found: dict[PackageNode, set[PackageNode]] = {}
        for ref, needs in links.items():
            for need in needs:
                # The environment itself is not a package: what it lists it does not need.
                if ref in packages and need in packages and packages[ref] != packages[need]:
                    found.setdefault(packages[need], set()).add(packages[ref])
        ordered = {package: tuple(sorted(those)) for package, those in found.items()}
        return cls(frozenset(packages.values()), ordered)

    def why(self, name: str, environment: str) -> tuple[Need, ...]:
        """Return the tree above each package of that name (conda's and pip's).

        Raises NotFound with what there is instead.
        """
        there = sorted(
            one for one in self.packages if canonicalize_name(one.name) == canonicalize_name(name)
        )
        if not there:
            names = sorted({one.name for one in self.packages})
            near = closest(name, names, 3)
            hint = (
                f"perhaps {', '.join(near)}?"
                if near
                else f"`envferry show {environment}` lists all"
            )
            msg = f"{environment} has no package {name}"
            raise NotFound(msg, hint=hint)
        # One set for all trees: what the first one shows is only referred to in the second.
        seen: set[PackageNode] = set()
        return tuple(self._above(one, seen) for one in there)

    def _above(self, package: PackageNode, seen: set[PackageNode], depth: int = 0) -> Need:
        """Return a package with those that need it; each is followed once."""
        those = self.needed_by.get(package, ())
        # Dependencies form circles, and what many need would be followed once for each of them.
        is_known = bool(those) and (package in seen or depth == MOST_LEVELS)
        seen.add(package)
        return Need(
            name=package.name,
            version=package.version,
            kind=package.kind,
            needed_by=() if is_known else tuple(self._above(one, seen, depth + 1) for one in those),
            repeated=is_known,
        )


def dependencies_in(registry: Registry, manifest: Manifest) -> Dependencies:
    """Read who needs whom in a published artifact: by its SBOM, or by its lock without one."""
    if sbom := registry.attachment(manifest, SBOM):
        return Dependencies.of_sbom(sbom, f"the SBOM of {manifest.stem}")
    return dependencies_by_lock(manifest, registry.read_lock(manifest))


def dependencies_by_lock(manifest: Manifest, lock: bytes) -> Dependencies:
    """Take what an artifact's lock says."""
    try:
        # Locks are read with the extra `build`, which hosts may lack; an SBOM needs nothing beyond
        # the base.
        from envferry.specs.locks import parse_lock
    except ModuleNotFoundError as error:
        message = f"{manifest.stem} has no SBOM, and to read its lock needs {error.name}"
        raise NotFound(message, hint='run `pip install "envferry[build]"`') from error

    parsed = parse_lock(lock.decode(errors="replace"), Path(f"{manifest.stem}.conda-lock.yml"))
    return Dependencies.of_lock(parsed.for_platform(manifest.platform))


def need_lines(need: Need, prefix: str = "") -> Iterator[str]:
    """Yield a tree as lines: the package first, those that need it below."""
    for number, above in enumerate(need.needed_by, 1):
        is_last = number == len(need.needed_by)
        note = " (see above)" if above.repeated else ""
        yield f"{prefix}{'└── ' if is_last else '├── '}{above.name} {above.version}{note}"
        yield from need_lines(above, prefix + ("    " if is_last else "│   "))


def _locked(item: LockedPackage) -> PackageNode:
    return PackageNode(item.name, item.version, "pypi" if item.manager == "pip" else item.manager)


def _ref(manager: str, name: str) -> str:
    """Return what tells a package from one of the same name of the other manager."""
    return f"{manager} {canonicalize_name(name)}"


def is_package(ref: str) -> bool:
    """Whether a component is a package: those are referred to by their package URL."""
    return ref.startswith("pkg:")


def _package(component: _Component) -> PackageNode:
    kind = component.ref.partition("/")[0].removeprefix("pkg:")
    return PackageNode(component.name, component.version, kind)
