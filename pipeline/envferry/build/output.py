"""What is left of a build: the tree, its lock, its list of materials, and its record."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import SBOM
from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.build.finished_builds import RECORD
from envferry.models import CHECKS, BuiltEnv
from envferry.names import current_platform
from envferry.pack.sbom import SbomInput, bill_of_materials

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.build.build_dir import BuildDir
    from envferry.build.request import BuildAnswer
    from envferry.models import Lock, LockedPackage

LOCK = "conda-lock.yml"


def note_build(
    lock: Lock, answer: BuildAnswer, image: str | None, work: BuildDir, home: Path
) -> BuiltEnv:
    """Return the record of a build that is to be kept in `home`."""
    platform = current_platform()
    return BuiltEnv(
        name=lock.name,
        platform=platform,
        prefix=str(work.prefix),
        tree=str(home / work.tree.relative_to(work.home)),
        lock_path=str(home / LOCK),
        lock_digest=lock.digest,
        content_hash=lock.content_hashes.get(platform, ""),
        options=lock.options,
        tools=answer.tools,
        image=image,
    )


def without_checks(built: BuiltEnv) -> BuiltEnv:
    """Record that the checks of a spec did not run, if it has any: `release` relies on them."""
    checks = built.options.checks
    if not (checks.imports or checks.commands):
        return built
    return msgspec.structs.replace(built, tools={**built.tools, CHECKS: "not run"})


def describe_build(built: BuiltEnv, packages: tuple[LockedPackage, ...], work: BuildDir) -> None:
    """Leave beside the tree what it is made of: the SBOM."""
    ingredients = SbomInput.read(built, packages, work.tree)
    write_bytes(work.home / SBOM, bill_of_materials(ingredients))


def keep_build(built: BuiltEnv, lock: Lock, work: BuildDir, home: Path) -> None:
    """Put a finished build where the next stage looks for it, its record last."""
    shutil.rmtree(work.exchange)
    shutil.copyfile(lock.path, work.home / LOCK)
    if home.exists():
        # Without its record the old build is not in use; it can be removed later.
        (home / RECORD).unlink(missing_ok=True)
        shutil.rmtree(home)
    work.home.rename(home)
    write_bytes(home / RECORD, to_json(built))
