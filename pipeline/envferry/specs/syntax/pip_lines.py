"""Lines of the pip half: which there are, and what becomes of each.

The options are those of pip's requirements files; each has an effect, or a reason in
IGNORED_OPTIONS, or is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from envferry.names import file_name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTION = re.compile(r"(?P<name>--[A-Za-z0-9][\w-]*|-[A-Za-z])(?P<value>.*)")
OBEYED = {
    "--constraint": True,
    "--constraints": True,
    "--editable": True,
    "--extra-index-url": True,
    "--find-links": True,
    "--index-url": True,
    "--pypi-url": True,
    "--no-binary": True,
    "--no-index": False,
    "--only-binary": True,
    "--pre": False,
    "--prefer-binary": False,
    "--requirement": True,
    "--requirements": True,
}
"""The options that decide what is locked, and whether each takes a value."""
IGNORED_OPTIONS = {
    "--require-hashes": "the lock records the hash of every file, demanded or not",
    "--trusted-host": "certificates are always checked: name the authority in SSL_CERT_FILE",
    "--use-feature": "it configures pip, which envferry does not resolve with",
    "--config-settings": "sources are built with their own settings",
    "--config-setting": "sources are built with their own settings",
    "--global-option": "sources are built with their own settings",
    "--install-option": "sources are built with their own settings",
    "--build-option": "sources are built with their own settings",
    "-C": "sources are built with their own settings",
}
"""Options that pip knows and that decide nothing here, each with the reason."""
SHORT = {
    "-c": "--constraint",
    "-e": "--editable",
    "-f": "--find-links",
    "-i": "--index-url",
    "-r": "--requirement",
}
VCS = re.compile(r"(?P<vcs>[a-z]+)\+[a-z]+:")
ARCHIVE = re.compile(r"[^@]*\.(whl|zip|tar\.gz|tgz|tar\.bz2|tar\.xz|tar)(\[[^\]]*\])?")
FOLDER = re.compile(r"(\.{0,2}/|~/|\.\.?($|\[)|[\w.-]+/)[^\s;@]*(\s*;.*)?")
EGG = re.compile(r"[#&]egg=(?P<name>[A-Za-z0-9._-]+)?(?P<extras>\[[^\]]*\])?[^&\s]*")
NAMED_WITH_VERSION = re.compile(r".+-\d.*")
"""What old guides put after `egg=`: where the name ends, only the metadata can tell."""
BARE_URL = re.compile(r"(?P<url>(?:git\+|https?://|file:)\S+)(?P<rest>.*)")
WINDOWS_PATH = re.compile(r"([^@;#]+@\s*)?(file:/*)?([A-Za-z]:[\\/]|\.{0,2}\\)")
# Options after a requirement begin with a blank: a dash within a name does not count.
TRAILER = re.compile(r"\s+(?=--?[A-Za-z])")
HASH_FRAGMENT = re.compile(r"#(?:.*&)?sha256=(?P<digest>[0-9a-fA-F]{64})\b")


def pip_line_problem(line: str) -> str:
    """Say why pip would not accept a line; empty when it would."""
    option = OPTION.fullmatch(line)
    if option:
        return _option_problem(option["name"], _without_comment(option["value"]))
    if line.startswith("-"):
        return "it starts with a dash but is not an option"
    body, *options = TRAILER.split(_without_comment(line))
    for item in options:
        name = item.partition("=")[0].partition(" ")[0]
        if name != "--hash" and name not in IGNORED_OPTIONS:
            where = ", but stands on a line of its own" if SHORT.get(name, name) in OBEYED else ""
            return f"`{name}` is not a valid option of a requirement{where}"
    if windows := WINDOWS_PATH.match(body):
        return (
            f"`{windows[0]}` begins a path of Windows, which has no meaning on the platforms here"
        )
    # pip reads four version control systems; uv, which resolves here, reads git alone.
    vcs = VCS.match(body)
    if vcs:
        return "" if vcs["vcs"] == "git" else f"{vcs['vcs']} repositories cannot be fetched"
    if is_path(body) or BARE_URL.fullmatch(body):
        return ""
    try:
        wanted = Requirement(body.strip())
    except InvalidRequirement as error:
        return str(error).splitlines()[0]
    other = VCS.match(wanted.url or "")
    if other and other["vcs"] != "git":
        return f"{other['vcs']} repositories cannot be fetched"
    return ""


def ignored_options(line: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a line that decide nothing here, each with the reason."""
    option = OPTION.fullmatch(line)
    # A line is either one option, or a requirement with options after it.
    items = [line] if option else TRAILER.split(line)[1:]
    for item in items:
        name = re.split(r"[= ]", item)[0]
        if name in IGNORED_OPTIONS:
            yield item, IGNORED_OPTIONS[name]


