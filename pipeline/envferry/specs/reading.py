"""Read specs: a conda environment file plus the `envferry:` key."""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from envferry.base.json import convert
from envferry.errors import NotFound, SpecError, UsageError
from envferry.models import (
    PLATFORMS,
    Checks,
    Spec,
    SpecOptions,
    SystemRequirements,
    check_name,
    check_platform,
)
from envferry.specs.conda_lines import TEMPLATE, conda_name, merged
from envferry.specs.pip_lines import pip_line_problem
from envferry.specs.requirement_lines import INCLUDE, included_lines, relative
from envferry.specs.selectors import is_selected, select_platform, selector_lines
from envferry.specs.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml, plain, read_text

DIGEST_SCHEMA = 1
SPEC_ENDINGS = (".yml", ".yaml")
LOCK_ENDING = ".conda-lock.yml"

RESERVED_NAMES = ("base", "root")
log = logging.getLogger(__name__)

KNOWN_KEYS = (
    "name",
    "channels",
    "dependencies",
    "envferry",
    "platforms",
    "channel_priority",
    "pip-repositories",
    "variables",
    # Other tools' keys, which decide nothing here.
    "allow-pypi-requests",
    "category",
    "prefix",
)
HOLDER = re.compile(r"[xX][-_].*|\..*")
"""Keys for what is used elsewhere by a YAML alias."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

CAPABILITY = re.compile(r"\d+\.\d+")
"""A CUDA compute capability, as CEP 46 has it: without the letters of `9.0a`."""
VERSION = re.compile(r"\d+(\.\d+)*")
OTHER_PLATFORM = re.compile(
    r"(win|freebsd|emscripten|wasi|zos)-\w+|linux-(32|armv6l|armv7l|ppc64|riscv64|s390x|loongarch64)"
)
"""conda's platforms that envferry does not lock for: kept aside."""
FILE_OPTION = re.compile(r"(?:-[rc]|--(?:requirement|constraint)s?)(?:\s+|=)?(?P<path>\S+)")
UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$\.?(?P<place>[^`]*)`)?")


def read_spec(path: Path, *, platform: str | None = None) -> Spec:
    """Read a spec; with `platform`, drop the lines whose `# [selector]` is for other platforms.

    Raises NotFound when the file does not exist, SpecError when it is not a spec.
    """
    return parse_spec(_read(path), path, platform=platform)


def parse_spec(text: str, path: Path, *, platform: str | None = None) -> Spec:
    """Parse the text of a spec that is, or will be, at `path`; see `read_spec`."""
    _check_selectors(text, path)
    root = parse_yaml(select_platform(text, platform) if platform else text, path)
    content = _check_root(root, path)
    conda, pip = _dependencies(content, path)
    if platform or not selector_lines(text):
        conda = _merged(conda, path)
    indexes = [f"--extra-index-url {url}" for url in _strings(content, "pip-repositories", path)]
    channels = _strings(content, "channels", path)
    spec = Spec(
        path=path,
        name=_name(content, path),
        channels=tuple(item for item in channels if item != "nodefaults"),
        conda=conda,
        pip=(*indexes, *pip),
        options=_options(content, path),
        digest="",
    )
    return replace(spec, digest=_digest(spec, text))


def find_spec(argument: str, specs_dir: Path) -> Path:
    """Return the spec that a person means: a path, or the NAME of `specs_dir/NAME.yml`.

    Raises NotFound with the specs that there are.
    """
    given = Path(argument)
    if given.is_file():
        return given
    is_name = given.suffix not in SPEC_ENDINGS and given.name == argument
    for ending in SPEC_ENDINGS if is_name else ():
        path = specs_dir / f"{argument}{ending}"
        if path.is_file():
            return path
    if given.is_dir():
        message = f"{given} is a folder, expected a spec: a file or the name of one in {specs_dir}/"
        raise NotFound(message, hint="name one spec, such as `demo`")
    if is_name:
        msg = f"{specs_dir}/{argument}.yml"
        raise _not_found(msg, argument, specs_dir)
    raise _not_found(argument, given.stem, given.parent if given.parent.is_dir() else specs_dir)


def _not_found(what: str, name: str, directory: Path) -> NotFound:
    """Return the error for an unknown spec, with the known ones."""
    paths = directory.iterdir() if directory.is_dir() else []
    names = sorted(
        path.stem
        for path in paths
        if path.suffix in SPEC_ENDINGS and not path.name.endswith(LOCK_ENDING) and path.is_file()
    )
    close = difflib.get_close_matches(name, names)
    there = ", ".join(names) if names else "no specs"
    hint = f"perhaps you meant `{close[0]}`" if close else "create it, or name another"
    return NotFound(f"there is no spec {what} ({directory}/ has {there})", hint=hint)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise _not_found(str(path), path.stem, path.parent) from error
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise SpecError(message, hint="name a spec file") from error


def _check_selectors(text: str, path: Path) -> None:
    for number, _, selector in selector_lines(text):
        try:
            is_selected(selector, "linux-64")
        except ValueError as error:
            message = f"{path}:{number}: `[{selector}]` selects no platform: {error}"
            raise SpecError(message, hint="write it as in `[linux]` or `[not win]`") from error


def _check_root(root: object, path: Path) -> Mapping:
    """Return the top-level mapping of a spec."""
    hint = f"run `envferry import {path}` to make a spec of another kind of file"
    if root is None:
        msg = f"{path} is empty, expected a mapping with `dependencies:`"
        raise SpecError(msg, hint=hint)
    if not isinstance(root, Mapping):
        kind = "a list" if isinstance(root, Sequence) else f"the text {_shorten(root)}"
        message = f"{path}:{line_of(root)}: expected a mapping with `dependencies:`, found {kind}"
        raise SpecError(message, hint=hint)
    for key in root:
        if key not in KNOWN_KEYS and not HOLDER.fullmatch(key):
            # CEP 24: keys that a tool does not know are ignored, with a warning.
            close = _perhaps(key, KNOWN_KEYS)
            where = f"{path}:{line_of(key)}"
            log.warning("%s: %s is not obeyed: not a key of a spec%s", where, _shorten(key), close)
    if "dependencies" not in root:
        alike = difflib.get_close_matches("dependencies", root, n=1)
        close = f": write it for `{alike[0]}`" if alike else ""
        msg = f"{path} has no `dependencies:`{close}"
        raise SpecError(msg, hint=hint)
    return root


def _dependencies(content: Mapping, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the conda and the pip half."""
    conda: list[str] = []
    pip: list[str] = []
    items = content["dependencies"]
    if not isinstance(items, Sequence):
        raise _unexpected(path, items, "`dependencies:` to be a list", line_of(content))
    for item in items:
        if isinstance(item, Text):
            conda.append(_conda_line(item, path))
        elif isinstance(item, Mapping) and [*item] == ["pip"]:
            if item["pip"] != "" and not isinstance(item["pip"], Sequence):
                raise _unexpected(path, item["pip"], "a list of requirements under `pip:`")
            pip += [_pip_line(line, path) for line in item["pip"]]
        else:
            raise _unexpected(path, item, "a conda package or `pip:` with a list under it")
    if not conda and not pip:
        message = f"{path} requires no packages"
        raise SpecError(message, hint="name packages under `dependencies:`")
    return tuple(conda), tuple(pip)


def check_dependencies(content: Mapping, path: Path) -> None:
    """Refuse what is not a valid line of either half, with the file and line where it stands."""
    if "dependencies" in content:
        _dependencies(content, path)


def _conda_line(item: Text, path: Path) -> str:
    line = item.strip()
    template = TEMPLATE.search(line)
    if template:
        raise _template(path, item, template[0])
    if not conda_name(line):
        raise _unexpected(path, item, "a conda package such as `numpy >=2`")
    return Text.at(line, line_of(item))


def _template(path: Path, item: Text, found: str) -> SpecError:
    message = f"{path}:{line_of(item)}: {_shorten(item)} contains the template `{found}`"
    return SpecError(message, hint="write the value itself: envferry does not expand templates")


def _pip_line(item: object, path: Path) -> str:
    """Return one requirement or option line of the pip half."""
    if not isinstance(item, Text) or not item.strip():
        raise _unexpected(path, item, "a pip requirement such as `numpy>=2`")
    line = item.strip()
    template = re.search(r"\{\{.*?\}\}|\{%.*?%\}", line)
    if template:
        raise _template(path, item, template[0])
    problem = pip_line_problem(line)
    if problem:
        message = (
            f"{path}:{line_of(item)}: {_shorten(line)} is not a valid pip requirement: {problem}"
        )
        raise SpecError(message, hint="write it as `name==version` or `name @ URL`")
    return Text.at(line, line_of(item))


def _merged(conda: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Make one line of several about one conda package: all of them hold, as for conda itself."""
    lines: dict[str, list[str]] = {}
    for line in conda:
        lines.setdefault(conda_name(line), []).append(line)
    joined: list[str] = []
    for name, several in lines.items():
        try:
            text = merged(tuple(several)) if several[1:] else several[0]
        except ValueError as error:
            both = " and ".join(f"`{line}`" for line in several)
            place = f"{path}:{line_of(several[-1])}"
            message = f"{place}: the lines {both} for {name} contradict each other: {error}"
            raise SpecError(message, hint=f"keep one of them, such as `{name} >=1,<2`") from error
        joined.append(Text.at(text, line_of(several[0])))
    return tuple(joined)


def _strings(content: Mapping, key: str, path: Path) -> tuple[str, ...]:
    """Return a list of strings, empty when the key is missing or has no value."""
    items = content.get(key, "")
    if items == "":
        return ()
    if not isinstance(items, Sequence) or not all(isinstance(item, Text) for item in items):
        raise _unexpected(path, items, f"`{key}:` to be a list of names", line_of(content))
    return tuple(str(item).strip() for item in items)


def _name(content: Mapping, path: Path) -> str:
    """Return the environment's name: the `name:` key, else the file's stem."""
    name = content.get("name", "") or path.stem
    if not isinstance(name, str):
        raise _unexpected(path, name, "`name:` to be a name")
    if name in RESERVED_NAMES:
        message = f"{path}: `{name}` is conda's own installation, which cannot be carried"
        raise SpecError(message, hint="give the environment another `name:`")
    try:
        return str(check_name(name, "environment name"))
    except UsageError as error:
        hint = "give it another `name:`" if content.get("name") else "give the spec a `name:`"
        msg = f"{path}: {error}"
        raise SpecError(msg, hint=hint) from error


def _options(content: Mapping, path: Path) -> SpecOptions:
    """Read the `envferry:` key."""
    raw = content.get("envferry", "")
    if raw != "" and not isinstance(raw, Mapping):
        raise _unexpected(path, raw, "`envferry:` to be a mapping", line_of(content))
    values = _option_values(content, plain(raw or {}), path)
    values["variables"] = _variables(content, values, path)
    values |= _without_other_platforms(values.get("platforms"), path)
    try:
        options = convert(values, SpecOptions, strict=False)
    except msgspec.ValidationError as error:
        raise _bad_options(error, raw, path) from error
    for platform in options.platforms:
        try:
            check_platform(platform)
        except UsageError as error:
            msg = f"{path}: {error}"
            raise SpecError(msg, hint=error.hint) from error
    _check_system(options.system, path)
    for pattern in options.exclude:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            message = f"{path}: `{pattern}` under `envferry: exclude:` leaves the environment"
            raise SpecError(message, hint="write globs relative to the prefix: `share/doc/**`")
    return options


def _check_system(system: SystemRequirements, path: Path) -> None:
    """Raise SpecError when something that hosts offer is not a version."""
    for what in ("glibc", "cuda"):
        version = getattr(system, what)
        if version is not None and not VERSION.fullmatch(version):
            message = (
                f"{path}: `{what}: {version}` under `envferry: system:` is not a valid version"
            )
            raise SpecError(message, hint=f"write `{what}: 2.28`" if what == "glibc" else "")
    capability = system.cuda_arch
    if capability and not CAPABILITY.fullmatch(capability):
        message = f"{path}: `cuda_arch: {capability}` under `envferry: system:` is not a capability"
        raise SpecError(message, hint="write the lowest of the hosts' GPUs, such as `'8.0'`")


def _without_other_platforms(platforms: object, path: Path) -> dict[str, list[str]]:
    """Keep aside platforms that envferry does not lock for; raise SpecError when none is left.

    `lint` names them.
    """
    if not isinstance(platforms, list) or not platforms:
        return {}
    kept = [item for item in platforms if not OTHER_PLATFORM.fullmatch(str(item))]
    if not kept:
        message = f"{path} is for {', '.join(platforms)} only"
        known = ", ".join(PLATFORMS.values())
        raise SpecError(message, hint=f"add one of the platforms {known}")
    return {"platforms": kept}


def _variables(content: Mapping, options: dict[str, Any], path: Path) -> dict[str, str]:
    """Read the `variables:` key: what activation sets; the options have no such key."""
    if "variables" in options:
        message = f"{path}: `variables` is not a key of `envferry:`"
        raise SpecError(message, hint="write `variables:` beside `dependencies:`")
    items = content.get("variables", "")
    if items == "":
        return {}
    if not isinstance(items, Mapping):
        raise _unexpected(path, items, "`variables:` to be a mapping", line_of(content))
    for name, value in items.items():
        if not VARIABLE.fullmatch(name):
            raise _unexpected(path, name, "the name of a variable under `variables:`")
        if not isinstance(value, Text):
            raise _unexpected(path, value, f"a text as the value of `{name}`", line_of(name))
    return {str(name): str(value) for name, value in items.items()}


def _option_values(content: Mapping, raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what `envferry:` says, and what stands beside it as other tools have it."""
    values = _without_empty(raw)
    _strings(content, "platforms", path)
    for key in ("platforms", "channel_priority"):
        if content.get(key, "") != "" and key not in values:
            values[key] = plain(content[key])
    return values


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the keys without a value, such as a bare `checks:`."""
    return {
        key: _without_empty(item) if isinstance(item, dict) else item
        for key, item in values.items()
        if item != ""
    }


def _bad_options(error: msgspec.ValidationError, raw: Mapping, path: Path) -> SpecError:
    text = str(error)
    unknown = UNKNOWN_FIELD.search(text)
    if not unknown:
        message = f"{path}:{line_of(raw)}: the `envferry:` key is wrong: {text}"
        return SpecError(message, hint="correct that value")
    place, key = unknown["place"] or "", unknown["field"]
    owner = {"checks": Checks, "system": SystemRequirements}.get(place, SpecOptions)
    known = owner.__struct_fields__
    where = f"`envferry: {place}:`" if place else "`envferry:`"
    message = f"{path}:{line_of(raw)}: `{key}` is not a key of {where}{_perhaps(key, known)}"
    return SpecError(message, hint=f"{where} has the keys {', '.join(known)}")


def _digest(spec: Spec, text: str) -> str:
    """Return the BLAKE3 of what decides the lock, in hex.

    The canonical form, schema 1: a JSON object, keys sorted, no blanks, of `schema` (1), `conda`
    and `pip` (the lines as written, stripped, in their order; lines for one conda package joined),
    `channels`, `platforms` (both as written, but for platforms that are kept aside; empty when the
    spec names none), `system` (the given ones of archspec, cuda, cuda_arch, glibc), and only where
    there are any: `channel_names` (the table `envferry: channels:`), `channel_priority`,
    `selectors` (the stripped lines that carry one), `files` (the BLAKE3 of each local file that a
    `-r` or `-c` line names).
    """
    form: dict[str, Any] = {
        "schema": DIGEST_SCHEMA,
        "conda": [str(line) for line in spec.conda],
        "pip": [str(line) for line in spec.pip],
        "channels": spec.channels,
        "platforms": spec.options.platforms,
        "system": {
            name: value
            for name, value in msgspec.structs.asdict(spec.options.system).items()
            if value
        },
    }
    if spec.options.channels:
        form["channel_names"] = dict(spec.options.channels)
    if spec.options.channel_priority:
        form["channel_priority"] = spec.options.channel_priority
    selectors = [line for _, line, _ in selector_lines(text)]
    files = _named_files(spec)
    form |= {"selectors": selectors} if selectors else {}
    form |= {"files": files} if files else {}
    return blake3(msgspec.json.encode(form, order="sorted")).hexdigest()


def _named_files(spec: Spec) -> dict[str, str]:
    """Return the digest of each requirement file that the pip half reads, by how it is named."""
    files: dict[str, str] = {}
    for line in spec.pip:
        option = FILE_OPTION.fullmatch(line)
        if option and "://" not in option["path"]:
            path = _existing(spec, line, option["path"])
            files[option["path"]] = blake3(path.read_bytes()).hexdigest()
            if INCLUDE.fullmatch(line):
                files |= _included_files(path, spec.path.parent)
    return files


def _existing(spec: Spec, line: str, name: str) -> Path:
    path = spec.path.parent / name
    if not path.is_file():
        # Joined as text: `specs/../x` is x, although there may be no specs/ yet.
        path = Path(os.path.normpath(path))
    if not path.is_file():
        message = f"{spec.path}:{line_of(line)}: `{line}` names {path}, which does not exist"
        raise SpecError(message, hint="correct the path; it starts from the spec's folder")
    return path


def _included_files(path: Path, base: Path) -> dict[str, str]:
    """Check every line of a requirements file; return the digests of those that it includes."""
    lines = included_lines(path, read_text(path), base)
    for line in lines:
        problem = pip_line_problem(line.text)
        if problem:
            place = f"{line.path}:{line.number}"
            message = f"{place}: {_shorten(line.text)} is not a valid pip requirement: {problem}"
            raise SpecError(message, hint="write it as `name==version` or `name @ URL`")
    inner = dict.fromkeys(line.path for line in lines if line.path != path)
    return {relative(item, base): blake3(item.read_bytes()).hexdigest() for item in inner}


def _unexpected(path: Path, found: object, expected: str, line: int = 0) -> SpecError:
    place = f"{path}:{line_of(found) or line}"
    if isinstance(found, Text):
        what = _shorten(found) if found else "nothing"
    elif isinstance(found, Mapping):
        what = f"a mapping with the keys {_shorten(', '.join(map(str, found)))}"
    else:
        what = "a list"
    return SpecError(f"{place}: expected {expected}, found {what}", hint="correct that line")


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def _perhaps(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", perhaps you meant `{close[0]}`" if close else ""
