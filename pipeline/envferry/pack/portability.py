"""Find what in an environment cannot be carried to another machine."""

from __future__ import annotations

import json
import os
import posixpath
from typing import TYPE_CHECKING

from envferry.base.site_packages import site_packages_folders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from envferry.pack.packages import InstalledPackage

PATHS_SHOWN = 3


def find_faults(tree: Path, prefix: str, packages: Sequence[InstalledPackage]) -> Iterator[str]:
    """Yield, in words, what is not in the tree although it belongs to the environment."""
    yield from foreign_interpreter(tree, prefix)
    yield from editable_packages(tree, prefix)
    yield from lost_files(tree, packages)


def editable_packages(tree: Path, prefix: str) -> Iterator[str]:
    """Yield packages whose code lies elsewhere: `pip install -e` and `setup.py develop`."""
    named = set()
    folders = site_packages_folders(tree)
    for path in found_in(folders, "*.dist-info/direct_url.json"):
        try:
            record = json.loads(path.read_text())
        except (ValueError, RecursionError):
            continue
        details = record.get("dir_info") if isinstance(record, dict) else None
        if isinstance(details, dict) and details.get("editable") is True:
            name = path.parent.name.split("-")[0]
            named.add(name)
            yield f"{name}: installed as editable from {record.get('url', 'a folder')}"
    for path in found_in(folders, "*.egg-link"):
        yield f"{path.stem}: installed as editable from {first_line(path)}"
    for path in found_in(folders, "*.pth"):
        # It leads to a package that is named already.
        if any(path.name.startswith(f"__editable__.{name}-") for name in named):
            continue
        for line in path.read_text(errors="replace").splitlines():
            inside = is_below(line.strip(), prefix) or is_below(line.strip(), str(tree))
            # `site` runs the lines that begin with `import`; others are paths, relative ones from
            # its folder.
            if line.startswith("/") and not inside:
                yield f"{path.relative_to(tree)}: adds {line.strip()}, outside the environment"


def found_in(folders: Sequence[Path], pattern: str) -> list[Path]:
    """Return what a glob finds in any of these folders."""
    return sorted(path for folder in folders for path in folder.glob(pattern))


def foreign_interpreter(tree: Path, prefix: str) -> Iterator[str]:
    """Yield why a virtual environment does not run elsewhere: its Python is outside of it."""
    settings = tree / "pyvenv.cfg"
    if not settings.is_file():
        return
    for line in settings.read_text(errors="replace").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        inside = is_below(value, prefix) or is_below(value, str(tree))
        if key.lower() == "home" and not inside:
            yield f"pyvenv.cfg: its Python and standard library are at {value}, outside"


def lost_files(tree: Path, packages: Sequence[InstalledPackage]) -> Iterator[str]:
    """Yield conda packages that miss files, and the pip package that took their place."""
    pip = {
        package.owner.name.lower().replace("_", "-"): package
        for package in packages
        if package.owner.kind == "pypi"
    }
    for package in packages:
        if package.owner.kind != "conda":
            continue
        lost = sorted(file for file in package.files if is_lost(tree, file))
        if not lost:
            continue
        what = f"{package.owner.name} {package.owner.version} (conda) lacks {shortened(lost)}"
        other = pip.get(package.owner.name.lower().replace("_", "-"))
        takers = (
            [other] if other else [taker for taker in pip.values() if taker.files & package.files]
        )
        for taker in takers:
            what += f"; {taker.owner.name} {taker.owner.version} (pip) took its place"
        yield what


def is_lost(tree: Path, file: str) -> bool:
    """Whether a file that a package lists is gone; byte code may be."""
    # `.nonadmin` is never packed (NOT_CARRIED in tree_walk.py).
    return not os.path.lexists(tree / file) and not file.endswith((".pyc", ".nonadmin"))


def overwritten(packages: Sequence[InstalledPackage]) -> Iterator[str]:
    """Yield which pip package claims which files of which conda package."""
    for conda in packages:
        for pip in packages:
            shared = conda.files & pip.files
            both = (conda.owner.kind, pip.owner.kind) == ("conda", "pypi")
            # A conda package that brings its RECORD along is what pip's tools see, not a rival.
            if both and shared and not any(path.endswith(".dist-info/RECORD") for path in shared):
                yield (
                    f"{pip.owner.name} {pip.owner.version} (pip) overwrites "
                    f"{shortened(sorted(shared))} of {conda.owner.name} (conda)"
                )


def shortened(paths: Collection[str]) -> str:
    """Return a few paths and how many more there are."""
    shown = ", ".join(sorted(paths)[:PATHS_SHOWN])
    return shown + (f" and {len(paths) - PATHS_SHOWN} more" if len(paths) > PATHS_SHOWN else "")


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return posixpath.normpath(path) == folder or posixpath.normpath(path).startswith(folder + "/")


def first_line(path: Path) -> str:
    """Return the first line of a text."""
    return (path.read_text(errors="replace").splitlines() or ["?"])[0]
