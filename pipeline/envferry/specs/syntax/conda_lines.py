"""Lines of the conda half: which package each is about, and several about one made into one.

The forms are conda's (its `models/match_spec.py`): `name`, `name=1.2=build`, `name >=1,<2 build`,
`CHANNEL/SUBDIR::…`, `…[key=value]`, and the URL of one package.
"""

from __future__ import annotations

import re

import msgspec

from envferry.names import file_name_of

PACKAGE_ENDINGS = (".conda", ".tar.bz2")
SUBDIR = re.compile(r"noarch|(?:linux|osx|win|freebsd|emscripten|wasi|zos)-[a-z0-9_]+")
NAME = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*?)(?=$|[\s=<>!~\[*])")
# Of jinja, GitHub Actions and shells, and placeholders such as `<your version>`.
TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\$\{\{.*?\}\}|\$\([^)]*\)|<[A-Za-z_ ]+>")
BRACKETS = re.compile(r"(?P<start>[^\[]*)(\[(?P<keys>.*)\])?\s*$", re.DOTALL)
SPACED = re.compile(r"\s*(?P<text>[<>=!~,|]+)\s*")
EXACT = re.compile(r"=(?P<version>[^=<>~,|\s]+)=(?P<build>[^=\s]+)")
CHANNEL_KEY = re.compile(
    r"""(?:^|,)\s*channel\s*=\s*(?P<quote>['"]?)(?P<value>[^'",\s]+)(?P=quote)\s*"""
)
KEY = re.compile(r"\s*(?P<key>\w+)\s*=")
EXTRAS = re.compile(r"(?P<before>[^\[\]]+?)\s*(?P<extras>\[[^\[\]=]*\])\s*$")


class CondaLine(msgspec.Struct, frozen=True, kw_only=True):
    """What one line asks for, in parts that are still text."""

    name: str
    """In lower case, as conda compares names."""
    channel: str = ""
    """A name or URL, without the subdir."""
    subdir: str = ""
    version: str = ""
    build: str = ""
    keys: str = ""
    """What stands in brackets, without them and without `channel`."""
    url: str = ""
    """The package itself, for a line that is its URL."""


def parse_conda_line(text: str) -> CondaLine | None:
    """Take a line apart; None when it names no package."""
    line = text.strip()
    if is_package_url(line):
        stem = _stem(line)
        return CondaLine(name=stem.rsplit("-", 2)[0].lower(), url=line) if stem else None
    # In brackets, `::` is part of a value.
    start, colons, rest = line.partition("::") if "::" in line.partition("[")[0] else ("", "", line)
    channel, subdir = split_subdir(start)
    found = NAME.match(rest)
    if not found or (colons and not channel):
        return None
    body = BRACKETS.fullmatch(rest[found.end() :])
    if body is None:
        return None
    version, build = _version(body["start"].strip())
    keys = (body["keys"] or "").strip()
    if named := CHANNEL_KEY.search(keys):  # to conda, it is stronger than a prefix
        channel, subdir = split_subdir(named["value"])
        keys = f"{keys[: named.start()]}{keys[named.end() :]}".strip(" ,")
    return CondaLine(
        name=found["name"].lower(),
        channel=channel,
        subdir=subdir,
        version=version,
        build=build,
        keys=keys,
    )


def without_extras(text: str) -> tuple[str, str]:
    """Return a line without pip's extras, and these: conda, too, reads `a[all]` as `a`."""
    found = EXTRAS.fullmatch(text)
    return (found["before"], found["extras"]) if found else (text, "")


def conda_name(text: str) -> str:
    """Return the name of the package that a line is about, in lower case; empty when none."""
    line = parse_conda_line(text)
    return line.name if line else ""


def is_package_url(line: str) -> bool:
    """Whether a line is a URL or path of one conda package."""
    place = line.partition("#")[0]
    return place.endswith(PACKAGE_ENDINGS) and ("://" in place or place.startswith(("/", "~")))


def split_subdir(channel: str) -> tuple[str, str]:
    """Take the subdir off `CHANNEL/SUBDIR`; empty without one."""
    place, _, last = channel.rstrip("/").rpartition("/")
    return (place, last) if place and SUBDIR.fullmatch(last) else (channel, "")


def merged(lines: tuple[str, ...]) -> str:
    """Join lines about one package into one that demands what all of them do.

    Raises ValueError when two of them can never hold together, as far as their text tells.
    """
    known = [line for line in map(parse_conda_line, lines) if line]
    one = {
        "channel": _only(known, "channel"),
        "subdir": _only(known, "subdir"),
        "build": _only(known, "build"),
        "url": _only(known, "url"),
    }
    if one["url"]:
        if any(line.version or line.channel or line.build or line.keys for line in known):
            msg = "one of them is the URL of a package"
            raise ValueError(msg)
        return next(text for text in lines if is_package_url(text.strip()))
    # As written: taken apart and joined, it would be spelt otherwise.
    if len(set(map(str.strip, lines))) == 1:
        return lines[0].strip()
    versions = list(dict.fromkeys(line.version for line in known if line.version))
    keys = list(dict.fromkeys(line.keys for line in known if line.keys))
    names = [at["key"] for text in keys for at in KEY.finditer(text)]
    if len(names) > len(set(names)):
        msg = f"they name `{max(names, key=names.count)}` differently"
        raise ValueError(msg)
    place = f"{one['channel']}/{one['subdir']}".rstrip("/")
    # `,` binds more tightly than `|`, so alternatives need brackets among others.
    version = ",".join(f"({item})" if "|" in item and versions[1:] else item for item in versions)
    # A build stands after a version: `NAME * BUILD`.
    body = " ".join(filter(None, [version or ("*" if one["build"] else ""), one["build"]]))
    start = f"{place}::{known[0].name}" if place else known[0].name
    return f"{start} {body}".strip() + (f"[{','.join(keys)}]" if keys else "")


def _only(lines: list[CondaLine], part: str) -> str:
    values = {getattr(line, part) for line in lines} - {""}
    if len(values) > 1:
        msg = f"they name the {part}s {' and '.join(sorted(values))}"
        raise ValueError(msg)
    return next(iter(values), "")


def _version(text: str) -> tuple[str, str]:
    """Return the version constraint and the build that stand after a name."""
    # Blanks around operators do not begin a build: `>= 1.2` is `>=1.2`.
    text = SPACED.sub(lambda at: at["text"], text)
    # To conda, `=1.2=BUILD` is exactly 1.2, while `=1.2` alone is 1.2.*.
    exact = EXACT.fullmatch(text)
    if exact:
        version = exact["version"]
        return version if "*" in version else f"=={version}", exact["build"]
    version, _, build = text.partition(" ")
    if version.startswith("=") and not version.startswith("==") and "," not in version:
        bare = version[1:]
        version = bare if bare.endswith("*") else f"{bare}.*"
    return ("" if version == "*" and not build else version), build.strip()


def _stem(url: str) -> str:
    """Return NAME-VERSION-BUILD of a package's URL; empty when its file is called otherwise."""
    name = file_name_of(url)
    for ending in PACKAGE_ENDINGS:
        name = name.removesuffix(ending)
    return name if name.count("-") > 1 else ""
