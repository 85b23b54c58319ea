"""What a host without network needs to install envferry itself: wheels and a script."""

from __future__ import annotations

import re
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import envferry
from envferry.base.files import write_bytes
from envferry.base.sha256 import sha256_hex, sha256_record
from envferry.build.cache_locks import cache_lock
from envferry.errors import SpecError
from envferry.lock.pip.pip_half import resolve_pip
from envferry.lock.pip.pip_request import PipRequest
from envferry.trust.signed_files import ATTESTATION_SUFFIX
from envferry.trust.tool_signature import (
    RUN_FILE,
    SUMS,
    TOOL_ATTESTATION,
    attest_run_file,
    attest_tool,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.build.downloads import DownloadCache
    from envferry.models import LockedPackage
    from envferry.progress import Progress
    from envferry.trust.signing import Signer

NAME = "envferry"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
GLIBC = "2.17"
"""manylinux2014: what all hosts have that are still in use."""
MACHINES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
SCRIPT = Path(__file__).with_name("install.sh")
CONSOLE_SCRIPT = Path(envferry.__file__).with_name("console_script.py")
"""What pyproject.toml has the usual wheel install as `bin/envferry`."""
LOCKED = Path(__file__).with_name("tool-requirements.txt")
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which hosts the tool is for."""

    pythons: tuple[str, ...] = PYTHONS
    platform: str
    run_file: bytes | None = None
    """The one-file tool, for hosts without any of these pythons."""


def write_tool(
    directory: Path,
    request: ToolRequest,
    *,
    cache: DownloadCache,
    progress: Progress,
    signer: Signer | None = None,
) -> tuple[str, ...]:
    """Write wheels, their checksums and `install.sh`; return the names of the wheels.

    uv resolves, the download cache fetches and checks. With a `signer` all of it is signed. Raises
    SpecError when a package has no wheel for a python, StoreError when an index cannot be reached.
    """
    if request.platform not in MACHINES:
        message = f"envferry's wheels cannot be gathered for {request.platform}"
        raise SpecError(message, hint=f"one of {', '.join(MACHINES)}")
    ours = own_wheel()
    resolved = {python: resolve_tool(python, request.platform) for python in request.pythons}
    # One pip for all: the newest that still runs on the oldest of these pythons.
    (pip,) = resolve_pip(_request(("pip",), min(request.pythons, key=_version), request.platform))
    packages = {one.url: one for some in resolved.values() for one in some} | {pip.url: pip}
    files = {f"wheels/{name}": data for name, data in [ours]}
    with cache_lock(cache.root, shared=True):
        found = cache.fetch_all(list(packages.values()), progress=progress)
        files |= {f"wheels/{path.name}": path.read_bytes() for path in found.values()}
    for python, some in resolved.items():
        lines = [f"{NAME}=={envferry.__version__} --hash=sha256:{sha256_hex(ours[1])}"]
        lines += [f"{one.name}=={one.version} --hash=sha256:{one.sha256}" for one in some]
        files[f"requirements-{python}.txt"] = "".join(f"{line}\n" for line in lines).encode()
    files["machine.txt"] = f"{MACHINES[request.platform]}\n".encode()
    files["install.sh"] = SCRIPT.read_bytes()
    if request.run_file:
        files[RUN_FILE] = request.run_file
    sums = "".join(f"{sha256_hex(data)}  {name}\n" for name, data in sorted(files.items())).encode()
    signed = {TOOL_ATTESTATION: attest_tool(sums, signer)} if signer else {}
    if signer and request.run_file:
        signed[RUN_FILE + ATTESTATION_SUFFIX] = attest_run_file(request.run_file, signer)
    # The signatures are not among the checksums: one of them is over the checksums.
    _replace_folder(directory, files | {SUMS: sums} | signed)
    return tuple(sorted(name.removeprefix("wheels/") for name in files if name.endswith(".whl")))


def own_wheel() -> tuple[str, bytes]:
    """Return the name and bytes of a wheel of this very envferry, however it was installed.

    Its modules and the metadata of its installation: no build tool and no network is needed, and
    equal inputs give equal bytes.
    """
    distribution = metadata.distribution(NAME)
    if distribution.version != envferry.__version__:
        message = f"envferry {envferry.__version__} was installed as {distribution.version}"
        raise SpecError(message, hint="install it again, so that its metadata match")
    info = f"{NAME}-{distribution.version}.dist-info"
    package = Path(envferry.__file__).parent
    content = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # Installers put what is below `.data/scripts` into `bin` (PyPA, binary distribution format).
    content[f"{NAME}-{distribution.version}.data/scripts/{NAME}"] = CONSOLE_SCRIPT.read_bytes()
    content[f"{info}/METADATA"] = (distribution.read_text("METADATA") or "").encode()
    for file in distribution.files or ():
        # In `licenses/` of the metadata folder (PEP 639), which wheels must carry along.
        if "licenses" in file.parts:
            content[f"{info}/{'/'.join(file.parts[1:])}"] = Path(str(file.locate())).read_bytes()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: envferry\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    lines = [f"{name},{sha256_record(data)},{len(data)}" for name, data in content.items()]
    # RECORD lists itself without digest and size (PyPA, recording installed projects).
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    return f"{NAME}-{distribution.version}-py3-none-any.whl", _zip(content)


def resolve_tool(python: str, platform: str) -> tuple[LockedPackage, ...]:
    """Return the wheels of all that a training host needs, at the versions of the lock."""
    found = resolve_pip(_request(wanted_requirements(LOCKED), python, platform))
    for package in found:
        if package.kind != "wheel" or not package.sha256:
            message = f"{package.name} {package.version} has no wheel for python {python}"
            raise SpecError(message, hint=f"leave out --python {python}")
    return found


def wanted_requirements(locked: Path) -> tuple[str, ...]:
    """Return requirement lines: pins with their hashes where this project's lock was shipped.

    That is pip's format, as `uv export` writes it. Without it, what the metadata allow.
    """
    if locked.is_file():
        # pip joins lines at a backslash, and hashes stand on lines of their own.
        text = re.sub(r"\s*\\\n\s*", " ", locked.read_text(encoding="utf-8"))
        lines = (line.strip() for line in text.splitlines())
        return tuple(line for line in lines if line and not line.startswith(("#", "-")))
    needs = metadata.distribution(NAME).requires or []
    # Extras are for builders; hosts get the base dependencies.
    return tuple(line for line in needs if "extra ==" not in line)


def _request(lines: tuple[str, ...], python: str, platform: str) -> PipRequest:
    return PipRequest(requirements=lines, python_version=python, platform=platform, glibc=GLIBC)


def _version(python: str) -> tuple[int, ...]:
    # As numbers: as words, 3.10 comes before 3.9.
    return tuple(int(part) for part in python.split("."))


def _replace_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Write files that do not exist yet; remove wheels of an earlier export."""
    for name, data in files.items():
        path = directory / name
        # A second export to a slow disk writes only what has changed.
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data)
            if name == RUN_FILE:
                path.chmod(0o755)
    for path in _leftovers(directory, files):
        path.unlink()


def _leftovers(directory: Path, files: dict[str, bytes]) -> Iterator[Path]:
    for pattern in ("wheels/*", "requirements-*.txt", TOOL_ATTESTATION, f"{RUN_FILE}*"):
        for path in list(directory.glob(pattern)):
            if path.relative_to(directory).as_posix() not in files:
                yield path


def _zip(content: dict[str, bytes]) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            # A fixed time: zip has none before 1980, and equal inputs give equal wheels.
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # pip leaves scripts as they are in the wheel, executable or not.
            entry.external_attr = (0o100755 if "/scripts/" in name else 0o100644) << 16
            wheel.writestr(entry, data)
    return buffer.getvalue()
