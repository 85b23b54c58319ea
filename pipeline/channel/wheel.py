"""Make conda packages out of wheels.

Pure wheels become `noarch: python`, for every Python that they allow; the others become a package
of this platform for one minor version of Python. Stable-ABI (abi3) wheels do too: conda's way to
share one package among versions is understood by few installers yet.
"""

from __future__ import annotations

import base64
import configparser
import csv
import io
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from email.errors import MessageError
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from packaging import tags
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from pipeline.channel.conda_package import PLACEHOLDER, CondaPackage
from pipeline.channel.elf import glibc_floor, is_elf
from pipeline.channel.requirements import (
    active_requirements,
    marker_environment,
    match_specs,
    version_spec,
)
from pipeline.errors import IntegrityError, SpecError
from pipeline.files import COPY_BYTES, to_json
from pipeline.models import current_platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from packaging.version import Version

    from pipeline.channel.interpreter import Interpreter

CONVERSION = 1
"""Counts up when this module makes another package of the same wheel: it is part of the build."""

UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for damaged, encrypted and strangely compressed files."""

DIST_INFO_DROPPED = {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED"}
ENTRY_POINT = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<attribute>[\w.]+)\s*(\[.*\])?")
SCRIPT_NAME = re.compile(r"[\w.-]+")
GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_\w+|manylinux(1|2010|2014)_\w+")
GLIBC_OF_OLD_TAGS = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}
KNOWN_MINORS = range(8, 17)
"""The minor versions of Python 3 among which a pure wheel's requirements are compared."""

