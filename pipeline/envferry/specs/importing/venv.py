"""Drafts out of environments that conda did not make: venv, virtualenv, uv, a bare python."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envferry.errors import SpecError
from envferry.specs.drafts import SpecDraft
from envferry.specs.importing.conda_environments import add_distributions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SEEDS = ("setuptools", "wheel")
"""What tools put into new environments; conda's pip may bring them in its own versions."""


def draft_venv(prefix: Path, name: str, channels: Iterable[str]) -> SpecDraft:
    """Read a virtual environment by its `dist-info`, `direct_url.json` and `pyvenv.cfg`.

    Raises SpecError when it holds no python packages.
    """
    settings = _settings(prefix / "pyvenv.cfg")
    # A link is a second name of a folder that is listed already.
    folders = [path for path in sorted(prefix.glob("lib/python3*")) if not path.is_symlink()]
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        message = f"{prefix} contains packages of several pythons: {found}"
        raise SpecError(message, hint="recreate the environment with one of them")
    # `python3.13t`: a python without the GIL (PEP 703).
    version = folders[0].name.removeprefix("python").removesuffix("t")
    draft = SpecDraft(name=name, channels=list(channels), conda=[f"python={version}"])
    # virtualenv and uv write `version_info`, the standard library's venv `version`.
    exact = settings.get("version_info", settings.get("version", "")) or version
    draft.notes.append(f"the environment's python is {exact}: using a channel's python={version}")
    if folders[0].name.endswith("t"):
        draft.left_out.append(f"{folders[0].name} has no GIL: using a channel's standard python")
    if settings.get("include-system-site-packages", "").lower() == "true":
        draft.left_out.append("packages of the system's python, which this environment sees too")
    add_distributions(draft, prefix, set())
    _without_seeds(draft)
    _name_added_paths(draft, folders[0] / "site-packages")
    return draft


def _without_seeds(draft: SpecDraft) -> None:
    """Leave pip to conda, and let conda choose the versions of what it may bring along."""
    for line in [*draft.pip]:
        package, equals, version = line.partition("==")
        if equals and package == "pip":
            draft.pip.remove(line)
            draft.notes.append(f"pip {version} is left to conda, which installs its own")
        elif equals and package in SEEDS:
            draft.pip[draft.pip.index(line)] = package
            draft.notes.append(f"{package} {version} is required without its version")


def _name_added_paths(draft: SpecDraft, packages: Path) -> None:
    """Name the `.pth` files that put folders of this machine on the path."""
    for path in sorted(packages.glob("*.pth")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        # Other lines are code (`import …`), or folders inside of the environment.
        folders = [line.strip() for line in lines if line.strip().startswith("/")]
        if folders:
            draft.left_out.append(f"{path.name} puts {', '.join(folders)} on the path")


def _settings(path: Path) -> dict[str, str]:
    """Return the `key = value` lines of a pyvenv.cfg; nothing without that file."""
    if not path.is_file():
        return {}
    found = re.findall(
        r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", path.read_text(encoding="utf-8", errors="replace"), re.M
    )
    return {key.lower(): value for key, value in found}
