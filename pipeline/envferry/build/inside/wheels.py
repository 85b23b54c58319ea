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


def install_wheels(order: BuildRequest, python: Path) -> None:
    """Install the wheels of an order.

    By name and not by path, so that no direct_url.json with a path of this build is written.
    """
    links = links_dir(order)
    links.mkdir()
    for wheel in order.wheels:
        (links / Path(wheel.path).name).symlink_to(wheel.path)
    run_install(order, python, order.wheels)


def reinstall_wheel(order: BuildRequest, python: Path, wheel: WheelFile) -> None:
    """Install one wheel again, over files that another one has as well."""
    run_install(order, python, (wheel,), "--reinstall-package", wheel.name)


def links_dir(order: BuildRequest) -> Path:
    """Return the folder in which uv finds all wheels."""
    return Path(order.scratch) / "wheels"


def run_install(
    order: BuildRequest, python: Path, wheels: Sequence[WheelFile], *options: str
) -> None:
    """Have uv install some wheels, its cache beside the prefix so that it can hard-link."""
    import uv

    lines = [f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in wheels]
    requirements = Path(order.scratch) / "requirements.txt"
    requirements.write_text("".join(lines))
    words: list[str | Path] = [uv.find_uv_bin(), "pip", "install", "--python", python]
    words += ["--offline", "--no-index", "--find-links", links_dir(order), "--no-config"]
    words += ["--no-deps", "--require-hashes", "--no-compile-bytecode", "--link-mode", "hardlink"]
    words += ["--break-system-packages", "--quiet", *options, "-r", requirements]
    finished = process.run(words, env=uv_environ(order), check=False)
    if finished.returncode != 0:
        what = "installing the wheels by uv"
        failure = process.failure([what], finished.returncode, finished.stdout, finished.stderr)
        failure.hint = "lock again, or offer another file of the wheel that is named (--find-links)"
        raise failure


def uv_environ(order: BuildRequest) -> dict[str, str]:
    """Return the environment of uv: what it learns of the interpreter is in its cache, too."""
    return child_environ(UV_CACHE_DIR=f"{order.scratch}/uv", UV_NO_PROGRESS="1")


def check_requirements(order: BuildRequest, python: Path) -> None:
    """Raise SpecError when what packages require of each other does not hold: `pip check`."""
    import uv

    check = (uv.find_uv_bin(), "pip", "check", "--offline", "--no-config", "--python", python)
    finished = process.run(check, env=uv_environ(order), check=False)
    if finished.returncode == 0:
        return
    names = {canonicalize_name(name) for name in order.allow_conflict}
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
