"""What uv is told and says: requirement lines in, a pylock document (PEP 751) out."""

from __future__ import annotations

import logging
import os
import re
import sys
import zipfile
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec.structs import replace
from packaging.utils import canonicalize_name

from envferry.base.site_indexes import UV_EXTRA, UV_MAIN
from envferry.base.toml import decode_toml
from envferry.build.git_credentials import git_environ, git_logins, without_git_login
from envferry.config import network, uv_environ
from envferry.errors import HostError, RequiredByUrl, SpecError, StoreError
from envferry.lock.pip.git_failures import git_failure
from envferry.lock.pip.pip_entries import newer_glibc_hint
from envferry.lock.solver_output import NOT_CACHED, UNREACHABLE, not_cached, proxies_hint, tidy
from envferry.process import run
from envferry.redaction import without_login

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from envferry.errors import PipelineError
    from envferry.lock.pip.pip_request import PipRequest
    from envferry.lock.pip.wheel_choice import WheelTarget
    from envferry.process import Finished

log = logging.getLogger(__name__)

UV_PLATFORMS = {
    "linux-64": "x86_64-manylinux",
    "linux-aarch64": "aarch64-manylinux",
    "linux-ppc64le": "powerpc64le-unknown-linux-gnu",
    "osx-64": "x86_64-apple-darwin",
    "osx-arm64": "aarch64-apple-darwin",
}
# The manylinux floors that uv's --python-platform knows.
UV_GLIBC_MINORS = (17, 28, *range(31, 41))
NEEDS_SOURCE = re.compile(
    r"no usable wheels|no wheels with a matching|[Bb]uilding source distributions|--no-build"
)
PYLOCK = "pylock.toml"
MAIN_INDEX = re.compile(r"\s*(--no-index\b|(-i|--index-url)[\s=]*(?P<url>\S+))")
EXTRA_INDEX = re.compile(r"\s*--(extra-index-url|index)\b")
BEST_MATCH = ("--index-strategy", "unsafe-best-match")
SEVERAL_INDEXES = (
    "the first index that has a package does not have the requested version: the best of all "
    "indexes was taken, as pip does (anyone who can add to one of them can replace any package)"
)
# uv says this as a hint beside "was not found".
REFUSED = re.compile(
    r"index URL \((?P<url>[^)\s]+)\)\s+could\s+not\s+be\s+queried\s+due\s+to\s+a\s+lack"
    r".*?(?P<status>401|403)",
    re.DOTALL,
)
TWO_URLS = re.compile(r"[Cc]onflicting URLs for package `(?P<name>[^`]+)`")
FROM_INDEX = re.compile(r"\s+# from (?P<url>https?://\S+)")
REQUIREMENT_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")

GIT_LINE = re.compile(
    r"(?P<start>((?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?\s*@\s*)?(?P<url>git\+[a-z]+://[^\s#]*?))"
    r"(@[^\s#@/]+)?(?P<rest>([#;\s].*)?)"
)


class CompiledRequirements(msgspec.Struct, frozen=True, kw_only=True):
    """What uv found."""

    entries: list[dict[str, Any]]
    """The `[[packages]]` of a pylock document."""
    needs: dict[str, list[str]]
    """What each package depends on, by name."""
    indexes: dict[str, str]
    """The index that each package comes from, by name; without logins."""


