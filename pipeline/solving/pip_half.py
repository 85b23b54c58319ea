"""The pip half of a lock: requirement lines in, exactly one wheel for each package out, by uv."""

from __future__ import annotations

import re
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pipeline.config import child_environ
from pipeline.errors import SpecError, StoreError
from pipeline.models import LockedPackage, without_credentials
from pipeline.process import run
from pipeline.solving.solver_words import UNREACHABLE, tidy
from pipeline.solving.wheel_choice import DEFAULT_GLIBC, WheelTarget, choose_wheel, wheel_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from packaging.tags import Tag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UV_PLATFORMS = {
    "linux-64": "x86_64-manylinux",
    "linux-aarch64": "aarch64-manylinux",
    "linux-ppc64le": "powerpc64le-unknown-linux-gnu",
    "osx-64": "x86_64-apple-darwin",
    "osx-arm64": "aarch64-apple-darwin",
}
# The manylinux floors that uv's --python-platform knows.
UV_GLIBC_MINORS = (17, 28, *range(31, 41))

PATH_OPTIONS = re.compile(
    r"(?P<option>-[crf]|--(?:constraints?|requirements?|find-links))(?P<gap>\s+|=|(?<=-[crf]))(?P<path>.+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipRequest:
    """What to resolve, and for which python and platform."""

    requirements: tuple[str, ...]
    """Requirement lines, and option lines such as `--extra-index-url …`."""
    python_version: str
    platform: str
    constraints: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    """Names that never appear in the answer."""
    provided: tuple[tuple[str, str], ...] = ()
    """Names and versions that the environment has already: obeyed, never part of the answer."""
    glibc: str | None = None
    working_dir: Path | None = None
    """What relative paths in requirements start from."""

    @property
    def target(self) -> WheelTarget:
        """What wheels are chosen for."""
        return WheelTarget(
            python_version=self.python_version,
            platform=self.platform,
            glibc=self.glibc or DEFAULT_GLIBC,
        )


def resolve_pip(request: PipRequest) -> tuple[LockedPackage, ...]:
    """Resolve requirements to one wheel for each package, sorted by name.

    Raises SpecError when they cannot be satisfied or a package has no wheel for the target,
    StoreError when an index cannot be reached.
    """
    lines = tuple(_anchor(line, request) for line in request.requirements)
    if not any(_asks_for_packages(line) for line in lines):
        return ()
    _check_provided(request)
    ranks = wheel_ranks(request.target)
    with tempfile.TemporaryDirectory(prefix="envferry-pip-") as scratch:
        answer = _compile(request, lines, Path(scratch))
    packages = [_locked(entry, request, ranks) for entry in answer.get("packages", [])]
    return tuple(sorted(packages, key=lambda package: package.name))


def _asks_for_packages(line: str) -> bool:
    return line.startswith(("-r", "--requirement")) or not line.startswith(("-", "#"))


def _anchor(line: str, request: PipRequest) -> str:
    """Make relative paths absolute, since uv gets the lines in a file elsewhere."""
    line = line.strip()
    base = (request.working_dir or Path.cwd()).absolute()
    option = PATH_OPTIONS.fullmatch(line)
    if re.match(r"(-e|--editable)\b", line):
        message = f"{line!r} is editable: it points at a directory that stays on this machine"
        raise SpecError(message, hint="build a wheel of it and name the wheel's path instead")
    if option and "://" not in option["path"]:
        return f"{option['option']} {base / option['path'].strip()}"
    if line.startswith((".", "/")):
        return str(base / line)
    found = re.fullmatch(r"(?P<name>[^@;#]+@\s*)(?P<path>\.{1,2}/.+)", line)
    return f"{found['name']}{(base / found['path']).as_uri()}" if found else line


def _check_provided(request: PipRequest) -> None:
    """Raise SpecError when a requirement contradicts what the environment has already."""
    provided = {str(canonicalize_name(name)): version for name, version in request.provided}
    contradictions = []
    for line in request.requirements:
        try:
            wanted = Requirement(line.split(" #")[0].strip())
        except InvalidRequirement:
            continue
        version = provided.get(str(canonicalize_name(wanted.name)))
        if version is None or _applies_not(wanted, request):
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            contradictions.append(
                f"pip asks for {line.strip()}, but conda already chose {wanted.name} {version}"
            )
    if contradictions:
        raise SpecError(
            "\n".join(contradictions),
            hint="take it out of one half, or ask for the same version in both",
        )


def _applies_not(wanted: Requirement, request: PipRequest) -> bool:
    return wanted.marker is not None and not wanted.marker.evaluate(marker_environment(request))


def marker_environment(request: PipRequest) -> dict[str, str]:
    """Return the marker variables (PEP 508) of the target that differ from this machine's."""
    target = request.target
    system, _, architecture = target.platform.partition("-")
    short = f"{target.python[0]}.{target.python[1]}"
    is_mac = system == "osx"
    full = request.python_version if request.python_version.count(".") > 1 else f"{short}.0"
    return {
        "python_version": short,
        "python_full_version": full,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "darwin" if is_mac else "linux",
        "platform_system": "Darwin" if is_mac else "Linux",
        "platform_machine": {"64": "x86_64"}.get(architecture, architecture),
    }


def _compile(request: PipRequest, lines: tuple[str, ...], scratch: Path) -> dict[str, Any]:
    """Let uv resolve `lines` and return its pylock document (PEP 751)."""
    import uv

    requirements, constraints = scratch / "requirements.txt", scratch / "constraints.txt"
    requirements.write_text("\n".join([*lines, ""]), encoding="utf-8")
    stubs = [_write_stub(scratch, name, version) for name, version in request.provided]
    constraints.write_text("\n".join([*request.constraints, *stubs, ""]), encoding="utf-8")
    excluded = {*request.excluded, *(name for name, _ in request.provided)}
    argv: list[str | Path] = [
        uv.find_uv_bin(),
        *("pip", "compile", requirements, "--constraints", constraints),
        *("--python-version", request.python_version),
        *("--python-platform", _uv_platform(request.target)),
        # Wheels only: what a source build brings along depends on the machine it runs on.
        *("--no-build", "--generate-hashes", "--format", "pylock.toml"),
        *("--python", sys.executable, "--no-python-downloads"),
        *("--no-header", "--no-annotate", "--color", "never", "--no-progress"),
        *(f"--no-emit-package={name}" for name in sorted(excluded)),
    ]
    environ = child_environ(VIRTUAL_ENV=None, UV_PYTHON=None)
    finished = run(argv, env=environ, cwd=request.working_dir, check=False)
    if finished.returncode != 0:
        raise _explain(finished.stderr, request, scratch)
    document: dict[str, Any] = tomllib.loads(finished.stdout)
    return document


def _uv_platform(target: WheelTarget) -> str:
    """Return uv's name for a target; a glibc that it does not know is rounded up.

    Rounding up is safe because the wheel itself is chosen by the target's exact glibc afterwards.
    """
    name = UV_PLATFORMS[target.platform]
    if not name.endswith("-manylinux"):
        return name
    minor = next((known for known in UV_GLIBC_MINORS if known >= target.glibc_minor), None)
    return f"{name}_2_{minor or UV_GLIBC_MINORS[-1]}"


def _write_stub(scratch: Path, name: str, version: str) -> str:
    """Write an empty wheel that stands for a provided package; return the constraint on it.

    The index may not have that version, or have it with requirements that do not hold here
    (conda's pytorch needs no nvidia wheels); a stub settles both.
    """
    module = re.sub(r"[-_.]+", "_", name)
    info = f"{module}-{version}.dist-info"
    path = scratch / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name} @ {path.as_uri()}"


