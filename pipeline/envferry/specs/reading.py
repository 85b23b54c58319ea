"""Read specs: a conda environment file plus the `envferry:` key."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from msgspec.structs import replace

from envferry.errors import NotFound, SpecError, UsageError
from envferry.models import Spec
from envferry.names import check_name
from envferry.specs.spec_digest import spec_digest
from envferry.specs.spec_faults import list_of_strings, shorten, unexpected
from envferry.specs.spec_names import RESERVED_NAMES, SPEC_ENDINGS, spec_names
from envferry.specs.spec_options import read_options
from envferry.specs.syntax.conda_lines import TEMPLATE, conda_name, merged, without_extras
from envferry.specs.syntax.pip_lines import pip_line_problem
from envferry.specs.syntax.selectors import is_selected, select_platform, selector_lines
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml, read_text
from envferry.suggestions import closest, did_you_mean, perhaps

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
SEL = re.compile(r"sel\((?P<name>\w+)\)")
"""What only micromamba knows: a package for some platforms."""
HOLDER = re.compile(r"[xX][-_].*|\..*")
"""Keys for what is used elsewhere by a YAML alias."""


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
    # Without a platform, two lines of one package may be for different platforms.
    if platform or not selector_lines(text):
        conda = _merged(conda, path)
    indexes = [
        f"--extra-index-url {url}" for url in list_of_strings(content, "pip-repositories", path)
    ]
    channels = list_of_strings(content, "channels", path)
    spec = Spec(
        path=path,
        name=_name(content, path),
        # conda's word for leaving its defaults out: here they never come unasked.
        channels=tuple(item for item in channels if item != "nodefaults"),
        conda=conda,
        pip=(*indexes, *pip),
        options=read_options(content, path),
        digest="",
    )
    # The digest is one of the finished spec, so it is filled in last.
    return replace(spec, digest=spec_digest(spec, text))


def find_spec(argument: str, specs_dir: Path) -> Path:
    """Return the spec that a person means: a path, or the NAME of `specs_dir/NAME.yml`.

    Raises NotFound with the specs that there are.
    """
    given = Path(argument)
    if given.is_file():
        return given
    # With an ending or a slash it is a path, which is not looked for in the folder of specs.
    is_name = given.suffix not in SPEC_ENDINGS and given.name == argument
    for ending in SPEC_ENDINGS if is_name else ():
        path = specs_dir / f"{argument}{ending}"
        if path.is_file():
            return path
    if given.is_dir():
        message = f"{given} is a folder, expected a spec: a file or the name of one in {specs_dir}/"
        raise NotFound(message, hint="name one spec, such as `demo`")
    if given.exists():
        message = f"{given} is a pipe or a device, expected a spec: its lock lies beside it"
        raise SpecError(message, hint="write it to a file first")
    what = f"{specs_dir}/{argument}.yml" if is_name else argument
    directory = given.parent if given.parent.is_dir() and not is_name else specs_dir
    raise _not_found(what, argument if is_name else given.stem, directory, specs_dir)


def _not_found(what: str, name: str, directory: Path, *others: Path) -> NotFound:
    """Return the error for an unknown spec, with what is in its directory.

    What `others` have may be meant, too: `demo.yaml` for specs/demo.yml.
    """
    found = {folder: spec_names(folder) for folder in (directory, *others)}
    known = {one for names in found.values() for one in names}
    folder = next((folder for folder, names in found.items() if names), directory)
    there = ", ".join(found[folder]) or "no specs"
    hint = did_you_mean(name, sorted(known), "create it, or name another")
    return NotFound(f"the spec {what} does not exist ({folder}/ has {there})", hint=hint)


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
            # Only whether it can be read: for that, any platform does.
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
        kind = "a list" if isinstance(root, Sequence) else f"the text {shorten(root)}"
        message = f"{path}:{line_of(root)}: expected a mapping with `dependencies:`, found {kind}"
        raise SpecError(message, hint=hint)
    for key in root:
        if key not in KNOWN_KEYS and not HOLDER.fullmatch(key):
            # CEP 24: keys that a tool does not know are ignored, with a warning.
            close = perhaps(key, KNOWN_KEYS)
            where = f"{path}:{line_of(key)}"
            log.warning("%s: %s is ignored: not a key of a spec%s", where, shorten(key), close)
    if "dependencies" not in root:
        alike = closest("dependencies", root)
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
        raise unexpected(path, items, "`dependencies:` to be a list", line_of(content))
    for item in items:
        if isinstance(item, Text):
            conda.append(_conda_line(item, path))
        elif isinstance(item, Mapping) and [*item] == ["pip"]:
            if item["pip"] != "" and not isinstance(item["pip"], Sequence):
                error = unexpected(path, item["pip"], "a list of requirements under `pip:`")
                raise SpecError(error.message, hint="write each below `pip:` as `- REQUIREMENT`")
            pip += [_pip_line(line, path) for line in item["pip"]]
        else:
            raise _no_dependency(path, item)
    if not conda and not pip:
        message = f"{path} requires no packages"
        raise SpecError(message, hint="name packages under `dependencies:`")
    return tuple(conda), tuple(pip)


def _no_dependency(path: Path, item: object) -> SpecError:
    """Return the error for what is neither a package nor a pip section."""
    error = unexpected(path, item, "a conda package or `pip:` with a list under it")
    keys = [str(key) for key in item] if isinstance(item, Mapping) else []
    if len(keys) == 1 and (found := SEL.fullmatch(keys[0])):
        hint = f"write micromamba's `{keys[0]}:` as a comment: `- PACKAGE  # [{found['name']}]`"
        return SpecError(error.message, hint=hint)
    if len(keys) == 1 and isinstance(item, Mapping) and isinstance(item[keys[0]], Text):
        return SpecError(error.message, hint=f"write it as `- {keys[0]}={item[keys[0]]}`")
    if len(keys) == 1 and keys != ["pip"]:
        hint = f"take `{keys[0]}:` out: conda and pip packages are all that an environment gets"
        return SpecError(error.message, hint=hint)
    return error


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
        raise unexpected(path, item, "a conda package such as `numpy >=2`")
    return Text.at(without_extras(line)[0], line_of(item))


def _template(path: Path, item: Text, found: str) -> SpecError:
    message = f"{path}:{line_of(item)}: {shorten(item)} contains the template `{found}`"
    return SpecError(message, hint="write the value itself: envferry does not expand templates")


def _pip_line(item: object, path: Path) -> str:
    """Return one requirement or option line of the pip half."""
    if not isinstance(item, Text) or not item.strip():
        raise unexpected(path, item, "a pip requirement such as `numpy>=2`")
    line = item.strip()
    template = re.search(r"\{\{.*?\}\}|\{%.*?%\}", line)
    if template:
        raise _template(path, item, template[0])
    problem = pip_line_problem(line)
    if problem:
        message = (
            f"{path}:{line_of(item)}: {shorten(line)} is not a valid pip requirement: {problem}"
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


def _name(content: Mapping, path: Path) -> str:
    """Return the environment's name: the `name:` key, else the file's stem."""
    name = content.get("name", "") or path.stem
    if not isinstance(name, str):
        raise unexpected(path, name, "`name:` to be a name")
    if name in RESERVED_NAMES:
        message = f"{path}: `{name}` is conda's own installation, which cannot be carried"
        raise SpecError(message, hint="give the environment another `name:`")
    try:
        return str(check_name(name, "environment name"))
    except UsageError as error:
        hint = "give it another `name:`" if content.get("name") else "give the spec a `name:`"
        msg = f"{path}: {error}"
        raise SpecError(msg, hint=hint) from error
