"""Lay a wheel out as the files of a conda package."""

from __future__ import annotations

import csv
import io
import re
import stat
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

import msgspec
from cryptography.hazmat.primitives import hashes
from msgspec.structs import replace

from envferry.base.files import COPY_BYTES
from envferry.base.sha256 import record_form, sha256_record
from envferry.channel.conda_package import PLACEHOLDER, CondaPackage
from envferry.channel.elf import glibc_floor, is_elf
from envferry.channel.wheel import UNREADABLE, ChannelWheel, glibc_of_tags
from envferry.errors import IntegrityError, SpecError

if TYPE_CHECKING:
    from pathlib import Path

DIST_INFO_DROPPED = {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED"}

SCRIPT = """\
#!{prefix}/bin/python
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


class PythonLayout(Protocol):
    """What an interpreter's own version decides of where things go."""

    @property
    def minor(self) -> str:
        """The first two numbers of its version, such as `3.11`."""

    @property
    def site_packages(self) -> str:
        """Where packages lie, relative to the prefix."""


def stage_wheel(
    wheel: ChannelWheel, package: CondaPackage, interpreter: PythonLayout, tree: Path
) -> CondaPackage:
    """Lay a wheel out under `tree` as conda does and return the package, its glibc now known.

    Raises IntegrityError when a file is not what the wheel's RECORD says, SpecError when its name
    leads out of the environment.
    """
    staging = _Staging(
        tree=tree,
        # For `noarch: python` the installer moves `site-packages` and `python-scripts` to where
        # python wants them.
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
    # The tags already say what glibc it needs; only `linux_*` wheels are asked themselves.
    if wheel.is_pure or glibc_of_tags(wheel):
        return package
    binaries = [path for path in tree.rglob("*") if path.is_file() and is_elf(path)]
    floor = glibc_floor(binaries)
    glibc = (f"__glibc >={floor[0]}.{floor[1]},<3.0.a0",) if floor else ()
    return replace(package, depends=(*glibc, *package.depends))


class _Staging(msgspec.Struct, kw_only=True):
    """Lays out one wheel and keeps its RECORD."""

    tree: Path
    site_packages: str
    scripts: str
    headers: str
    """Three directories of the package, relative to `tree`."""
    wheel: ChannelWheel
    rows: list[tuple[str, str, str]] = msgspec.field(default_factory=list)
    """What RECORD says: path in the tree, hash, size."""

    def is_wanted(self, name: str) -> bool:
        """Whether a member of the wheel goes into the package: byte code and our RECORD do not."""
        directory, _, file_name = name.rpartition("/")
        dropped = directory == self.wheel.dist_info and file_name in DIST_INFO_DROPPED
        return bool(file_name) and not dropped and not directory.endswith("__pycache__")

    def place(self, name: str) -> str:
        """Return where a member of the wheel goes, relative to the tree."""
        parts = PurePosixPath(name).parts
        # A backslash is a separator where packages are unpacked on Windows.
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            message = f"{self.wheel.path} contains {name!r}, which points outside the environment"
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
            message = f"{self.wheel.path} contains {name!r}, which is in no install scheme"
            raise SpecError(message, hint="build or download that wheel again")
        place = PurePosixPath(bases[parts[1]], *parts[2:])
        # From the scheme `data`, whose root is the prefix.
        if place.parts[0] in ("info", "conda-meta"):
            message = f"{self.wheel.path} contains {name!r}, where conda keeps its own files"
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
        found = record_form(digest.finalize())
        if recorded and recorded != found:
            message = (
                f"{self.wheel.path}: {member.filename} is damaged: "
                f"RECORD has {recorded}, found {found}"
            )
            raise IntegrityError(message, hint="build or download that wheel again")
        is_script = place.startswith(f"{self.scripts}/")
        # Zip files made on Windows have no modes, so scripts are made executable in any case.
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
        name = f"{dist_info}/INSTALLER"
        rows = {path: (hashed, size) for path, hashed, size in self.rows}
        rows[name] = (sha256_record(installer), str(len(installer)))
        # RECORD lists itself without a hash (PEP 376): it cannot contain its own.
        rows[f"{dist_info}/RECORD"] = ("", "")
        text = io.StringIO()
        # csv ends lines with CR LF if it is not told otherwise.
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
        # site-packages lies three folders below the prefix.
        return f"../../../{path}"


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
