"""Read the `envferry:` key of a spec, and the keys beside it that are options too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.base.json import convert
from envferry.errors import SpecError, UsageError
from envferry.models import Checks, DataFile, SpecOptions, SystemRequirements
from envferry.names import PLATFORMS, check_platform
from envferry.specs.data_files import check_data
from envferry.specs.spec_faults import list_of_strings, unexpected
from envferry.specs.syntax.yaml_text import Mapping, Text, line_of, plain
from envferry.suggestions import perhaps

if TYPE_CHECKING:
    from pathlib import Path

VERSION = re.compile(r"\d+(\.\d+)*")
CAPABILITY = re.compile(r"\d+\.\d+")
"""A CUDA compute capability, as CEP 46 has it: without the letters of `9.0a`."""
OTHER_PLATFORM = re.compile(
    r"(win|freebsd|emscripten|wasi|zos)-\w+|linux-(32|armv6l|armv7l|ppc64|riscv64|s390x|loongarch64)"
)
"""conda's platforms that envferry does not lock for: kept aside."""
MOST_README_BYTES = 64 << 10
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$\.?(?P<place>[^`]*)`)?")


def read_options(content: Mapping, path: Path) -> SpecOptions:
    """Read the `envferry:` key."""
    raw = content.get("envferry", "")
    # A bare `envferry:` has the empty string as its value.
    if raw != "" and not isinstance(raw, Mapping):
        raise unexpected(path, raw, "`envferry:` to be a mapping", line_of(content))
    values = _option_values(content, plain(raw or {}), path)
    values["variables"] = _variables(content, values, path)
    values |= _without_other_platforms(values.get("platforms"), path)
    try:
        # Not strict: every scalar is a string here, that of `frozen: true` included.
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
    check_data(options, path)
    if len(options.readme.encode()) > MOST_README_BYTES:
        message = f"{path}: `envferry: readme:` is longer than {MOST_README_BYTES >> 10} KiB"
        raise SpecError(message, hint="say what it is for, and link to the rest")
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
        raise unexpected(path, items, "`variables:` to be a mapping", line_of(content))
    for name, value in items.items():
        if not VARIABLE.fullmatch(name):
            raise unexpected(path, name, "the name of a variable under `variables:`")
        if not isinstance(value, Text):
            raise unexpected(path, value, f"a string as the value of `{name}`", line_of(name))
    return {str(name): str(value) for name, value in items.items()}


def _option_values(content: Mapping, raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what `envferry:` says, and what stands beside it as other tools have it."""
    values = _without_empty(raw)
    list_of_strings(content, "platforms", path)
    for key in ("platforms", "channel_priority"):
        # Within `envferry:` they are more particular: other tools read those beside it.
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
    # `data[0]`: which one of a list does not change the keys that it may have.
    place = place.partition("[")[0]
    owners = {"checks": Checks, "system": SystemRequirements, "data": DataFile}
    owner = owners.get(place, SpecOptions)
    known = owner.__struct_fields__
    where = f"`envferry: {place}:`" if place else "`envferry:`"
    message = f"{path}:{line_of(raw)}: `{key}` is not a key of {where}{perhaps(key, known)}"
    return SpecError(message, hint=f"{where} has the keys {', '.join(known)}")