SCRIPT = """\
#!{prefix}/bin/python
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
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


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name, tags and metadata; raise SpecError when it is no good wheel."""
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
        return Wheel(
            path=path,
            name=canonicalize_name(name),
            version=version,
            tags=wheel_tags,
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
        text = error.args[0] if isinstance(error, KeyError) else error
        reason = str(text).partition("\n")[0]
        message = f"{path} is no good wheel: {reason}"
        raise SpecError(message, hint="build or download that wheel again") from error


def supported_tags(interpreter: Interpreter) -> tuple[tags.Tag, ...]:
    """Return the wheel tags that an interpreter on this machine takes, best first."""
    return _tags_of(interpreter.version_pair, interpreter.abi)


@cache
def _tags_of(pair: tuple[int, int], abi: str) -> tuple[tags.Tag, ...]:
    platforms = list(tags.platform_tags())
    return (
        *tags.cpython_tags(python_version=pair, abis=[abi], platforms=platforms),
        *tags.compatible_tags(pair, interpreter=abi, platforms=platforms),
    )


def fits(wheel: Wheel, interpreter: Interpreter) -> bool:
    """Whether a wheel's tags and its Requires-Python allow an interpreter."""
    tags_fit = not wheel.tags.isdisjoint(supported_tags(interpreter))
    return tags_fit and wheel.requires_python.contains(interpreter.version, prereleases=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """Wheels that go into one environment together, and what is asked of them."""

    interpreter: Interpreter
    wheels: Mapping[str, Wheel]
    """By normalized name."""
    extras: Mapping[str, frozenset[str]]
    """The extras that are asked for, by normalized name of the package that offers them."""


def close_over(
    interpreter: Interpreter, wheels: Iterable[Wheel], requirements: Iterable[Requirement]
) -> Closure:
    """Find which extras the requirements ask of the wheels, and the wheels of each other."""
    by_name = {wheel.name: wheel for wheel in wheels}
    environment = marker_environment(interpreter.version)
    extras: dict[str, set[str]] = {name: set() for name in by_name}
    waiting = [*active_requirements(requirements, environment, ()), *(_plain(n) for n in by_name)]
    seen: set[str] = set()
    while waiting:
        item = waiting.pop()
        name = canonicalize_name(item.name)
        if name not in by_name:
            continue
        asked = {canonicalize_name(extra) for extra in item.extras}
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


def _plain(name: str) -> Requirement:
    return Requirement(name)


def describe_wheel(wheel: Wheel, closure: Closure) -> CondaPackage:
    """Return the conda package that a wheel becomes for a closure's interpreter.

    A `linux_*` wheel says nothing of the glibc that it needs: `stage_wheel` adds that.
    """
    interpreter = closure.interpreter
    requirements = _requirements(wheel, closure, interpreter.version)
    if wheel.is_pure:
        python = version_spec(wheel.requires_python)
        if _differs_between_pythons(wheel, closure, requirements):
            python = f">={interpreter.minor},<{interpreter.next_minor}"
        depends = (f"python {python}".strip(), *requirements)
        prefix, subdir = "py", "noarch"
    else:
        depends = (
            *(f"__glibc >={major}.{minor},<3.0.a0" for major, minor in _glibc_of_tags(wheel)),
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


def _requirements(wheel: Wheel, closure: Closure, python_version: str) -> tuple[str, ...]:
    environment = marker_environment(python_version)
    extras = closure.extras.get(wheel.name, frozenset())
    versions = {name: item.version for name, item in closure.wheels.items()}
    active = active_requirements(wheel.requirements, environment, extras)
    others = [item for item in active if canonicalize_name(item.name) != wheel.name]
    return match_specs(others, versions)


def _differs_between_pythons(wheel: Wheel, closure: Closure, found: tuple[str, ...]) -> bool:
    """Whether another Python that the wheel allows would need other packages."""
    versions = (f"3.{minor}.99" for minor in KNOWN_MINORS)
    allowed = (version for version in versions if wheel.requires_python.contains(version))
    return any(_requirements(wheel, closure, version) != found for version in allowed)


def _glibc_of_tags(wheel: Wheel) -> list[tuple[int, int]]:
    """Return the oldest glibc that the tags allow, if they say."""
    found = []
    for match in (GLIBC_TAG.fullmatch(tag.platform) for tag in wheel.tags):
        if match and match[3]:
            found.append(GLIBC_OF_OLD_TAGS[match[3]])
        elif match:
            found.append((int(match[1]), int(match[2])))
    return [min(found)] if found else []


def stage_wheel(
    wheel: Wheel, package: CondaPackage, interpreter: Interpreter, tree: Path
) -> CondaPackage:
    """Lay a wheel out under `tree` as conda does and return the package, its glibc now known.

    Raises IntegrityError when a file is not what the wheel's RECORD says, SpecError when its name
    leads out of the environment.
    """
    staging = _Staging(
        tree=tree,
        site_packages="site-packages" if wheel.is_pure else interpreter.site_packages,
        scripts="python-scripts" if wheel.is_pure else "bin",
        headers=f"include/python{interpreter.minor}/{wheel.name}",
        wheel=wheel,
    )
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            recorded = _recorded_hashes(archive, f"{wheel.dist_info}/RECORD")
            for member in archive.infolist():
                if staging.is_wanted(member.filename):
                    staging.extract(archive, member, recorded.get(member.filename))
    except UNREADABLE as error:
        message = f"{wheel.path} is damaged: {error}"
        raise IntegrityError(message, hint="build or download that wheel again") from error
    if not wheel.is_pure:
        for line in wheel.entry_points:
            staging.add_script(line)
    staging.finish()
    if wheel.is_pure or _glibc_of_tags(wheel):
        return package
    binaries = [path for path in tree.rglob("*") if path.is_file() and is_elf(path)]
    floor = glibc_floor(binaries)
    glibc = (f"__glibc >={floor[0]}.{floor[1]},<3.0.a0",) if floor else ()
    return replace(package, depends=(*glibc, *package.depends))


@dataclass(slots=True, kw_only=True)
class _Staging:
    """Lays out one wheel and keeps its RECORD."""

    tree: Path
    site_packages: str
    scripts: str
    headers: str
    """Three directories of the package, relative to `tree`."""
    wheel: Wheel
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """What RECORD says: path in the tree, hash, size."""

    def is_wanted(self, name: str) -> bool:
        """Whether a member of the wheel goes into the package: byte code and our RECORD do not."""
        directory, _, file_name = name.rpartition("/")
        dropped = directory == self.wheel.dist_info and file_name in DIST_INFO_DROPPED
        return bool(file_name) and not dropped and not directory.endswith("__pycache__")

    def place(self, name: str) -> str:
        """Return where a member of the wheel goes, relative to the tree."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            message = f"{self.wheel.path} holds {name!r}, which leads out of the environment"
            raise SpecError(message, hint="do not use that wheel")
        if parts[0] != self.wheel.data:
            return f"{self.site_packages}/{name}"
        bases = {
            "purelib": self.site_packages,
            "platlib": self.site_packages,
            "scripts": self.scripts,
            "headers": self.headers,
            "data": ".",
        }
        if len(parts) < 3 or parts[1] not in bases:
            message = f"{self.wheel.path} holds {name!r}, which no install scheme knows"
            raise SpecError(message, hint="build or download that wheel again")
        place = PurePosixPath(bases[parts[1]], *parts[2:])
        if place.parts[0] in ("info", "conda-meta"):
            message = f"{self.wheel.path} holds {name!r}, where conda keeps its own files"
            raise SpecError(message, hint="do not use that wheel")
        return str(place)

    def extract(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, recorded: str | None
    ) -> None:
        """Extract one member; `recorded` is its SHA-256 in RECORD's form, if RECORD has it."""
        place = self.place(member.filename)
        target = self.tree / place
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashes.Hash(hashes.SHA256())
        with archive.open(member) as reading, target.open("wb") as writing:
            while chunk := reading.read(COPY_BYTES):
                writing.write(chunk)
                digest.update(chunk)
        found = _record_hash(digest)
        if recorded and recorded != found:
            message = (
                f"{self.wheel.path}: {member.filename} is damaged: "
                f"RECORD says {recorded}, found {found}"
            )
            raise IntegrityError(message, hint="build or download that wheel again")
        is_script = place.startswith(f"{self.scripts}/")
        executable = is_script or (member.external_attr >> 16) & stat.S_IXUSR
        target.chmod(0o755 if executable else 0o644)
        if is_script and _point_to_python(target):
            # Its bytes depend on where the environment is.
            self.rows.append((place, "", ""))
        else:
            self.rows.append((place, found, str(member.file_size)))

    def add_script(self, entry_point: str) -> None:
        """Write the script of an entry point, for packages whose installer does not make it."""
        name, _, place = entry_point.partition(" = ")
        module, _, attribute = place.partition(":")
        text = SCRIPT.format(
            prefix=PLACEHOLDER,
            module=module,
            first=attribute.partition(".")[0],
            attribute=attribute,
        )
        target = self.tree / self.scripts / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        target.chmod(0o755)
        self.rows.append((f"{self.scripts}/{name}", "", ""))

    def finish(self) -> None:
        """Write INSTALLER and RECORD, and put the licenses where conda looks for them."""
        dist_info = f"{self.site_packages}/{self.wheel.dist_info}"
        installer = b"conda\n"
        (self.tree / dist_info / "INSTALLER").write_bytes(installer)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(installer)
        name = f"{dist_info}/INSTALLER"
        rows = {path: (hashed, size) for path, hashed, size in self.rows}
        rows[name] = (_record_hash(digest), str(len(installer)))
        rows[f"{dist_info}/RECORD"] = ("", "")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for path in sorted(rows):
            writer.writerow((self._as_recorded(path), *rows[path]))
        (self.tree / dist_info / "RECORD").write_text(text.getvalue(), "utf-8")
        _copy_licenses(self.tree / dist_info, self.tree / "info/licenses")

    def _as_recorded(self, path: str) -> str:
        """Return a path of the tree relative to where site-packages will be."""
        inside = path.removeprefix(f"{self.site_packages}/")
        if inside != path:
            return inside
        if path.startswith(f"{self.scripts}/"):
            path = f"bin/{path.removeprefix(f'{self.scripts}/')}"
        return f"../../../{path}"


def _record_hash(digest: hashes.Hash) -> str:
    return "sha256=" + base64.urlsafe_b64encode(digest.finalize()).rstrip(b"=").decode()


def _recorded_hashes(archive: zipfile.ZipFile, name: str) -> dict[str, str]:
    """Return the SHA-256 that RECORD has for each member; other algorithms are rare and left."""
    try:
        text = archive.read(name).decode()
    except KeyError:
        return {}
    rows = csv.reader(io.StringIO(text))
    return {row[0]: row[1] for row in rows if len(row) > 1 and row[1].startswith("sha256=")}


def _point_to_python(script: Path) -> bool:
    """Replace a wheel's `#!python` line by the environment's python; say whether there was one."""
    with script.open("rb") as stream:
        first = stream.readline()
        if not first.startswith(b"#!python"):
            return False
        rest = stream.read()
    script.write_bytes(f"#!{PLACEHOLDER}/bin/python\n".encode() + rest)
    return True


def _copy_licenses(dist_info: Path, target: Path) -> None:
    """Copy license files, from where metadata 2.4 has them and from where setuptools had them."""
    pattern = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)[\w.-]*")
    directories = (dist_info / "licenses", dist_info / "license_files")
    nested = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    flat = [path for path in dist_info.iterdir() if path.is_file() and pattern.fullmatch(path.name)]
    for path in sorted([*nested, *flat]):
        inside = path.relative_to(dist_info).as_posix()
        copy = target / inside.removeprefix("licenses/").removeprefix("license_files/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def _special_directory(names: Iterable[str], name: str, ending: str) -> str:
    """Return a wheel's one top-level directory with `ending`."""
    tops = {member.partition("/")[0] for member in names if "/" in member}
    found = sorted(top for top in tops if top.endswith(ending))
    if len(found) != 1:
        message = f"it has {len(found)} {ending} directories, expected one"
        raise ValueError(message)
    if canonicalize_name(found[0].removesuffix(ending).rpartition("-")[0]) != name:
        message = f"its directory {found[0]} does not belong to {name}"
        raise ValueError(message)
    return found[0]


def _entry_points(archive: zipfile.ZipFile, name: str) -> tuple[str, ...]:
    """Return the scripts that a wheel wants, as `name = module:attribute`, sorted."""
    if name not in archive.namelist():
        return ()
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(archive.read(name).decode())
    found: dict[str, str] = {}
    for section in ("gui_scripts", "console_scripts"):
        for script, place in parser.items(section) if parser.has_section(section) else ():
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
        message = f"its Requires-Dist {line!r} is no requirement"
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