def compile_lines(
    request: PipRequest, lines: tuple[str, ...], scratch: Path
) -> CompiledRequirements:
    """Let uv resolve `lines`; wheels alone if that is possible, else sources too.

    Raises SpecError when no solution exists, StoreError when an index cannot be reached.
    """
    requirements, constraints = scratch / "requirements.txt", scratch / "constraints.txt"
    lines = tuple(_at_kept_commit(without_git_login(line), request) for line in lines)
    requirements.write_text("\n".join([*lines, ""]), encoding="utf-8")
    stubs = [_write_stub(scratch, name, version) for name, version in request.provided]
    held = [*request.constraints, *stubs, *_held(request)]
    constraints.write_text("\n".join([*held, ""]), encoding="utf-8")
    # Provided packages take part in the solution, but conda installs them.
    excluded = {*request.excluded, *(name for name, _ in request.provided)}
    output = scratch / PYLOCK
    words = (
        *("--generate-hashes", "--no-annotate", "--format", "pylock.toml", "-o", str(output)),
        *(f"--no-emit-package={name}" for name in sorted(excluded)),
    )
    finished, how = _ask(request, scratch, words)
    if finished.returncode != 0:
        error = _explain(finished.stderr, request, scratch)
        if isinstance(error, SpecError):
            error.hint = _newer_glibc_hint(request, scratch, words) or error.hint
        raise error
    document = decode_toml(output.read_text(encoding="utf-8"))
    entries: list[dict[str, Any]] = document.get("packages", [])
    for entry in entries:
        _make_absolute(entry, scratch)
    said = _annotated(request, entries, scratch, how)
    return CompiledRequirements(entries=entries, needs=_needs(said), indexes=_indexes(said))


def _make_absolute(entry: Mapping[str, Any], folder: Path) -> None:
    """Make the paths of an entry absolute: a pylock.toml may have them relative to its folder.

    uv writes them like that where they were not absolute, as those in `[tool.uv.sources]` of a
    folder are, or had a `${VARIABLE}` in them.
    """
    single = (entry[key] for key in ("directory", "archive", "sdist", "vcs") if key in entry)
    for place in (*single, *entry.get("wheels", ())):
        if "path" in place:
            place["path"] = os.path.normpath(folder / place["path"])


def _ask(
    request: PipRequest, scratch: Path, words: tuple[str, ...]
) -> tuple[Finished, tuple[str, ...]]:
    """Ask uv in one way after the other; return its last answer and in which way it was asked.

    Wheels first: what a source build brings along depends on the machine it runs on. And each
    package from the first index that has it: only where that has no solution, from whichever has
    the best version, as pip always does.
    """
    has_more = any(EXTRA_INDEX.match(line) for line in request.requirements)
    has_more |= bool(request.indexes.extra)
    for build in (("--no-build",), ()):
        for strategy in ((), BEST_MATCH) if has_more else ((),):
            how = (*build, *strategy)
            # uv prefers what the file has that it is to write: each attempt starts with the same.
            _write_preferences(request, scratch / PYLOCK)
            finished = _call_uv(request, scratch, (*how, *words))
            if finished.returncode == 0:
                if strategy:
                    log.warning("%s", SEVERAL_INDEXES)
                return finished, how
            if REFUSED.search(finished.stderr):
                # Only this way of asking says so, and the other would hide it.
                return finished, how
        # It failed for another reason than missing wheels: sources would not help.
        if not NEEDS_SOURCE.search(finished.stderr):
            break
    return finished, how


def _newer_glibc_hint(request: PipRequest, scratch: Path, words: tuple[str, ...]) -> str:
    """Ask uv again for newer hosts; name the glibc that suffices, if only that is missing."""
    newest = replace(request, glibc=f"2.{UV_GLIBC_MINORS[-1]}")
    if not request.platform.startswith("linux-"):
        return ""
    if _call_uv(newest, scratch, ("--no-build", *words)).returncode != 0:
        return ""
    minor = request.target.glibc_minor
    text = (scratch / PYLOCK).read_text(encoding="utf-8")
    needed = [int(found) for found in re.findall(r"manylinux_2_(\d+)_", text)]
    return newer_glibc_hint(min((item for item in needed if item > minor), default=None))


def _call_uv(request: PipRequest, scratch: Path, words: tuple[str, ...]) -> Finished:
    import uv

    argv: list[str | Path] = [
        # Settings of any folder above would change the answer: a lock depends on its spec.
        *(uv.find_uv_bin(), "--no-config", "pip", "compile", scratch / "requirements.txt"),
        *("--constraints", scratch / "constraints.txt"),
        *("--python-version", request.python_version),
        *("--python-platform", _uv_platform(request.target)),
        # Any that is here will do: version and platform of the target are given.
        *("--python", sys.executable, "--no-python-downloads"),
        *("--no-header", "--color", "never", "--no-progress"),
        *(("--prerelease", "allow") if "--pre" in request.requirements else ()),
        *(("--exclude-newer", request.exclude_newer) if request.exclude_newer else ()),
        *(("--offline",) if request.offline and "--offline" not in words else ()),
        *words,
    ]
    own = uv_environ(VIRTUAL_ENV=None, UV_PYTHON=None)
    environ = git_environ(_index_variables(request, own), git_logins(request.requirements))
    return run(argv, env=environ, cwd=request.working_dir, check=False)


