"""Adopt what another tool locked: its files and hashes become our lock, nothing is solved again."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace
from packaging.version import Version

from envferry.lock.conda.conda_requests import conda_request, solve_platforms
from envferry.lock.existing_lock import without_channels
from envferry.lock.lock_options import LockOptions
from envferry.lock.pip.pip_entries import chosen_package
from envferry.lock.pip.pip_inputs import pin_build_requirements, pip_request
from envferry.lock.pip.wheel_choice import wheel_ranks
from envferry.lock.stage import lock_spec
from envferry.lock.unknown_hashes import with_hash
from envferry.specs.locks import LockContents, write_lock
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.errors import PipelineError
    from envferry.lock.pip.pip_request import PipRequest
    from envferry.models import BuildRequirements, Lock, LockedPackage, Spec
    from envferry.progress import Progress
    from envferry.specs.importing.conversion import Imported
    from envferry.specs.importing.foreign_lock import ForeignLock


# Part of the hints of errors that a newer glibc would solve: `system: {glibc: '2.34'}`.
GLIBC_HINT = re.compile(r"glibc: '(?P<version>[\d.]+)'")


def lock_source(imported: Imported, source: str, progress: Progress) -> tuple[Lock, list[str]]:
    """Lock a spec that was just imported: as its source was, or solved when that has no hashes."""
    spec = read_spec(imported.spec.path)
    if imported.lock is None:
        return lock_spec(spec, options=LockOptions(), progress=progress), []
    return adopt_lock(spec, imported.lock, source, progress)


def needed_glibc(error: PipelineError) -> str | None:
    """Return the glibc that would do, if this machine has it: what was imported runs here."""
    found = GLIBC_HINT.search(error.hint or "")
    ours = platform.libc_ver()
    # On macOS and musl nothing can be compared.
    if not found or ours[0] != "glibc":
        return None
    return found["version"] if Version(found["version"]) <= Version(ours[1]) else None


def adopt_lock(
    spec: Spec, foreign: ForeignLock, source: str, progress: Progress
) -> tuple[Lock, list[str]]:
    """Write the lock of a spec that was made of another tool's lock; return what to say of it.

    Only what the other lock lacks is asked for: hashes, the interpreter of a lock that has none,
    and what source packages are built with. Raises NotFound and StoreError when that fails.
    """
    notes: list[str] = []
    halves = {subdir: read_spec(spec.path, platform=subdir) for subdir in spec.platforms}
    packages = [with_hash(item, notes) for item in foreign.packages]
    tools = {"envferry": version("envferry"), "solver": f"as locked in {source}"}
    # uv.lock and pylock.toml list no interpreter: the conda half, which has it, is solved.
    if foreign.candidates:
        request, _ = conda_request(spec, halves, (), LockOptions(), progress)
        packages += solve_platforms(request, spec.name, progress).packages
        tools["solver"] = f"py-rattler {version('py-rattler')}, pip half as locked in {source}"
    build_requirements: list[BuildRequirements] = []
    for subdir, half in halves.items():
        conda = tuple(item for item in packages if item.manager == "conda")
        if not half.pip:
            continue
        asked = pip_request(half, subdir, conda, (), LockOptions())
        packages += _chosen(foreign, asked, notes)
        pip = [item for item in packages if (item.manager, item.platform) == ("pip", subdir)]
        build_requirements += pin_build_requirements(spec, asked, tuple(pip), progress)
    contents = LockContents(
        name=spec.name,
        source=spec.path.name,
        channels=spec.channels,
        packages=tuple(packages),
        # Empty, as conda-lock never saw this spec; the keys say which platforms are locked.
        content_hashes=dict.fromkeys(halves, ""),
        spec_digest=spec.digest,
        options=without_channels(spec.options),
        tools=tools,
        build_requirements=tuple(build_requirements),
    )
    return write_lock(spec.lock_path, contents), notes


def _chosen(foreign: ForeignLock, asked: PipRequest, notes: list[str]) -> Iterator[LockedPackage]:
    """Yield the file of each candidate that suits the python and platform best."""
    request = replace(asked, working_dir=foreign.base)
    ranks = wheel_ranks(request.target)
    provided = dict(request.provided)
    for entry in foreign.candidates:
        # Both would write the same files: conda's choice wins, as in every lock.
        if entry["name"] in provided:
            ours = provided[entry["name"]]
            if ours != entry.get("version"):
                notes.append(
                    f"{entry['name']} {entry.get('version', '')} is left out: "
                    f"the conda half provides {ours}"
                )
            continue
        # Not limited by hashes: an entry has no other files than those that the other tool locked.
        package = with_hash(chosen_package(entry, request, ranks, frozenset()), notes)
        # Names alone, as in locks of ours: uv says which package needs which, without versions.
        needs = {str(need["name"]): "*" for need in entry.get("dependencies") or []}
        yield msgspec.structs.replace(package, dependencies=needs)
