"""The files of a new repository of specs: a spec, a CI service's file, a .gitignore."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

import msgspec

from envferry import __version__
from envferry.base.files import make_folders, write_bytes
from envferry.errors import TargetOccupied, UsageError
from envferry.names import SPECS_DIR, check_name
from envferry.specs.drafts import quoted
from envferry.specs.spec_names import RESERVED_NAMES
from envferry.specs.syntax.conda_lines import conda_name
from envferry.specs.syntax.pip_lines import pip_line_problem

STARTER = Path(__file__).with_name("starter")
Service = Literal["github", "gitlab", "none"]
SERVICES: tuple[Service, ...] = get_args(Service)
CI_FILES: dict[Service, Path] = {
    "github": Path(".github/workflows/environments.yml"),
    "gitlab": Path(".gitlab-ci.yml"),
}
PIP = "pip:"
GITIGNORE = Path(".gitignore")
USUAL_NAME = "train"
USUAL_SERVICE: Service = "github"
USUAL_PACKAGES = ("python=3.12",)


class NewRepository(msgspec.Struct, frozen=True, kw_only=True):
    """What a new repository is to be for."""

    name: str
    packages: tuple[str, ...] = USUAL_PACKAGES
    """conda's match specs; those that start with `pip:` are pip's requirements."""
    service: Service = USUAL_SERVICE


def usual_name(folder: Path) -> str:
    """Return a name for the first environment of a folder: the folder's, if it can be one."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-._")
    return USUAL_NAME if not name or name in RESERVED_NAMES else name[:100]


def starting_files(start: NewRepository) -> dict[Path, str]:
    """Return the text of each file, by its path from the folder of the repository.

    Raises UsageError for a name or a package that cannot stand in a spec.
    """
    # Imported here: it needs PyYAML, which an installation without the `build` extra may lack.
    from envferry.specs.reading import parse_spec

    name = check_name(start.name, "environment name")
    if name in RESERVED_NAMES:
        message = f"{name} is conda's own environment, which cannot be carried"
        raise UsageError(message, hint="choose another name, such as `train`")
    path = SPECS_DIR / f"{name}.yml"
    text = spec_text(name, start.packages)
    # Read back: what is written here must be a spec, whatever was typed.
    parse_spec(text, path)
    files = {path: text, GITIGNORE: _starter("gitignore")}
    if start.service != "none":
        files[CI_FILES[start.service]] = _starter(f"{start.service}.yml")
    return files


def spec_text(name: str, packages: tuple[str, ...]) -> str:
    """Return a spec of these packages; its check runs python, if that is among them."""
    conda = [line for line in packages if not line.startswith(PIP)]
    pip = [line.removeprefix(PIP) for line in packages if line.startswith(PIP)]
    for line in pip:
        if problem := pip_line_problem(line):
            message = f"`{line}` is not a valid pip requirement: {problem}"
            raise UsageError(message, hint="write it as pip:NAME or pip:NAME==VERSION")
    for line in conda:
        if not re.search("[a-z]", conda_name(line)):  # such as a version, typed in its place
            message = f"`{line}` is not a valid package"
            raise UsageError(message, hint="write it as NAME or NAME=VERSION, such as python=3.12")
    names = {conda_name(line) for line in conda}
    # A pip half needs both from conda; lint would say so of the first spec (S106).
    conda += [tool for tool in ("python", "pip") if pip and tool not in names]
    lines = [f"  - {quoted(line)}" for line in conda]
    if pip:
        lines += ["  - pip:", *(f"      - {quoted(line)}" for line in pip)]
    has_python = bool(pip) or "python" in names
    checks = "    commands: [python --version]" if has_python else "    commands: []"
    text = _starter("spec.yml").replace("@NAME@", name)
    return text.replace("@DEPENDENCIES@", "\n".join(lines)).replace("@CHECKS@", checks)


def missing_files(folder: Path, files: dict[Path, str]) -> tuple[Path, ...]:
    """Return the paths of the files that a folder lacks.

    A file that is there with the same text stays, and so does every .gitignore. Raises
    TargetOccupied for another one that differs.
    """
    missing = []
    for path, text in files.items():
        target = folder / path
        if not target.exists():
            missing.append(path)
        elif path != GITIGNORE and (not target.is_file() or target.read_bytes() != text.encode()):
            message = f"{path} already exists and differs: nothing was written"
            raise TargetOccupied(message, hint=_hint(path))
    return tuple(missing)


def not_ignored(folder: Path) -> tuple[str, ...]:
    """Return what the .gitignore that is there should ignore as well."""
    path = folder / GITIGNORE
    there = path.read_text(errors="replace").split() if path.is_file() else []
    wanted = [line for line in _starter("gitignore").splitlines() if not line.startswith("#")]
    # `dist` without slashes ignores all that `/dist/` does.
    return tuple(line for line in wanted if line not in there and line.strip("/") not in there)


def write_start(folder: Path, files: dict[Path, str]) -> tuple[Path, ...]:
    """Write the files that a folder lacks; return their paths. Raises as `missing_files` does."""
    missing = missing_files(folder, files)
    for path in missing:
        make_folders((folder / path).parent)
        write_bytes(folder / path, files[path].encode())
    return missing


def _hint(path: Path) -> str:
    if path in CI_FILES.values():
        return "leave it out with `--ci none`, and add to yours what `--dry-run --json` prints"
    return "choose another `--name`, or remove it first"


def _starter(name: str) -> str:
    return (STARTER / name).read_text().replace("@VERSION@", __version__)
