"""Import: whatever people have -> the text of a spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envferry.errors import SpecError, UsageError
from envferry.models import NAME_PATTERN, check_name
from envferry.specs.drafts import Draft, quoted, relaxed, render_draft
from envferry.specs.import_conda import draft_conda_list, draft_explicit, draft_prefix
from envferry.specs.import_toml import draft_pixi, draft_pyproject
from envferry.specs.kinds import Kind, recognise, surprise
from envferry.specs.reading import KNOWN_KEYS, RESERVED_NAMES, parse_spec
from envferry.specs.requirement_lines import INCLUDE, read_requirements, rebased, relative
from envferry.specs.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Spec
    from envferry.specs.drafts import RelaxLevel

GENERIC_STEMS = ("environment", "env", "requirements", "pixi", "pyproject", "explicit", "conda")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How to import."""

    name: str | None = None
    """The environment's name; else the file's own, else that of the file or its folder."""
    channels: tuple[str, ...] = ("conda-forge",)
    """For sources that name no channels."""
    python: str | None = None
    """The python version for sources that name none."""
    relax: RelaxLevel | None = None
    """How far every conda pin is loosened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A spec that is not yet written."""

    kind: Kind
    spec: Spec
    text: str
    notes: tuple[str, ...]
    """What people should know: what the file is, what was left out."""


def import_spec(source: Path, specs_dir: Path, options: ImportOptions) -> Imported:
    """Turn a file or a prefix into the text of `specs_dir/NAME.yml`, which it does not write.

    Raises NotFound when it is not there, SpecError when it cannot be read as anything.
    """
    kind, text = recognise(source)
    if kind is Kind.ENVIRONMENT:
        found, notes = _adopt_environment(text, source, specs_dir, options)
    else:
        name = options.name or _default_name(source, kind)
        draft = _draft(kind, text, source, specs_dir, replace(options, name=name))
        found, notes = render_draft(draft), draft.notes
    spec = _checked(found, specs_dir, source)
    what = surprise(source, kind)
    return Imported(kind=kind, spec=spec, text=found, notes=tuple(filter(None, [what, *notes])))


def _checked(text: str, specs_dir: Path, source: Path) -> Spec:
    """Read the new spec as if it were there: what we write must be one."""
    try:
        spec = parse_spec(text, specs_dir / f"{source.name}.yml")
    except SpecError as error:
        message = f"{source} cannot become a spec: {error.message}"
        raise SpecError(message, hint=error.hint) from error
    return replace(spec, path=specs_dir / f"{spec.name}.yml")


def _default_name(source: Path, kind: Kind) -> str:
    """Return a name for what has none: the file's or its folder's."""
    stem = source.resolve().name if kind is Kind.PREFIX else source.stem
    if any(stem.lower() == generic for generic in GENERIC_STEMS):
        stem = source.resolve().parent.name
    stem = re.sub(r"^requirements[-_.]|[-_.]requirements$", "", stem)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "env"
    return f"{stem}-env" if stem in RESERVED_NAMES else stem[:100]


def _draft(kind: Kind, text: str, source: Path, base: Path, options: ImportOptions) -> Draft:
    """Read every kind but environment files."""
    name = _valid_name(options.name or "env")
    channels = options.channels
    if kind is Kind.REQUIREMENTS:
        python = f"python={options.python}" if options.python else "python"
        draft = Draft(name=name, channels=list(channels), conda=[python, "pip"])
        draft.pip = read_requirements(source, text, base)
        if not options.python:
            draft.notes.append("no python version is named: pin it, such as `- python=3.11`")
    elif kind is Kind.EXPLICIT:
        draft = draft_explicit(text, source, name)
    elif kind is Kind.CONDA_LIST:
        draft = draft_conda_list(text, name, channels)
    elif kind is Kind.PREFIX:
        draft = draft_prefix(source, name, channels)
    elif kind is Kind.PIXI:
        draft = draft_pixi(text, source, base, name)
    else:
        draft = draft_pyproject(text, source, base, name, channels)
    draft.channels = draft.channels or list(channels)
    draft.conda = list(dict.fromkeys(relaxed(line, options.relax) for line in draft.conda))
    has_pip = any(re.match(r"pip\b(?!-)", line) for line in draft.conda)
    if draft.pip and not has_pip:
        draft.conda.append("pip")
    return draft


