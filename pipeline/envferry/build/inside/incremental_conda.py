"""Whether conda packages can be added to a tree, or taken out, by themselves; and adding them.

A package is linked beside the tree first, as rattler links it at the prefix. It comes in only where
it meets nothing of others; where that is in doubt, all is built from scratch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from envferry.build.inside.built_tree import NotIncremental
from envferry.build.inside.clobbers import installed_distributions
from envferry.build.inside.conda_meta import CondaRecords, is_aside
from envferry.build.inside.incremental import (
    empty_folders,
    fills_empty_folder,
    has_own_bytecode,
    why_affects_others,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

SCRIPT = re.compile(r"bin/\.[^/]+-(?:post-link|pre-link|pre-unlink)\.sh")


def files_of(records: CondaRecords) -> dict[str, tuple[str, ...]]:
    """Return what each package has brought, its record among it, by its name."""
    return {
        str(record["name"]): (*record["files"], str(path.relative_to(records.prefix)))
        for path, record in records.records.items()
    }


def why_not_incremental(records: CondaRecords) -> str:
    """Return why no package of these can come or go by itself; empty where each of them can.

    Asked before anything but conda packages, and their scripts, has changed the prefix.
    """
    found = files_of(records)
    holders = Counter(chain.from_iterable(found.values()))
    several = (f"several packages have {path}" for path in holders if holders[path] > 1)
    reasons = chain(
        # A script may write anywhere in the prefix, and no record says what.
        (f"there is a script, {path}" for path in holders if SCRIPT.fullmatch(path)),
        (f"several packages have {path}" for path in holders if is_aside(path)),
        several,
        (f"files lie below the link {link}" for link in _links_above(records.prefix, holders)),
        (f"{folder} is empty" for folder in empty_folders(records.prefix)),
    )
    if not has_own_bytecode(found.values(), ()):
        return "byte code of a module comes from another package than the module"
    return next(reasons, "")


def _links_above(prefix: Path, files: Iterable[str]) -> list[str]:
    """Return the links below which some files lie: these are elsewhere than they are called."""
    folders = {parent for file in files for parent in PurePosixPath(file).parents}
    return sorted(str(folder) for folder in folders if (prefix / folder).is_symlink())


def add_packages(
    prefix: Path, added: Path, wheel_files: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Move packages that were linked at `added` into the tree; return what each has brought.

    Raises NotIncremental, before anything is moved, where one of them meets what is there.
    """
    records = CondaRecords.read(added)
    found = files_of(records)
    files = [*chain.from_iterable(found.values())]
    if reason := why_not_incremental(records) or why_affects_others(added, files):
        raise NotIncremental(reason)
    # Wheels' modules are linked into the tree later.
    taken = set(wheel_files)
    for file in files:
        if file in taken or os.path.lexists(prefix / file):
            message = f"{file} of a conda package already exists"
            raise NotIncremental(message)
    _require_plain_folders(prefix, files, taken)
    site_packages = CondaRecords.read(prefix).site_packages
    ours = installed_distributions(files, site_packages)
    theirs = installed_distributions(wheel_files, site_packages)
    # A build from scratch refuses that, or lets the wheel win where it is allowed.
    if twins := ours.keys() & theirs.keys():
        message = f"{min(twins)} comes from conda, and as a wheel"
        raise NotIncremental(message)
    for file in files:
        (prefix / file).parent.mkdir(parents=True, exist_ok=True)
        # Within one file system: the packages were linked in the scratch folder, beside the
        # prefix.
        (added / file).rename(prefix / file)
    return found


def _require_plain_folders(prefix: Path, files: Collection[str], taken: Collection[str]) -> None:
    """Raise NotIncremental where files would lie below a link or a file, or in what is empty."""
    for folder in {parent for file in files for parent in PurePosixPath(file).parents}:
        place = prefix / folder
        is_file = str(folder) in taken
        if is_file or place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
            message = f"{folder} is not a folder of its own"
            raise NotIncremental(message)
    if fills_empty_folder(prefix, files):
        message = "a file of a conda package comes into an empty folder"
        raise NotIncremental(message)
