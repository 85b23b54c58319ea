"""What a tree says of its packages' insides: distributions of conda packages, vendored libraries.

Wheels bring copies of libraries: `NAME.libs/` by auditwheel, and SBOMs in
`*.dist-info/sboms/` (PEP 770) that say what they are.
"""

from __future__ import annotations

import logging
import posixpath
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from packaging.utils import canonicalize_name

from envferry.base.json import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envferry.pack.packages import InstalledPackage

log = logging.getLogger(__name__)

SBOM_FILE = re.compile(r".*\.dist-info/sboms/.+\.json")
DISTRIBUTION = re.compile(r".*site-packages/[^/]+\.(dist-info/METADATA|egg-info/PKG-INFO)")
GRAFTED = re.compile(r"(?:.*/)?[^/]+\.libs/(?P<name>lib[^/]+?)-[0-9a-f]{8}(?P<rest>[^/]*\.so[^/]*)")
"""What auditwheel calls a copy: the hash of its content is in its name."""
MOST_SBOM = 32 << 20
PURL = re.compile(r"pkg:[a-z][a-z0-9.+-]*/\S+")


class VendoredLibrary(msgspec.Struct, frozen=True, kw_only=True):
    """A library inside a package."""

    name: str
    version: str = ""
    """Empty where it is not recorded."""
    purl: str = ""
    evidence: str
    """The file that says so."""


class _SbomComponent(msgspec.Struct):
    name: str = ""
    version: str = ""
    purl: str = ""
    components: tuple[_SbomComponent, ...] = ()


class _Sbom(msgspec.Struct, rename="camel"):
    bom_format: str
    components: tuple[_SbomComponent, ...] = ()


def parts_in(package: InstalledPackage, tree: Path) -> tuple[VendoredLibrary, ...]:
    """Return the parts of a package; of conda's also the distributions, by upstream's names.

    Scanners know `pkg:pypi/numpy`, few know `pkg:conda/numpy`.
    """
    distributions = distributions_in(package.files, tree) if package.owner.kind == "conda" else ()
    upstream = tuple(
        VendoredLibrary(
            name=name,
            version=version,
            purl=f"pkg:pypi/{name}@{quote(version)}",
            evidence="METADATA",
        )
        for name, version in distributions
    )
    return (*upstream, *vendored_in(package, tree))


def vendored_in(package: InstalledPackage, tree: Path) -> tuple[VendoredLibrary, ...]:
    """Return the libraries that a package says, or shows, that it brings copies of."""
    said: dict[tuple[str, str], VendoredLibrary] = {}
    for file in sorted(filter(SBOM_FILE.fullmatch, package.files)):
        for one in _read_sbom(tree / file, file):
            # The SBOM of a wheel may list the wheel itself.
            if canonicalize_name(one.name) != canonicalize_name(package.owner.name):
                said.setdefault((one.name, one.version), one)
    names = {_stem(one.name) for one in said.values()}
    shown: dict[str, VendoredLibrary] = {}
    for file in sorted(package.files):
        found = GRAFTED.fullmatch(file)
        # What an SBOM names is not counted again by its file.
        if found and not any(_stem(found["name"]).startswith(name) for name in names if name):
            shown.setdefault(found["name"], VendoredLibrary(name=found["name"], evidence=file))
    return (*said.values(), *shown.values())


def distributions_in(files: Iterable[str], tree: Path) -> tuple[tuple[str, str], ...]:
    """Return name and version of the Python distributions among a conda package's files."""
    found: dict[str, str] = {}
    for file in sorted(filter(DISTRIBUTION.fullmatch, files)):
        text = _head(tree / file)
        name, version = (re.search(rf"(?mi)^{key}: *(\S+)", text) for key in ("Name", "Version"))
        if name and version:
            found.setdefault(str(canonicalize_name(name[1])), version[1])
    return tuple(found.items())


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            # Headers end at the first empty line; what follows is the description.
            return stream.read(1 << 16).partition("\n\n")[0]
    except OSError:
        return ""


def _read_sbom(path: Path, file: str) -> Iterator[VendoredLibrary]:
    """Yield the components of a CycloneDX file; one that is something else is named."""
    try:
        with path.open("rb") as stream:
            # A longer one is cut off here, and is skipped below: it is not valid JSON any more.
            data = stream.read(MOST_SBOM + 1)
        # Some writers put null where others omit a field; msgspec takes no null for a string.
        found = decode_json(_pruned(data), _Sbom)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        log.warning("%s is skipped: it is not a CycloneDX document (%s)", file, error)
        return
    if found.bom_format != "CycloneDX":
        log.warning("%s is skipped: its format is %s", file, found.bom_format[:40])
        return
    waiting = list(found.components)
    while waiting:
        one = waiting.pop(0)
        waiting += one.components
        if one.name:
            purl = one.purl if PURL.fullmatch(one.purl) else ""
            yield VendoredLibrary(name=one.name, version=one.version, purl=purl, evidence=file)


def _pruned(data: bytes) -> bytes:
    """Return a document without fields that are null."""
    found = decode_json(data, Any)
    return msgspec.json.encode(_without_nulls(found))


def _without_nulls(value: Any) -> Any:  # noqa: ANN401  (JSON)
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _stem(name: str) -> str:
    """Return a library's name without `lib` and what follows its first letters and digits."""
    return re.split(r"[^a-z0-9]", posixpath.basename(name).lower().removeprefix("lib"))[0]
