"""Import: whatever people have -> the text of a spec."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.base.channel_credentials import USUAL_FILE
from envferry.errors import SpecError, UsageError
from envferry.names import NAME_PATTERN, check_name
from envferry.redaction import has_credentials, without_login
from envferry.specs.drafts import SpecDraft, left_out_comment, quoted, relaxed, render_draft
from envferry.specs.importing.conda_environments import (
    draft_conda_list,
    draft_conda_table,
    draft_pip_table,
    draft_prefix,
)
from envferry.specs.importing.file_kinds import FOREIGN_LOCKS, FileKind, name_mismatch, recognise
from envferry.specs.importing.lock_formats import read_explicit, read_foreign_lock
from envferry.specs.importing.pixi import draft_pixi
from envferry.specs.importing.poetry import draft_poetry
from envferry.specs.importing.pyproject import draft_pyproject
from envferry.specs.importing.venv import draft_venv
from envferry.specs.reading import (
    HOLDER,
    KNOWN_KEYS,
    check_dependencies,
    parse_spec,
)
from envferry.specs.spec_names import RESERVED_NAMES
from envferry.specs.syntax.conda_lines import conda_name
from envferry.specs.syntax.requirement_lines import (
    INCLUDE,
    logical_lines,
    read_requirements,
    rebased,
    relative,
)
from envferry.specs.syntax.url_logins import channel_texts, without_channel_login
from envferry.specs.syntax.yaml_text import (
    MAX_BYTES,
    Mapping,
    Sequence,
    Text,
    line_of,
    parse_yaml,
    too_large,
)

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Spec
    from envferry.specs.drafts import RelaxLevel
    from envferry.specs.importing.foreign_lock import ForeignLock

# Names of formats and tools: the folder's name tells more of the environment.
GENERIC_STEMS = (
    *("environment", "env", "requirements", "pixi", "pyproject", "explicit", "conda"),
    *("uv", "pylock", "conda-lock", "venv", "virtualenv"),
)

URL = re.compile(r"[\w+.-]+://(?:[^/\s'\"]*@)?(?P<host>[^/\s'\"@]+)[^\s'\"]*")


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to import."""

    name: str | None = None
    """The environment's name; else the file's own, else that of the file or its folder."""
    environment: str | None = None
    """Which one of a pixi manifest, where it has one of this name; else its default one."""
    channels: tuple[str, ...] = ("conda-forge",)
    """For sources that name no channels."""
    python: str | None = None
    """The python version for sources that name none."""
    relax: RelaxLevel | None = None
    """How far every conda pin is loosened."""
    glibc: str | None = None
    """What hosts must offer, where the source does not say."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """A spec that is not yet written."""

    kind: FileKind
    spec: Spec
    text: str
    notes: tuple[str, ...]
    """What people should know: what the file is, what was left out."""
    lock: ForeignLock | None = None
    """What the source has locked already."""

    @property
    def locks(self) -> bool:
        """Whether a lock is to be made, too: the source says exactly what is in the environment."""
        return self.lock is not None or self.kind is FileKind.VENV


def import_spec(source: Path, specs_dir: Path, options: ImportOptions) -> Imported:
    """Turn a file or a prefix into the text of `specs_dir/NAME.yml`, which it does not write.

    Raises NotFound when it is not there, SpecError when it cannot be read as anything.
    """
    # By the content: a name proves nothing, and many lists have none that is usual.
    kind, text = recognise(source)
    lock: ForeignLock | None = None
    if kind is FileKind.ENVIRONMENT:
        found, notes = _adopt_environment(text, source, specs_dir, options)
    else:
        name = options.name or default_name(source, kind)
        # What was given as `--name` also chooses an environment of pixi that is called so.
        options = replace(options, name=_valid_name(name), environment=options.name)
        if kind is FileKind.EXPLICIT or kind in FOREIGN_LOCKS:
            name = options.name or "env"
            lock = (
                read_explicit(text, source, name)
                if kind is FileKind.EXPLICIT
                else read_foreign_lock(text, source, kind, name, options.python)
            )
            draft = _finished(lock.draft, source, options)
        else:
            draft = _draft(kind, text, source, specs_dir, options)
        left_out = (f"not carried over: {item}" for item in draft.left_out)
        found, notes = render_draft(draft), [*draft.notes, *left_out]
    spec = _checked(found, specs_dir, source)
    what = name_mismatch(source, kind)
    given = "\n".join((text, *options.channels))
    notes = list(filter(None, [what, *notes, *_logins_left_out(given, found)]))
    return Imported(kind=kind, spec=spec, text=found, notes=tuple(notes), lock=lock)


def _logins_left_out(text: str, spec: str) -> list[str]:
    """Say of which hosts the logins and tokens stay behind: a spec is no place for secrets."""
    notes = []
    for found in URL.finditer(text):
        host = found["host"]
        if not has_credentials(found[0]) or found[0] in spec:
            continue
        if has_credentials(without_login(found[0])):
            told = f"`pixi auth login {host} --token …` puts it into ~/{USUAL_FILE}"
            notes.append(f"the token for {host} is left out: {told}")
        else:
            notes.append(f"the login for {host} is left out: put it into ~/.netrc")
    return list(dict.fromkeys(notes))


def _checked(text: str, specs_dir: Path, source: Path) -> Spec:
    """Read the new spec as if it were there: what we write must be one."""
    # A lock may be larger than a spec: what it becomes must be readable as one.
    if len(text.encode()) > MAX_BYTES:
        raise too_large(source)
    try:
        spec = parse_spec(text, specs_dir / f"{source.stem}.yml")
    except SpecError as error:
        message = f"{source} cannot become a spec: {error.message}"
        raise SpecError(message, hint=error.hint) from error
    return replace(spec, path=specs_dir / f"{spec.name}.yml")


def default_name(source: Path, kind: FileKind) -> str:
    """Return a name for what has none: the file's or its folder's."""
    is_folder = kind in (FileKind.PREFIX, FileKind.VENV)
    # An installed environment is a link to a tree that is named by its id.
    *_, parent, name = ("", *os.path.abspath(source).split("/"))  # noqa: PTH100
    stem = name.lstrip(".") if is_folder else source.stem
    stem = stem.removesuffix(".conda-lock")
    if any(stem.lower() == generic for generic in GENERIC_STEMS):
        stem = parent
    stem = re.sub(r"^requirements[-_.]|[-_.]requirements$", "", stem)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "env"
    return f"{stem}-env" if stem in RESERVED_NAMES else stem[:100]


def _draft(
    kind: FileKind, text: str, source: Path, base: Path, options: ImportOptions
) -> SpecDraft:
    """Read every kind but environment files and locks."""
    name, channels = options.name or "env", options.channels
    if kind is FileKind.REQUIREMENTS:
        draft = SpecDraft(name=name, pip=read_requirements(source, text, base))
    elif kind is FileKind.CONDA_SPECS:
        lines = [line.text for line in logical_lines(text)]
        draft = SpecDraft(name=name, channels=list(channels), conda=lines)
    elif kind is FileKind.CONDA_LIST:
        draft = draft_conda_list(text, source, name, channels)
    elif kind is FileKind.CONDA_TABLE:
        draft = draft_conda_table(text, name, channels)
    elif kind is FileKind.PIP_TABLE:
        draft = draft_pip_table(text, name, channels)
    elif kind is FileKind.PREFIX:
        draft = draft_prefix(source, name, channels)
    elif kind is FileKind.VENV:
        draft = draft_venv(source, name, channels)
    elif kind is FileKind.PIXI:
        draft = draft_pixi(text, source, base, name, options.environment)
    else:
        read = draft_poetry if kind is FileKind.POETRY else draft_pyproject
        draft = read(text, source, base, name, channels)
    return _finished(draft, source, options)


def _finished(draft: SpecDraft, source: Path, options: ImportOptions) -> SpecDraft:
    """Add what every spec has: channels, a python for the pip half, pip; loosen the pins.

    Raises SpecError when there is nothing to lock.
    """
    if not (draft.conda or draft.pip):
        reasons = "; ".join(draft.left_out[:3])
        message = f"{source} requires no package of a channel or an index" + (
            f" ({reasons})" if reasons else ""
        )
        raise SpecError(message, hint="add one, such as `python`, to its dependencies")
    draft.channels = [
        without_channel_login(one) for one in draft.channels or list(options.channels)
    ]
    draft.conda = [without_channel_login(line) for line in draft.conda]
    if draft.pip and not draft.conda:
        # No index has python itself: the pip half needs one from a channel.
        draft.conda.insert(0, f"python={options.python}" if options.python else "python")
        if not options.python:
            draft.notes.append("no python version is named: pin it, such as `- python=3.11`")
    _give_pip_to_conda(draft)
    if options.glibc:
        draft.system.setdefault("glibc", options.glibc)
        draft.notes.append(f"hosts must have glibc {options.glibc}, which python needs here")
    # Loosened, two lines may have become the same one.
    draft.conda = list(dict.fromkeys(relaxed(line, options.relax) for line in draft.conda))
    if draft.pip and not any(conda_name(line) == "pip" for line in draft.conda):
        draft.conda.append("pip")
    return draft


def _give_pip_to_conda(draft: SpecDraft) -> None:
    """Ask conda for the pip that the pip half asks for: an environment holds one."""
    # A copy, as lines are taken out of the list meanwhile.
    for line in [*draft.pip]:
        wanted = re.fullmatch(r"pip\s*(?P<version>[=<>!~][^;@]*)?", line)
        if wanted:
            draft.pip.remove(line)
            draft.conda.append(f"pip{wanted['version'] or ''}".strip())


def _valid_name(name: str) -> str:
    if name in RESERVED_NAMES:
        message = f"`{name}` is conda's own installation, which cannot be carried"
        raise UsageError(message)
    return check_name(name, "environment name")


def _adopt_environment(
    text: str, source: Path, base: Path, options: ImportOptions
) -> tuple[str, list[str]]:
    """Keep an environment file as it is written, comments too, but for what cannot travel."""
    root = parse_yaml(text, source)
    if not isinstance(root, Mapping):
        msg = f"{source} is not a mapping"
        raise SpecError(msg, hint="name an environment file")
    check_dependencies(root, source)
    lines = text.lstrip("\ufeff").splitlines()
    _rewrite_dependencies(root, lines, (source.parent, base), options.relax)
    added, notes = _missing_keys(root, source, options)
    dropped = [
        key
        for key in root
        if key == "prefix" or (key not in KNOWN_KEYS and not HOLDER.fullmatch(key))
    ]
    held = _keep_holders(dropped, root, lines)
    dropped = [key for key in dropped if key not in held]
    has_own_name = "name" in root and not any(line.startswith("name:") for line in added)
    changed = [*dropped, *([] if has_own_name or "name" not in root else ["name"])]
    starts = sorted({line_of(key) for key in root})
    # Keys are cut out by whole lines, which would take the others of such a line along.
    if changed and len(starts) < len(root):
        message = f"{source} has several keys in one line"
        raise SpecError(message, hint="write each key on a line of its own")
    gone: set[int] = set()
    for key in root:
        if key in changed:
            following = next((line for line in starts if line > line_of(key)), len(lines) + 1)
            gone.update(range(line_of(key), following))
    notes += [f"`{key}:`{_place(root, key)} is left out" for key in dropped]
    notes += [f"`{key}:` is now `x-{key}:`, as its contents are used elsewhere" for key in held]
    added = [
        *(left_out_comment(f"{key}: {_shown(root[key])}") for key in dropped if key != "prefix"),
        *added,
    ]
    kept = [line for number, line in enumerate(lines, start=1) if number not in gone]
    top = starts[0] - 1
    return "\n".join([*kept[:top], *added, *kept[top:]]).rstrip() + "\n", notes


def _keep_holders(dropped: list[str], root: Mapping, lines: list[str]) -> list[str]:
    """Rename the keys that hold what a YAML alias elsewhere stands for; return which they are."""
    starts = sorted({line_of(key) for key in root})
    held = []
    for key in dropped:
        end = next((line for line in starts if line > line_of(key)), len(lines) + 1)
        # In the text, as the parsed values do not show which of them an alias repeated.
        inside = "\n".join(lines[line_of(key) - 1 : end - 1])
        anchors = re.findall(r"(?:^|\s)&(\w+)", inside)
        elsewhere = "\n".join([*lines[: line_of(key) - 1], *lines[end - 1 :]])
        if any(re.search(rf"(?:^|[\s,\[])\*{name}\b", elsewhere) for name in anchors):
            number = line_of(key) - 1
            lines[number] = lines[number].replace(key, f"x-{key}", 1)
            held.append(key)
    return held


def _shown(value: object) -> str:
    text = (
        ", ".join(value)
        if isinstance(value, (Mapping, Sequence)) and all(isinstance(item, str) for item in value)
        else str(value)
    )
    return text[:200]


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
        name = _valid_name(options.name or default_name(source, FileKind.ENVIRONMENT))
        added.append(f"name: {quoted(name)}")
        if written and not options.name:
            notes.append(f"the name `{written}` cannot be used: it is now `{name}`")
    if "channels" not in root:
        channels = ", ".join(quoted(without_channel_login(one)) for one in options.channels)
        added.append(f"channels: [{channels}]")
        notes.append(f"no channels are named: using {channels}")
    return added, notes


def _rewrite_dependencies(
    root: Mapping, lines: list[str], folders: tuple[Path, Path], relax: RelaxLevel | None
) -> None:
    """Loosen conda pins, move relative paths and leave logins out, each in its line."""
    for text in channel_texts(root):
        _replace_once(lines, text, without_channel_login(text.strip()))
    dependencies = root.get("dependencies")
    for item in dependencies if isinstance(dependencies, Sequence) else ():
        if isinstance(item, Text):
            _replace_once(lines, item, relaxed(without_channel_login(item.strip()), relax))
        elif isinstance(item, Mapping) and isinstance(item.get("pip"), Sequence):
            for line in item["pip"]:
                if isinstance(line, Text):
                    moves = folders[0].resolve() != folders[1].resolve()
                    asked = line.strip()
                    new = _moved(asked, *folders) if moves else without_login(asked)
                    _replace_once(lines, line, new)


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
        # Once: a comment at the end of the line may have the same words.
        lines[number] = lines[number].replace(written, new, 1)