def without_ignored_options(line: str) -> str:
    """Return a line without what decides nothing here; empty when nothing is left."""
    option = OPTION.fullmatch(line)
    if option:
        return "" if re.split(r"[= ]", line)[0] in IGNORED_OPTIONS else line
    body, *options = TRAILER.split(line)
    kept = [item for item in options if re.split(r"[= ]", item)[0] not in IGNORED_OPTIONS]
    return " ".join([body, *kept])


def option_of(line: str) -> tuple[str, str]:
    """Return the long name and the value of an option line; two empty texts for other lines."""
    found = OPTION.fullmatch(line)
    if not found:
        return "", ""
    name = SHORT.get(found["name"], found["name"])
    return name, found["value"].lstrip(" =").strip()


def is_path(line: str) -> bool:
    """Whether a line is a folder or file on this machine."""
    if "://" in line.partition(";")[0] and not line.startswith("file:"):
        return False
    return bool(line.startswith("file:") or FOLDER.fullmatch(line) or ARCHIVE.fullmatch(line))


def is_editable(line: str) -> bool:
    """Whether a line asks for a link to a folder instead of an installed package."""
    return option_of(line)[0] == "--editable"


def plain_requirement(line: str) -> str:
    """Return what a line asks for in the form that every tool reads.

    `-e X` is X; `git+URL#egg=NAME` is `NAME @ git+URL`, and so is an archive's URL whose file name
    tells the name. What only its metadata can name is the bare URL, for uv to find out.
    """
    text = option_of(line)[1] if is_editable(line) else line
    bare = BARE_URL.fullmatch(text)
    if not bare:
        return text
    egg = EGG.search(bare["url"])
    url = bare["url"]
    if egg:
        # What follows `#egg=NAME` becomes the whole fragment; an `&` of the query stays one.
        before, after = url[: egg.start()], EGG.sub("", url[egg.end() :])
        begins = after.startswith("&") and "#" not in before
        url = f"{before}#{after[1:]}" if begins else before + after
    if egg and egg["name"] and not NAMED_WITH_VERSION.fullmatch(egg["name"]):
        name = f"{egg['name']}{egg['extras'] or ''}"
    else:
        name = _file_name_says(url)
    return f"{name} @ {url}{bare['rest']}" if name else f"{url}{bare['rest']}"


def requirement_of(line: str) -> str:
    """Return the requirement (PEP 508) of a line, without its options and comment."""
    return TRAILER.split(_without_comment(plain_requirement(line)))[0].strip()


def requirement_name(line: str) -> str:
    """Return the canonical name of the package that a line asks for, as far as its text tells."""
    body = requirement_of(line)
    if is_path(body):
        found = _file_name_says(body)
        return str(canonicalize_name(found)) if found else ""
    try:
        return str(canonicalize_name(Requirement(body).name))
    except InvalidRequirement:
        return ""


def _option_problem(name: str, value: str) -> str:
    if name in IGNORED_OPTIONS:
        return ""
    known = SHORT.get(name, name)
    if known not in OBEYED:
        return f"`{name}` is not a valid option of a requirements file"
    if OBEYED[known] and not value.lstrip(" ="):
        return f"`{name}` needs a value"
    if not OBEYED[known] and value.strip():
        return f"`{name}` takes no value"
    if known == "--editable":
        return pip_line_problem(value.lstrip(" =").strip())
    return ""


def _without_comment(line: str) -> str:
    # After a blank only, as for pip: URLs have fragments.
    return re.sub(r"\s+#.*$", "", line)


def _file_name_says(url: str) -> str:
    """Return the name that the file name of a wheel or source distribution holds."""
    # A URL may have a fragment behind the file name, a path extras.
    place = url.partition("#")[0] if "://" in url else url.partition("[")[0]
    file_name = file_name_of(place)
    try:
        if file_name.endswith(".whl"):
            return str(parse_wheel_filename(file_name)[0])
        # Archives of a repository are called by their branch or tag: `master.zip`, `v1.0.tar.gz`.
        if file_name.endswith((".tar.gz", ".zip")) and "/archive/" not in place:
            return str(parse_sdist_filename(file_name)[0])
    except (InvalidWheelFilename, InvalidSdistFilename):
        return ""
    return ""