def _valid_name(name: str) -> str:
    if name in RESERVED_NAMES:
        message = f"`{name}` names conda's own installation, which nobody carries"
        raise UsageError(message)
    return check_name(name, "environment name")


def _adopt_environment(
    text: str, source: Path, base: Path, options: ImportOptions
) -> tuple[str, list[str]]:
    """Keep an environment file as it is written, comments too, but for what cannot travel."""
    root = parse_yaml(text, source)
    if not isinstance(root, Mapping):
        raise SpecError(f"{source} is no mapping", hint="name an environment file")
    lines = text.lstrip("\ufeff").splitlines()
    _rewrite_dependencies(root, lines, (source.parent, base), options.relax)
    added, notes = _missing_keys(root, source, options)
    dropped = [key for key in root if key == "prefix" or key not in KNOWN_KEYS]
    has_own_name = "name" in root and not any(line.startswith("name:") for line in added)
    changed = [*dropped, *([] if has_own_name or "name" not in root else ["name"])]
    starts = sorted({line_of(key) for key in root})
    if changed and len(starts) < len(root):
        message = f"{source} has several keys in one line"
        raise SpecError(message, hint="write each key on a line of its own")
    gone: set[int] = set()
    for key in root:
        if key in changed:
            following = next((line for line in starts if line > line_of(key)), len(lines) + 1)
            gone.update(range(line_of(key), following))
    notes += [f"`{key}:`{_place(root, key)} is left out" for key in dropped]
    kept = [line for number, line in enumerate(lines, start=1) if number not in gone]
    top = starts[0] - 1
    return "\n".join([*kept[:top], *added, *kept[top:]]).rstrip() + "\n", notes


def _place(root: Mapping, key: str) -> str:
    return f" ({root[key]})" if key == "prefix" else ""


def _missing_keys(
    root: Mapping, source: Path, options: ImportOptions
) -> tuple[list[str], list[str]]:
    """Return the lines that must be added, and what to say about them."""
    added, notes = [], []
    written = root.get("name", "")
    usable = isinstance(written, str) and bool(NAME_PATTERN.fullmatch(written))
    if options.name or not usable or written in RESERVED_NAMES:
        name = _valid_name(options.name or _default_name(source, Kind.ENVIRONMENT))
        added.append(f"name: {quoted(name)}")
        if written and not options.name:
            notes.append(f"the name `{written}` cannot be used: it is now `{name}`")
    if "channels" not in root:
        channels = ", ".join(map(quoted, options.channels))
        added.append(f"channels: [{channels}]")
        notes.append(f"no channels are named: taken {channels}")
    return added, notes


def _rewrite_dependencies(
    root: Mapping, lines: list[str], folders: tuple[Path, Path], relax: RelaxLevel | None
) -> None:
    """Loosen conda pins and move relative paths, each in the line where it stands."""
    dependencies = root.get("dependencies")
    for item in dependencies if isinstance(dependencies, Sequence) else ():
        if isinstance(item, Text):
            _replace_once(lines, item, relaxed(item.strip(), relax))
        elif isinstance(item, Mapping) and isinstance(item.get("pip"), Sequence):
            for line in item["pip"]:
                if isinstance(line, Text) and folders[0].resolve() != folders[1].resolve():
                    _replace_once(lines, line, _moved(line.strip(), *folders))


def _moved(line: str, folder: Path, base: Path) -> str:
    """Make the relative path of a pip line start from another folder."""
    include = INCLUDE.fullmatch(line)
    if include and "://" not in include["path"]:
        return line[: include.start("path")] + relative(folder / include["path"], base)
    return rebased(line, folder, base)


def _replace_once(lines: list[str], old: Text, new: str) -> None:
    """Replace a scalar in the line where it stands."""
    number, written = line_of(old) - 1, old.strip()
    if new != written and number < len(lines):
        lines[number] = lines[number].replace(written, new, 1)