def _explain(stderr: str, request: PipRequest, scratch: Path) -> SpecError | StoreError:
    """Turn uv's words into an error."""
    words = tidy(stderr).replace(f"{scratch}/", "")
    lines = [re.sub(r"^\s*(error: |cause: )?", "", line) for line in words.splitlines()]
    text = "\n".join(line for line in lines if not line.startswith(("warning:", "hint:")))
    text = re.sub(r"requirements\.txt:(\d+):\d+", lambda at: _line(request, int(at[1])), text)
    if UNREACHABLE.search(text):
        message = f"a package index cannot be reached: {text}"
        hint = "check the network and the --index-url lines of the spec, then try again"
        return StoreError(message, hint=hint)
    target = f"python {request.python_version} on {request.platform}"
    chosen = [
        f"conda chose {name} {version}"
        for name, version in request.provided
        if re.search(rf"\b{re.escape(name)}\b", text)
    ]
    message = "\n".join([f"the pip half has no solution for {target}: {text}", *chosen])
    if "no usable wheels" in text:
        return SpecError(message, hint=f"ask for a version that has wheels for {target}")
    return SpecError(message, hint="change the requirements that it names, then lock again")


def _line(request: PipRequest, number: int) -> str:
    """Return the requirement line that uv knows by its number."""
    known = 0 < number <= len(request.requirements)
    return f"`{without_credentials(request.requirements[number - 1])}`" if known else "the end"


def _locked(entry: Mapping[str, Any], request: PipRequest, ranks: dict[Tag, int]) -> LockedPackage:
    """Turn one pylock entry into the package that it locks."""
    name = entry["name"]
    files = {_file_name(wheel): wheel for wheel in _wheels(entry)}
    file_name = choose_wheel(files, ranks)
    if file_name is None:
        offered = ", ".join(sorted(files)) or "no wheel at all"
        message = (
            f"{name} {entry.get('version', '')} has no wheel for python {request.python_version} "
            f"on {request.platform} with glibc {request.target.glibc} (offered: {offered})"
        )
        raise SpecError(message, hint=f"pin a version of {name} that has one")
    wheel = files[file_name]
    sha256 = wheel.get("hashes", {}).get("sha256")
    if sha256 is None:
        message = f"no SHA-256 is known of {file_name}, so nobody could check it later"
        raise SpecError(message, hint="use an index that serves hashes")
    return LockedPackage(
        manager="pip",
        name=name,
        version=entry.get("version") or file_name.split("-")[1],
        platform=request.platform,
        url=_url(wheel, request),
        sha256=sha256,
    )


def _wheels(entry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the files of a pylock entry that may be wheels: from an index, or named directly."""
    return [*entry.get("wheels", []), *([entry["archive"]] if "archive" in entry else [])]


def _file_name(wheel: Mapping[str, Any]) -> str:
    place = wheel.get("name") or wheel.get("path") or urlsplit(wheel["url"]).path
    return unquote(str(place).rsplit("/", 1)[-1])


def _url(wheel: Mapping[str, Any], request: PipRequest) -> str:
    """Return where a wheel is, without credentials: a lock is no place for them."""
    if "url" in wheel:
        return without_credentials(str(wheel["url"]))
    base = (request.working_dir or Path.cwd()).absolute()
    return (base / str(wheel["path"])).as_uri()