def _index_variables(request: PipRequest, own: Mapping[str, str]) -> dict[str, str]:
    """Return uv's environment with the indexes that are to be asked: no command line has logins.

    To uv, its variables are stronger than a requirements file; here, the spec decides.
    """
    variables = {name: text for name, text in own.items() if name not in UV_MAIN}
    main = request.indexes.main.url if request.indexes.main else ""
    if lines := [found for line in request.requirements if (found := MAIN_INDEX.match(line))]:
        # To pip, too, the last `--index-url` counts.
        main = _with_login(lines[-1]["url"] or "")
    if main:
        variables["UV_DEFAULT_INDEX"] = main
    told = {word for name in UV_EXTRA for word in own.get(name, "").split()}
    more = [index.url for index in request.indexes.extra if index.url not in told]
    if more:
        name = "UV_EXTRA_INDEX_URL"
        variables[name] = " ".join([*own.get(name, "").split(), *more])
    return variables


def _with_login(url: str) -> str:
    """Add the login that the settings of uv or pip have for this host."""
    parts = urlsplit(url)
    login = network().logins.get(parts.netloc.lower())
    return urlunsplit(parts._replace(netloc=f"{login.reveal()}@{parts.netloc}")) if login else url


def _held(request: PipRequest) -> Iterator[str]:
    """Yield constraints on what must not move while something else is updated."""
    moving = {str(canonicalize_name(name)) for name in request.updated}
    for package in request.kept if moving else ():
        if package.name not in moving and package.kind in ("wheel", "sdist"):
            yield f"{package.name}=={package.version}"


def _at_kept_commit(line: str, request: PipRequest) -> str:
    """Let a git requirement name the commit that was locked: uv would follow its branch."""
    found = GIT_LINE.fullmatch(line)
    if not found:
        return line
    name = str(canonicalize_name(found["name"] or ""))
    moving = {str(canonicalize_name(item)) for item in request.updated}
    kept = (item for item in request.kept if item.kind == "git" and item.name not in moving)
    # A bare URL has no name before uv looked into it: then the same URL is the same package.
    start = f"{without_login(found['url'])}@"
    same = (item for item in kept if item.name == name or item.url.startswith(start))
    commit = next((item.sha256 for item in same), None)
    return f"{found['start']}@{commit}{found['rest']}" if commit else line


def _write_preferences(request: PipRequest, output: Path) -> None:
    """Write what uv takes for its own earlier answer, and keeps where it can."""
    moving = {str(canonicalize_name(name)) for name in request.updated}
    lines = ['lock-version = "1.0"', 'created-by = "envferry"', ""]
    for package in request.kept:
        if package.name not in moving and package.kind in ("wheel", "sdist"):
            lines += ["[[packages]]", f'name = "{package.name}"', f'version = "{package.version}"']
            lines.append("")
    if "[[packages]]" in lines:
        output.write_text("\n".join(lines), encoding="utf-8")


def _annotated(
    request: PipRequest,
    entries: list[dict[str, Any]],
    scratch: Path,
    how: tuple[str, ...],
) -> list[str]:
    """Return the lines of uv's requirements form, whose comments say what a pylock does not."""
    output = scratch / "pins.txt"
    pins = [f"{item['name']}=={item['version']}" for item in entries if "version" in item]
    output.write_text("\n".join([*pins, ""]), encoding="utf-8")
    said = ("--annotation-style", "line", "--emit-index-annotation", "--no-strip-extras")
    words = ("-o", str(output), *said, *how)
    # What was just resolved is in uv's cache: ask no server, unless uv has no cache.
    for more in (("--offline",), ()):
        if _call_uv(request, scratch, (*words, *more)).returncode == 0:
            return output.read_text(encoding="utf-8").splitlines()
    return []


