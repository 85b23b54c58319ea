"""Describe wheels as conda packages.

Pure wheels become `noarch: python`, for every Python that they allow; the others become a package
of this platform for one minor version of Python. Stable-ABI (abi3) wheels do too: conda's way to
share one package among versions is understood by few installers yet.
"""

from __future__ import annotations

import configparser
import re
import zipfile
import zlib
from email.errors import MessageError
from functools import cache
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3
from packaging import tags
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from envferry.base.entry_points import read_scripts
from envferry.base.json import to_json
from envferry.channel.conda_package import CondaPackage
from envferry.channel.requirements import (
    active_requirements,
    match_specs,
    version_spec,
)
from envferry.errors import SpecError
from envferry.names import current_platform
from envferry.specs.syntax.markers import target_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from packaging.version import Version

    from envferry.channel.interpreter import Interpreter

CONVERSION = 1
"""Counts up when another package is made of the same wheel: it is part of the build."""

UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for damaged, encrypted and strangely compressed files."""

ENTRY_POINT = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<attribute>[\w.]+)\s*(\[.*\])?")
SCRIPT_NAME = re.compile(r"[\w.-]+")
GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_\w+|manylinux(1|2010|2014)_\w+")
GLIBC_OF_OLD_TAGS = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}
KNOWN_MINORS = range(8, 17)
"""The minor versions of Python 3 among which a pure wheel's requirements are compared."""


