"""The pip half inside the container, by uv: by name and hash, from a folder, nothing resolved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from envferry import process
from envferry.config import child_environ
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.build.request import BuildRequest, WheelFile


def install_wheels(request: BuildRequest, python: Path) -> None:
    """Install the wheels of a request.

    By name and not by path, so that no direct_url.json with a path of this build is written.
    """
    links = links_dir(request)
    # `--find-links` takes a folder; the download cache has one for each file.
    links.mkdir()
    for wheel in request.wheels:
        (links / Path(wheel.path).name).symlink_to(wheel.small_path or wheel.path)
    run_install(request, python, request.wheels)


def reinstall_wheel(request: BuildRequest, python: Path, wheel: WheelFile) -> None:
    """Install one wheel again, over files that another one has as well."""
    run_install(request, python, (wheel,), "--reinstall-package", wheel.name)


def links_dir(request: BuildRequest) -> Path:
    """Return the folder in which uv finds all wheels."""
    return Path(request.scratch) / "wheels"


def run_install(
    request: BuildRequest, python: Path, wheels: Sequence[WheelFile], *options: str
) -> None:
    """Have uv install some wheels, its cache beside the prefix so that it can hard-link."""
    import uv

    lines = [
        f"{item.name}=={item.version} --hash=sha256:{item.small_sha256 or item.sha256}\n"
        for item in wheels
    ]
    requirements = Path(request.scratch) / "requirements.txt"
    requirements.write_text("".join(lines))
    words: list[str | Path] = [uv.find_uv_bin(), "pip", "install", "--python", python]
    words += ["--offline", "--no-index", "--find-links", links_dir(request), "--no-config"]
    # Byte code comes last, for all modules alike (compile_bytecode.py).
    words += ["--no-deps", "--require-hashes", "--no-compile-bytecode", "--link-mode", "hardlink"]
    # An environment's python may be marked as externally managed (PEP 668).
    words += ["--break-system-packages", "--quiet", *options, "-r", requirements]
    finished = process.run(words, env=uv_environ(request), check=False)
    if finished.returncode != 0:
        what = "installing the wheels by uv"
        failure = process.failure([what], finished.returncode, finished.stdout, finished.stderr)
        failure.hint = "lock again, or offer another file of the wheel that is named (--find-links)"
        raise failure


def uv_environ(request: BuildRequest) -> dict[str, str]:
    """Return the environment of uv: what it learns of the interpreter is in its cache, too."""
    return child_environ(UV_CACHE_DIR=f"{request.scratch}/uv", UV_NO_PROGRESS="1")


def check_requirements(request: BuildRequest, python: Path) -> None:
    """Raise SpecError when what packages require of each other does not hold: `pip check`."""
    import uv

    check = (uv.find_uv_bin(), "pip", "check", "--offline", "--no-config", "--python", python)
    finished = process.run(check, env=uv_environ(request), check=False)
    if finished.returncode == 0:
        return
    names = {canonicalize_name(name) for name in request.allow_conflict}
    # uv begins each complaint like this; its other lines count and sum up.
    complaints = [line for line in finished.stderr.splitlines() if line.startswith("The package")]
    if not complaints:
        raise process.failure(["uv pip check"], finished.returncode, "", finished.stderr)
    faults = []
    for complaint in complaints:
        found = re.search(r"`([^`]+)`", complaint)
        if not (found and canonicalize_name(found[1]) in names):
            faults.append(complaint)
    if faults:
        raise SpecError(
            "\n  ".join(["the packages are incompatible:", *faults]),
            hint="lock again, or accept it for one package: --allow-conflict NAME",
        )