def _indexes(lines: list[str]) -> dict[str, str]:
    """Return the index of each package: a comment in the line below its own."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if pin := REQUIREMENT_NAME.match(line):
            name = str(canonicalize_name(pin["name"]))
        elif index := FROM_INDEX.match(line):
            found[name] = without_login(index["url"])
    return found


def _needs(lines: list[str]) -> dict[str, list[str]]:
    """Return what each package depends on."""
    needs: dict[str, list[str]] = {}
    for line in lines:
        pin, _, parents = line.partition("# via ")
        found = REQUIREMENT_NAME.match(pin)
        for parent in parents.split(",") if found else ():
            by = REQUIREMENT_NAME.match(parent.strip())
            if by and found and by["name"] != found["name"]:
                needs.setdefault(by["name"], []).append(found["name"])
    return needs


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


def _explain(stderr: str, request: PipRequest, scratch: Path) -> PipelineError:
    """Turn uv's words into an error."""
    words = tidy(stderr).replace(f"{scratch}/", "")
    lines = [re.sub(r"^\s*(error: |cause: )?", "", line) for line in words.splitlines()]
    text = "\n".join(line for line in lines if not line.startswith(("warning:", "hint:")))
    text = re.sub(r"requirements\.txt:(\d+):\d+", lambda at: _line(request, int(at[1])), text)
    if "Failed to initialize cache" in text:
        hint = "name a folder that this user can write to: `export UV_CACHE_DIR=/PATH`"
        return HostError(f"uv has no place for its cache: {text}", hint=hint)
    if request.offline and NOT_CACHED.search(words):
        return not_cached(text)
    if by_git := git_failure(text):
        return by_git
    if UNREACHABLE.search(text):
        message = f"a package index cannot be reached: {text}"
        hint = "check the network and the --index-url lines of the spec, then try again"
        if request.indexes.main or request.indexes.extra:
            hint = "check the network and the index that the spec, or this machine's settings, name"
        return StoreError(message, hint=hint + proxies_hint())
    if refused := REFUSED.search(words):
        message = (
            f"the package index {refused['url']} requires a login ({refused['status']}): {text}"
        )
        hint = "put the login for its host into ~/.netrc, or its URL with the login into UV_INDEX"
        return StoreError(message, hint=hint)
    return _required_by_url(text, request) or _no_solution(text, request)


def _required_by_url(text: str, request: PipRequest) -> RequiredByUrl | None:
    """Return the error for a URL of what conda brings: to uv, the stub for that is a URL, too."""
    twice = TWO_URLS.search(text)
    name = twice["name"] if twice else ""
    version = dict(request.provided).get(name)
    if version is None:
        return None
    message = f"pip requires {name} by its URL, but conda chose {name} {version}"
    hint = "remove it from one half, with what needs it there"
    return RequiredByUrl(message, name=name, hint=hint)


def _no_solution(text: str, request: PipRequest) -> SpecError:
    target = f"python {request.python_version} on {request.platform}"
    chosen = [
        f"conda chose {name} {version}"
        for name, version in request.provided
        if re.search(rf"\b{re.escape(name)}\b", text)
    ]
    message = "\n".join([f"the pip half has no solution for {target}: {text}", *chosen])
    if request.updated:
        hint = "name the packages to update with it, or run `envferry lock --upgrade`"
        return SpecError(
            f"{', '.join(request.updated)} cannot be updated alone: {message}", hint=hint
        )
    if "no usable wheels" in text:
        return SpecError(message, hint=f"ask for a version that has wheels for {target}")
    return SpecError(message, hint="change the requirements that it names, then lock again")


def _line(request: PipRequest, number: int) -> str:
    """Return the requirement line that uv knows by its number."""
    known = 0 < number <= len(request.requirements)
    return f"`{without_login(request.requirements[number - 1])}`" if known else "the end"
