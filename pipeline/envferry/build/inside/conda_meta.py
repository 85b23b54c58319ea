"""conda's records of an environment, in conda-meta: read, and corrected."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import decode_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

STATE = "conda-meta/state"
"""What activation sets."""
RATTLER_ASIDE = "__clobbers__/"
"""Where rattler puts the file of a package that another one has as well: `…/PACKAGE/FILE`."""


@dataclass(slots=True)
class CondaRecords:
    """The records of a prefix, by the path of their file."""

    prefix: Path
    records: dict[Path, dict[str, Any]]

    @classmethod
    def read(cls, prefix: Path) -> CondaRecords:
        """Read the records of a prefix."""
        paths = sorted(prefix.glob("conda-meta/*.json"))
        return cls(prefix, {path: decode_json(path.read_bytes(), dict[str, Any]) for path in paths})

    @property
    def python_minor(self) -> str:
        """The version of python, such as `3.11`; empty without python."""
        versions = (item["version"] for item in self.records.values() if item["name"] == "python")
        return ".".join(next(versions, "").split(".")[:2])

    @property
    def site_packages(self) -> str:
        """Where Python packages are, relative to the prefix; CEP 17 lets python say so."""
        for record in self.records.values():
            # conda-forge's python without the GIL says `lib/python3.13t/site-packages`.
            if record["name"] == "python" and record.get("python_site_packages_path"):
                return str(record["python_site_packages_path"])
        return f"lib/python{self.python_minor}/site-packages"

    def owners(self) -> dict[str, str]:
        """Return whose each file is."""
        return {
            file: str(record["name"])
            for record in self.records.values()
            for file in record["files"]
        }

    def forget(self, names: Collection[str], taken: Collection[str]) -> None:
        """Drop from these packages the files that were taken over or are there no more."""
        for record in self.records.values():
            if record["name"] not in names:
                continue
            kept = {
                file
                for file in record["files"]
                if file not in taken and os.path.lexists(self.prefix / file)
            }
            record["files"] = sorted(kept)
            paths = record.get("paths_data", {}).get("paths", [])
            paths[:] = [entry for entry in paths if entry["_path"] in kept]

    def forget_aside(self) -> None:
        """Remove the files that rattler put aside because another package has them as well."""
        shutil.rmtree(self.prefix / RATTLER_ASIDE, ignore_errors=True)
        for record in self.records.values():
            record["files"] = [file for file in record["files"] if not is_aside(file)]
            paths = record.get("paths_data", {}).get("paths", [])
            paths[:] = [entry for entry in paths if not is_aside(entry["_path"])]

    def finish(self, urls: Mapping[str, str]) -> None:
        """Write the records of these packages as they are true on every machine."""
        for path, record in self.records.items():
            if record["name"] not in urls:
                continue
            list_bytecode(self.prefix, record, self.python_minor)
            note_checksums(record)
            record["url"] = urls[record["name"]]
            # Where this build had the package is true nowhere else.
            record["extracted_package_dir"] = record["package_tarball_full_path"] = ""
            # 1 is a hard link (conda's LinkType).
            record["link"] = {"source": "", "type": 1}
            # Part of the archive's bytes: another order of the keys is another id.
            encoded = msgspec.json.encode(record, order="sorted")
            path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def list_bytecode(prefix: Path, record: dict[str, Any], python_minor: str) -> None:
    """Add a package's byte code to its record, as conda does for noarch packages.

    conda-pack leaves out byte code that no record lists when its source belongs to a conda package.
    """
    ending = f".cpython-{python_minor.replace('.', '')}.pyc"
    # What was compiled is known only now: modules that hold the prefix have no byte code.
    listed = {file for file in record["files"] if not is_cached_bytecode(file)}
    sources = (PurePosixPath(file) for file in listed if file.endswith(".py"))
    candidates = (str(file.parent / "__pycache__" / f"{file.stem}{ending}") for file in sources)
    compiled = {file for file in candidates if (prefix / file).exists()}
    paths = record.get("paths_data", {"paths_version": 1, "paths": []})
    paths["paths"] = [entry for entry in paths["paths"] if not is_cached_bytecode(entry["_path"])]
    paths["paths"] += [{"_path": pyc, "path_type": "pyc_file"} for pyc in sorted(compiled)]
    record["files"] = sorted(listed | compiled)
    record["paths_data"] = paths


def note_checksums(record: dict[str, Any]) -> None:
    """Note what `conda doctor` compares files with, as conda does and rattler does not.

    A file that was linked as it is has the checksum it has in its package. A symbolic link has
    none: rattler's is that of the link's text, conda would compare it with the file behind.
    """
    for entry in record["paths_data"]["paths"]:
        if entry.get("path_type") == "softlink":
            entry.pop("sha256_in_prefix", None)
        elif entry.get("path_type") == "hardlink" and "sha256" in entry:
            entry.setdefault("sha256_in_prefix", entry["sha256"])


def is_aside(path: str) -> bool:
    """Whether rattler put a file aside."""
    return path.startswith(RATTLER_ASIDE)


def is_cached_bytecode(path: str) -> bool:
    """Whether python can make this file again from its source."""
    return path.endswith(".pyc") and "/__pycache__/" in path
