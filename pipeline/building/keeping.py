"""What is left of a build: the tree, its lock, its list of materials, and its record."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pipeline.artifacts import SBOM
from pipeline.building.records import RECORD
from pipeline.building.sbom import Ingredients, bill_of_materials
from pipeline.files import to_json, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.building.workplace import Workplace
    from pipeline.models import BuiltEnv, Lock, LockedPackage


def describe_build(built: BuiltEnv, packages: tuple[LockedPackage, ...], work: Workplace) -> None:
    """Leave beside the tree what it is made of: the SBOM."""
    ingredients = Ingredients.read(built, packages, work.tree)
    write_bytes(work.home / SBOM, to_json(bill_of_materials(ingredients)))


def keep_build(built: BuiltEnv, lock: Lock, work: Workplace, home: Path) -> None:
    """Put a finished build where the next stage looks for it, its record last."""
    shutil.rmtree(work.desk)
    shutil.copyfile(lock.path, work.home / "conda-lock.yml")
    if home.exists():
        # Without its record the old build is nobody's; it may go at leisure.
        (home / RECORD).unlink(missing_ok=True)
        shutil.rmtree(home)
    work.home.rename(home)
    write_bytes(home / RECORD, to_json(built))
