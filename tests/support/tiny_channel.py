"""A conda channel of hand-made packages, small enough to make for each test run."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import zstandard
from cryptography.hazmat.primitives import hashes

from envferry.process import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

INDEX = """
import asyncio, os, sys
from rattler.index import index_fs
asyncio.run(index_fs(sys.argv[1]))
os._exit(0)
"""


@dataclass(frozen=True, kw_only=True)
class TinyPackage:
    """What a package's `info/index.json` says."""

    name: str
    version: str
    build: str = "0"
    depends: tuple[str, ...] = ()
    subdir: str = "linux-64"
    files: tuple[tuple[str, str], ...] = ()
    """Paths and contents; those in bin/ are executable."""
    links: tuple[tuple[str, str], ...] = ()
    """Symbolic links, and where they lead."""
    placeholder: str = ""
    """What stands in the files for the prefix, as in binaries."""

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"


def python_packages(subdir: str = "linux-64") -> list[TinyPackage]:
    """Return two pythons, what every environment has, and two numpys."""
    needs_310 = ("python >=3.10,<3.11.0a0", "python_abi 3.10.*")
    return [
        TinyPackage(
            name="python",
            version=version,
            build="h1_0",
            depends=(f"python_abi {minor}.*",),
            subdir=subdir,
        )
        for version, minor in (("3.10.13", "3.10"), ("3.11.5", "3.11"))
    ] + [
        TinyPackage(name="python_abi", version="3.10", build="0_cp310", subdir=subdir),
        TinyPackage(name="python_abi", version="3.11", build="0_cp311", subdir=subdir),
        TinyPackage(
            name="numpy", version="2.2.6", build="py310_0", depends=needs_310, subdir=subdir
        ),
        TinyPackage(
            name="numpy", version="1.26.4", build="py310_0", depends=needs_310, subdir=subdir
        ),
        TinyPackage(name="newglibc", version="1.0", depends=("__glibc >=2.34",), subdir=subdir),
        TinyPackage(name="newcuda", version="1.0", depends=("__cuda >=12",), subdir=subdir),
        *(
            TinyPackage(
                name=name,
                version=version,
                build="pyh_0",
                depends=("python >=3.9",),
                subdir="noarch",
            )
            for name, version in (("pip", "25.2"), ("setuptools", "80.9.0"), ("wheel", "0.45.1"))
        ),
    ]


def make_channel(directory: Path, packages: Iterable[TinyPackage]) -> Path:
    """Write packages into a channel directory and index it."""
    (directory / "noarch").mkdir(parents=True)
    add_packages(directory, packages)
    return directory


def add_packages(directory: Path, packages: Iterable[TinyPackage]) -> None:
    """Write more packages into a channel directory and index it again."""
    for package in packages:
        _write_package(directory / package.subdir, package)
    run([sys.executable, "-c", INDEX, directory])


def _write_package(directory: Path, package: TinyPackage) -> None:
    index: dict[str, object] = {
        "name": package.name,
        "version": package.version,
        "build": package.build,
        "build_number": 0,
        "depends": list(package.depends),
        "subdir": package.subdir,
    }
    if package.subdir == "noarch":
        index["noarch"] = "python"
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / f"{package.stem}.conda", "w") as archive:
        archive.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
        archive.writestr(
            f"pkg-{package.stem}.tar.zst", _tar(dict(package.files), dict(package.links))
        )
        info = {"info/index.json": json.dumps(index)}
        names = [name for name, _ in (*package.files, *package.links)]
        info["info/files"] = "".join(f"{name}\n" for name in names)
        paths = [_path_entry(package, name, text) for name, text in package.files]
        paths += [{"_path": name, "path_type": "softlink"} for name, _ in package.links]
        info["info/paths.json"] = json.dumps({"paths": paths, "paths_version": 1})
        archive.writestr(f"info-{package.stem}.tar.zst", _tar(info))


def _path_entry(package: TinyPackage, name: str, text: str) -> dict[str, object]:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(text.encode())
    prefix = {"file_mode": "binary", "prefix_placeholder": package.placeholder}
    return {
        **(prefix if package.placeholder else {}),
        "_path": name,
        "path_type": "hardlink",
        "sha256": digest.finalize().hex(),
        "size_in_bytes": len(text.encode()),
    }


def _tar(files: dict[str, str], links: Mapping[str, str] = MappingProxyType({})) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            member.mode = 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return zstandard.compress(stream.getvalue())