class ChannelWheel(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel file, read and understood."""

    path: Path
    name: str
    """Normalized; it is the conda package's name too."""
    version: Version
    tags: frozenset[tags.Tag]
    is_pure: bool
    """Whether one tree serves every Python and platform."""
    dist_info: str
    data: str
    """The names of its two special directories."""
    requirements: tuple[Requirement, ...]
    requires_python: SpecifierSet
    entry_points: tuple[str, ...]
    """`name = module:attribute`, sorted."""
    license: str | None
    summary: str | None
    home: str | None
    digest: str
    """BLAKE3 of the file, in hex."""


def read_wheel(path: Path) -> ChannelWheel:
    """Read a wheel's name, tags and metadata; raise SpecError when it is not a usable wheel."""
    try:
        name, version, _, wheel_tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            dist_info = _special_directory(names, name, ".dist-info")
            metadata, _ = parse_email(archive.read(f"{dist_info}/METADATA"))
            markings = archive.read(f"{dist_info}/WHEEL").decode()
            entry_points = _entry_points(archive, f"{dist_info}/entry_points.txt")
        data = dist_info.removesuffix(".dist-info") + ".data"
        purelib = re.search(r"(?mi)^Root-Is-Purelib:\s*true\s*$", markings) is not None
        headers = any(member.startswith(f"{data}/headers/") for member in names)
        return ChannelWheel(
            path=path,
            name=canonicalize_name(name),
            version=version,
            tags=wheel_tags,
            # Headers go below `include/pythonX.Y`, so a wheel that has some is of one minor
            # version.
            is_pure=purelib and not headers and all(tag.platform == "any" for tag in wheel_tags),
            dist_info=dist_info,
            data=data,
            requirements=tuple(map(_requirement, metadata.get("requires_dist", ()))),
            requires_python=_requires_python(metadata.get("requires_python", "")),
            entry_points=entry_points,
            license=_license(metadata),
            summary=metadata.get("summary"),
            home=_home(metadata),
            digest=_digest(path),
        )
    except (
        *UNREADABLE,
        *(KeyError, configparser.Error, MessageError, ValueError),
        *(InvalidWheelFilename, InvalidSpecifier),
    ) as error:
        # str() of a KeyError has quotes around the message.
        text = error.args[0] if isinstance(error, KeyError) else error
        reason = str(text).partition("\n")[0]
        message = f"{path} is not a valid wheel: {reason}"
        raise SpecError(message, hint="build or download that wheel again") from error


def supported_tags(interpreter: Interpreter) -> tuple[tags.Tag, ...]:
    """Return the wheel tags that an interpreter on this machine takes, best first."""
    return _tags_of(interpreter.version_pair, interpreter.abi)


@cache
def _tags_of(pair: tuple[int, int], abi: str) -> tuple[tags.Tag, ...]:
    # Of this machine: a wheel for a newer glibc does not fit, whatever the interpreter is.
    platforms = list(tags.platform_tags())
    return (
        *tags.cpython_tags(python_version=pair, abis=[abi], platforms=platforms),
        *tags.compatible_tags(pair, interpreter=abi, platforms=platforms),
    )


def fits(wheel: ChannelWheel, interpreter: Interpreter) -> bool:
    """Whether a wheel's tags and its Requires-Python allow an interpreter."""
    tags_fit = not wheel.tags.isdisjoint(supported_tags(interpreter))
    # Installers, too, let a pre-release of python count as that version.
    return tags_fit and wheel.requires_python.contains(interpreter.version, prereleases=True)


class Closure(msgspec.Struct, frozen=True, kw_only=True):
    """Wheels that go into one environment together, and what is asked of them."""

    interpreter: Interpreter
    wheels: Mapping[str, ChannelWheel]
    """By normalized name."""
    extras: Mapping[str, frozenset[str]]
    """The extras that are asked for, by normalized name of the package that offers them."""


def close_over(
    interpreter: Interpreter, wheels: Iterable[ChannelWheel], requirements: Iterable[Requirement]
) -> Closure:
    """Find which extras the requirements ask of the wheels, and the wheels of each other."""
    by_name = {wheel.name: wheel for wheel in wheels}
    environment = target_environment(interpreter.version, current_platform())
    extras: dict[str, set[str]] = {name: set() for name in by_name}
    waiting = [*active_requirements(requirements, environment, ()), *map(Requirement, by_name)]
    seen: set[str] = set()
    while waiting:
        item = waiting.pop()
        name = canonicalize_name(item.name)
        if name not in by_name:
            continue
        asked = {canonicalize_name(extra) for extra in item.extras}
        # Extras may ask for each other in a circle; only a new one is a reason to look again.
        if name in seen and asked <= extras[name]:
            continue
        seen.add(name)
        extras[name] |= asked
        waiting += active_requirements(by_name[name].requirements, environment, extras[name])
    return Closure(
        interpreter=interpreter,
        wheels=by_name,
        extras={name: frozenset(asked) for name, asked in extras.items()},
    )


def describe_wheel(wheel: ChannelWheel, closure: Closure) -> CondaPackage:
    """Return the conda package that a wheel becomes for a closure's interpreter.

    A `linux_*` wheel says nothing of the glibc that it needs: `stage_wheel` adds that.
    """
    interpreter = closure.interpreter
    requirements = _requirements(wheel, closure, interpreter.version)
    if wheel.is_pure:
        python = version_spec(wheel.requires_python)
        # noarch packages have one list of dependencies; markers that differ tie it to one minor
        # version.
        if _differs_between_pythons(wheel, closure, requirements):
            python = f">={interpreter.minor},<{interpreter.next_minor}"
        depends = (f"python {python}".strip(), *requirements)
        prefix, subdir = "py", "noarch"
    else:
        depends = (
            *(f"__glibc >={major}.{minor},<3.0.a0" for major, minor in glibc_of_tags(wheel)),
            f"python >={interpreter.minor},<{interpreter.next_minor}",
            f"python_abi {interpreter.minor}.* *_{interpreter.abi}",
            *requirements,
        )
        prefix, subdir = f"py{interpreter.abi.removeprefix('cp')}", current_platform()
    # What decides the bytes decides the build string, so one file name has one content.
    content = to_json([CONVERSION, wheel.digest, subdir, depends, interpreter.minor])
    if wheel.is_pure:
        content = to_json([CONVERSION, wheel.digest, subdir, depends])
    return CondaPackage(
        name=wheel.name,
        version=str(wheel.version),
        build=f"{prefix}h{blake3(content).hexdigest()[:7]}_0",
        subdir=subdir,
        depends=depends,
        noarch="python" if wheel.is_pure else None,
        license=wheel.license,
        summary=wheel.summary,
        home=wheel.home,
        entry_points=wheel.entry_points if wheel.is_pure else (),
    )


def _requirements(wheel: ChannelWheel, closure: Closure, python_version: str) -> tuple[str, ...]:
    environment = target_environment(python_version, current_platform())
    extras = closure.extras.get(wheel.name, frozenset())
    versions = {name: item.version for name, item in closure.wheels.items()}
    active = active_requirements(wheel.requirements, environment, extras)
    # A wheel may ask for an extra of its own (`pkg[all]`); a package that depends on itself is
    # unsolvable.
    others = [item for item in active if canonicalize_name(item.name) != wheel.name]
    return match_specs(others, versions)


def _differs_between_pythons(wheel: ChannelWheel, closure: Closure, found: tuple[str, ...]) -> bool:
    """Whether another Python that the wheel allows would need other packages."""
    # .99, so that markers such as `python_full_version >= "3.9.2"` hold as in the latest patch.
    versions = (f"3.{minor}.99" for minor in KNOWN_MINORS)
    allowed = (version for version in versions if wheel.requires_python.contains(version))
    return any(_requirements(wheel, closure, version) != found for version in allowed)


def glibc_of_tags(wheel: ChannelWheel) -> list[tuple[int, int]]:
    """Return the oldest glibc that the tags allow, if they say."""
    found = []
    for match in (GLIBC_TAG.fullmatch(tag.platform) for tag in wheel.tags):
        if match and match[3]:
            found.append(GLIBC_OF_OLD_TAGS[match[3]])
        elif match:
            found.append((int(match[1]), int(match[2])))
    # A wheel may have several tags; the oldest glibc of them is enough to run it.
    return [min(found)] if found else []


def _special_directory(names: Iterable[str], name: str, ending: str) -> str:
    """Return a wheel's one top-level directory with `ending`."""
    tops = {member.partition("/")[0] for member in names if "/" in member}
    found = sorted(top for top in tops if top.endswith(ending))
    if len(found) != 1:
        message = f"it has {len(found)} {ending} directories, expected one"
        raise ValueError(message)
    # Compared in normal form: old tools wrote the project's name as it is.
    if canonicalize_name(found[0].removesuffix(ending).rpartition("-")[0]) != name:
        message = f"its directory {found[0]} does not belong to {name}"
        raise ValueError(message)
    return found[0]


def _entry_points(archive: zipfile.ZipFile, name: str) -> tuple[str, ...]:
    """Return the scripts that a wheel wants, as `name = module:attribute`, sorted."""
    if name not in archive.namelist():
        return ()
    found: dict[str, str] = {}
    for script, place in read_scripts(archive.read(name).decode()):
        match = ENTRY_POINT.fullmatch(place.strip())
        if not match or not SCRIPT_NAME.fullmatch(script):
            message = f"its entry point {script!r} = {place!r} is not `module:function`"
            raise ValueError(message)
        found[script] = f"{match['module']}:{match['attribute']}"
    return tuple(f"{script} = {found[script]}" for script in sorted(found))


def _requirement(line: str) -> Requirement:
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        message = f"its Requires-Dist {line!r} is not a valid requirement"
        raise ValueError(message) from error


def _requires_python(text: str) -> SpecifierSet:
    # Wheels from before the check say `>=3.6.*`, and installers take it for `>=3.6`.
    return SpecifierSet(re.sub(r"([<>]=?\s*[\d.]+?)\.\*", r"\1", text))


def _license(metadata: RawMetadata) -> str | None:
    """Return the license expression, else a license field that is a name and not its whole text."""
    text = metadata.get("license_expression") or metadata.get("license", "")
    if text and "\n" not in text and len(text) <= 100:
        return text
    trove = [line for line in metadata.get("classifiers", ()) if line.startswith("License ::")]
    return trove[0].rpartition("::")[2].strip() if trove else None


def _home(metadata: RawMetadata) -> str | None:
    urls = {label.lower(): url for label, url in metadata.get("project_urls", {}).items()}
    return metadata.get("home_page") or urls.get("homepage") or urls.get("source")


def _digest(path: Path) -> str:
    digest = blake3()
    digest.update_mmap(path)
    return digest.hexdigest()
