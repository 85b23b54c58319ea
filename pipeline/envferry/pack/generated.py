"""The files that packing itself puts into an archive: activation, and conda-unpack."""

from __future__ import annotations

import inspect
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from envferry.archive import relocating, shebangs
from envferry.archive.index import FileEntry
from envferry.archive.members import GENERATED, Member
from envferry.archive.prefix_search import find_edits
from envferry.archive.prefixes import MOST_RECORD_BYTES
from envferry.base.env_variables import UNSET
from envferry.base.shell import fish_quoted, quoted
from envferry.pack import unpacking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from envferry.archive.members import Owner

SCRIPTS = Path(__file__).with_name("scripts")
# HAD tells an empty variable from one that was not set.
SET = """\
    export _ENVFERRY_OLD_{name}="${{{name}-}}"
    export _ENVFERRY_HAD_{name}="${{{name}+x}}"
    {set}"""
RESTORE = """\
    if [ -n "${{_ENVFERRY_HAD_{name}-}}" ]; then
        export {name}="${{_ENVFERRY_OLD_{name}-}}"
    else
        unset {name}
    fi
    unset _ENVFERRY_OLD_{name} _ENVFERRY_HAD_{name}"""
FISH_SCRIPTS = "    # Run the activate scripts\n"
FISH_END = "    set -e CONDA_PREFIX\n"
FISH_SET = """\
    set -q {name}; and set -g _ENVFERRY_OLD_{name} "${name}"; or set -e _ENVFERRY_OLD_{name}
    {set}
"""
FISH_RESTORE = """\
    if set -q _ENVFERRY_OLD_{name}
        set -gx {name} "$_ENVFERRY_OLD_{name}"
        set -e _ENVFERRY_OLD_{name}
    else
        set -e {name}
    end
"""
UNPACK = """\
#!/usr/bin/env python
# Run it with the environment's own python: `bin/python bin/conda-unpack`.
from __future__ import annotations

{functions}

FILES = [
{files}
]

if __name__ == "__main__":
    main({parts!r}, [MovedFile(*file) for file in FILES], {version!r})
"""
# conda-unpack is one file: what our modules import from each other is in it already.
OWN_IMPORTS = re.compile(
    r"^from (?:__future__|envferry)[\w.]* import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE
)


def content_of(member: Member) -> bytes:
    """Return what a generated member holds."""
    assert isinstance(member.source, bytes)
    return member.source


def activation_scripts(variables: Mapping[str, str], prefix: str) -> Iterator[Member]:
    """Yield `activate` and `deactivate`, which set and restore these variables."""
    words = {
        "@PREFIX@": quoted(prefix),
        "@SET_VARIABLES@": "\n".join(
            SET.format(
                name=name,
                set=f"unset {name}" if value == UNSET else f"export {name}={quoted(value)}",
            )
            for name, value in variables.items()
        ),
        "@RESTORE_VARIABLES@": "\n".join(RESTORE.format(name=name) for name in variables),
    }
    yield script("bin/activate.fish", fish_script(variables))
    # `activate` last: conda-unpack believes what it says of the prefix, so it is changed last.
    for name in ("deactivate", "activate"):
        text = (SCRIPTS / name).read_text()
        for word, replacement in words.items():
            text = text.replace(word, replacement)
        yield script(f"bin/{name}", text)


def fish_script(variables: Mapping[str, str]) -> str:
    """Return conda-pack's script for fish, which sets and restores these variables as well."""
    import conda_pack

    text = (Path(conda_pack.__file__).parent / "scripts/posix/activate.fish").read_text()
    settings = [
        FISH_SET.format(name=name, set=fish_set(name, value)) for name, value in variables.items()
    ]
    restored = [FISH_RESTORE.format(name=name) for name in variables]
    # These lines are those of conda-pack 0.9, to which its version is limited.
    text = text.replace(FISH_SCRIPTS, "".join(settings) + FISH_SCRIPTS, 1)
    return text.replace(FISH_END, "".join(restored) + FISH_END, 1)


def fish_set(name: str, value: str) -> str:
    """Return fish's command that gives a variable its value."""
    return f"set -e {name}" if value == UNSET else f"set -gx {name} {fish_quoted(value)}"


def conda_unpack(
    files: Sequence[FileEntry],
    scripts: Sequence[Member],
    prefix: str,
    owner_of: Callable[[str], Owner],
) -> Member:
    """Return the script that gives an unpacked archive another prefix, as `install` does.

    `scripts` are the other generated members, the one that notes the prefix last.
    """
    items = [item for entry in files for item in moved_item(entry, prefix)]
    edited = {owner_of(entry.path) for entry in files if entry.edits}
    items += [
        (entry.path, "record", None)
        for entry in files
        if re.fullmatch(r"conda-meta/[^/]*\.json", entry.path)
        and entry.size <= MOST_RECORD_BYTES
        and owner_of(entry.path).kind == "conda"
        and owner_of(entry.path) in edited
    ]
    for member in scripts:
        # The index does not have them yet: they are packed together with this script.
        edits = find_edits(content_of(member), prefix.encode(), None).edits
        items += moved_item(msgspec.structs.replace(member.entry, edits=edits), prefix)
    # The code of `install` itself, so that both give the same bytes.
    sources = (inspect.getsource(module) for module in (relocating, shebangs, unpacking))
    text = UNPACK.format(
        # In parts, so that conda-unpack does not hold the prefix and is never edited itself.
        parts=prefix.strip("/").split("/"),
        version=metadata.version("envferry"),
        files="".join(f"    {item!r},\n" for item in items).rstrip(),
        functions=OWN_IMPORTS.sub("", "\n\n".join(sources)),
    )
    return script("bin/conda-unpack", text)


def moved_item(entry: FileEntry, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Yield what conda-unpack has to do to a file."""
    # With the slash: /opt/env-2 is not below /opt/env.
    if (entry.link + "/").startswith(prefix + "/"):
        yield entry.path, "link", entry.link.removeprefix(prefix)
    elif entry.edits and entry.edits.text:
        yield entry.path, "text", (entry.size, entry.edits.at, entry.edits.padded)
    elif entry.edits:
        strings = [msgspec.structs.astuple(string) for string in entry.edits.strings]
        yield entry.path, "strings", (strings, entry.edits.at)


def script(path: str, text: str) -> Member:
    """Return a generated program."""
    content = text.encode()
    return Member(
        entry=FileEntry(path=path, mode=0o755, size=len(content)), owner=GENERATED, source=content
    )
