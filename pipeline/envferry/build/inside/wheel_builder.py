"""Runs inside a container without network: one source package becomes a wheel."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.base.json import decode_json
from envferry.build.inside.build_backend import Backend
from envferry.build.inside.builder import set_modes
from envferry.build.inside.network_attempts import network_tries
from envferry.build.request import BuildAnswer, WheelRequest
from envferry.config import SOURCE_DATE_EPOCH, child_environ
from envferry.errors import HostError, PipelineError, ToolFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def main(request_path: str) -> None:
    """Carry out the request in a file and leave the answer on stdout."""
    request = decode_json(Path(request_path).read_bytes(), WheelRequest)
    try:
        make_wheel(request)
        answer = BuildAnswer()
    except PipelineError as error:
        answer = BuildAnswer(error=error.message, hint=error.hint, exit_code=error.exit_code)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        message = f"making a wheel of {request.name} stopped: {error}"
        answer = BuildAnswer(error=message, exit_code=HostError.exit_code)
    sys.stdout.write(msgspec.json.encode(answer).decode())


def make_wheel(request: WheelRequest) -> None:
    """Make the wheel in the request's folder `dist`, with nothing but what the lock pins.

    Always at the same paths, with the same modes and the same date: compilers and zip files keep
    them. Raises ToolFailed when the project's own build fails, or wants the network.
    """
    import uv

    home = Path(request.home)
    project = unpack(Path(request.source), home / "work") / request.folder
    set_modes(home / "work")
    venv = home / "venv"
    environ = child_environ(
        PATH=f"{venv}/bin:{Path(request.python).parent}:/usr/bin:/bin",
        SOURCE_DATE_EPOCH=str(SOURCE_DATE_EPOCH),
        UV_CACHE_DIR=str(home / "uv"),
        UV_NO_PROGRESS="1",
        UV_LINK_MODE="hardlink",
        VIRTUAL_ENV=str(venv),
    )
    uv_words = (uv.find_uv_bin(), "--offline", "--no-config")
    process.run([*uv_words, "venv", "--quiet", "--python", request.python, venv], env=environ)
    install_requirements(request, uv_words, environ)
    backend = Backend(project, venv / "bin/python", environ)
    tries = network_tries()
    finished = backend.make_wheel(home / "dist")
    what = f"making a wheel of {request.name}"
    has_tried = network_tries() > tries
    if finished.returncode == 0 and has_tried:
        msg = (
            f"{what} tried to use the network, which a build does not have, and went on without it"
        )
        raise ToolFailed(
            msg,
            hint="offer a wheel of it instead (--find-links), or what it downloads as a package",
        )
    if finished.returncode == 0:
        return
    failure = process.failure([what], finished.returncode, finished.stdout, "")
    if has_tried:
        failure.message += "\nit tried to use the network, which a build does not have"
    # Asked only after a failure, since the answer runs the project's code once more.
    pinned = [item.name for item in request.requires]
    raise failed_wheel(request, failure.message, backend.unpinned_requirements(pinned))


def failed_wheel(request: WheelRequest, message: str, lacking: Sequence[str]) -> ToolFailed:
    """Describe a failed build; name what its backend asked for and the lock does not pin."""
    known = ", ".join(f"{item.name} {item.version}" for item in request.requires) or "nothing"
    if not lacking:
        hint = (
            f"it was built with {known}, as its pyproject.toml asks; name what else it needs "
            "there or in the conda half, or offer a wheel of it (--find-links)"
        )
        return ToolFailed(message, hint=hint)
    wanted = ", ".join(lacking)
    lines = ", ".join(f'"{line}"' for line in lacking)
    hint = (
        f"it was built with {known}; add {lines} to `requires` of [build-system] in its "
        "pyproject.toml and lock again, or offer a wheel of it (--find-links)"
    )
    return ToolFailed(f"{message}\nits build requires {wanted}, not pinned in the lock", hint=hint)


def install_requirements(
    request: WheelRequest, uv_words: tuple[str, ...], environ: Mapping[str, str]
) -> None:
    """Put the pinned build requirements into the virtual environment, by hash."""
    if not request.requires:
        return
    links = Path(request.home) / "links"
    # `--find-links` takes a folder; the download cache has one for each file.
    links.mkdir()
    for wheel in request.requires:
        (links / Path(wheel.path).name).symlink_to(wheel.path)
    lines = [
        f"{item.name}=={item.version} --hash=sha256:{item.sha256}\n" for item in request.requires
    ]
    requirements = links / "requirements.txt"
    requirements.write_text("".join(lines))
    words: list[str | Path] = [
        *uv_words,
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--find-links",
        links,
    ]
    # The lock pins all of them, so nothing is resolved.
    words += ["--no-deps", "--require-hashes", "-r", requirements]
    process.run(words, env=environ)


def unpack(source: Path, target: Path) -> Path:
    """Unpack an archive, or copy a folder; return the one folder that is in it then."""
    if source.is_dir():
        shutil.copytree(source, target / "source", symlinks=True)
    elif source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            # zipfile itself drops `..` and a leading slash from names.
            archive.extractall(target)
    else:
        with tarfile.open(source) as tar:
            # Debian 12's Python 3.11.2 knows no filters; this runs in a throwaway container.
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(target)
    folders = [path for path in target.iterdir() if path.is_dir()]
    if len(folders) != 1:
        message = f"{source.name} has {len(folders)} top-level folders, expected one"
        raise ToolFailed(message, hint="offer a wheel of it instead (--find-links)")
    return folders[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
