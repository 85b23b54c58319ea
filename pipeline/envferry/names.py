"""What environments, platforms and artifacts are called, and where they lie by default."""

from __future__ import annotations

import platform as host_platform
import posixpath
import re
import unicodedata
from pathlib import Path

import msgspec

from envferry.errors import UsageError
from envferry.suggestions import perhaps

SEEN_DIRECTORY = Path(".envferry", ".tags")
"""Below a directory of environments: the newest record of each tag that this host accepted."""
ENVS_DIR = Path("/opt/conda/envs")
SPECS_DIR = Path("specs")
"""Where specs and locks are found by name."""
DIST_DIR = Path("dist")
"""Where archives are packed to."""
DEFAULT_TAG = "latest"

# No dot or hyphen in front: names become names of files and arguments of commands.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PREFIX_PUNCTUATION = "/._-+@=~"
ID_PATTERN = re.compile(r"[0-9a-f]{12}")

PLATFORMS = {
    ("Linux", "x86_64"): "linux-64",
    ("Linux", "aarch64"): "linux-aarch64",
    ("Linux", "ppc64le"): "linux-ppc64le",
    ("Darwin", "x86_64"): "osx-64",
    ("Darwin", "arm64"): "osx-arm64",
}


def current_platform() -> str:
    """Return this machine's conda platform (subdir), such as `linux-64`."""
    machine = (host_platform.system(), host_platform.machine())
    if machine not in PLATFORMS:
        message = f"envferry does not know the platform {machine[0]} {machine[1]}"
        raise UsageError(message)
    return PLATFORMS[machine]


def file_name_of(url: str) -> str:
    """Return the last part of a URL's path; of whatever text, for specs hold any."""
    from urllib.parse import unquote

    # Not urlsplit, which raises ValueError for some strings, such as `http://[`.
    path = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    return unquote((path[2].partition("/")[2] if path[1] else path[0]).rpartition("/")[2])


def check_name(name: str, what: str) -> str:
    """Return `name` when it can be one path component everywhere; raise UsageError otherwise."""
    if not NAME_PATTERN.fullmatch(name):
        message = (
            f"{name!r} is not a valid {what}: letters, digits, `.`, `_` and `-` only, 100 at most"
        )
        raise UsageError(message, hint="choose one such as `demo` or `torch-2.8`")
    return name


def check_env_prefix(prefix: str, hint: str) -> str:
    """Return `prefix` when an environment can live at that path; raise UsageError otherwise.

    An environment's scripts hold its prefix in shell, Python, Perl, make and `#!` lines, and in
    variables whose parts `:` separates. What one of them treats as more than a letter would break
    scripts, or run what is in the path. Letters and digits of any language are fine, and so are
    blanks: installers write `#!` lines that allow for them.
    """
    faults = sorted({character for character in prefix if not _is_plain(character)})
    if faults:
        shown = " ".join(map(ascii, faults[:5]))
        message = (
            f"{prefix!r} cannot be the prefix of an environment: it contains {shown}; letters, "
            f"digits, blanks and {' '.join(PREFIX_PUNCTUATION)} are allowed"
        )
        raise UsageError(message, hint=hint)
    if not _is_normal(prefix):
        message = f"{prefix!r} cannot be the prefix of an environment: it is not an absolute path"
        msg = f"{message} without `.`, `..` and `//`"
        raise UsageError(msg, hint=hint)
    return prefix


def is_env_prefix(prefix: str) -> bool:
    """Whether an environment can live at a path, by the rules of `check_env_prefix`."""
    return all(map(_is_plain, prefix)) and _is_normal(prefix)


def _is_normal(path: str) -> bool:
    # What `//` in front means is up to the system (POSIX, Pathname Resolution), and normpath keeps
    # it.
    is_absolute = path.startswith("/") and not path.startswith("//")
    return is_absolute and path != "/" and posixpath.normpath(path) == path


def _is_plain(character: str) -> bool:
    """Whether a character is a letter, a digit, or of the few that no script interprets."""
    # Letters, marks and numbers, by Unicode's general categories.
    is_letter = unicodedata.category(character)[0] in "LMN"
    return is_letter or character == " " or character in PREFIX_PUNCTUATION


def check_platform(platform: str) -> str:
    """Return `platform` when environments can be locked for it; raise UsageError otherwise."""
    known = tuple(PLATFORMS.values())
    if platform not in known:
        message = f"`{platform}` is not a valid platform{perhaps(platform, known)}"
        raise UsageError(message, hint=f"the platforms are {', '.join(known)}")
    return platform


def build_string(file_name: str) -> str | None:
    """Return the build string in a conda package's file name, `NAME-VERSION-BUILD.conda`."""
    stem = file_name.removesuffix(".conda").removesuffix(".tar.bz2")
    # Only the name may contain hyphens: versions and builds have none.
    return stem.rsplit("-", 1)[1] if stem != file_name and stem.count("-") > 1 else None


class Ref(msgspec.Struct, frozen=True, kw_only=True):
    """`NAME`, `NAME@TAG` or `NAME@ID`: how people name an artifact in a registry."""

    name: str
    version: str = DEFAULT_TAG
    """A tag or an id."""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Parse a ref; raise UsageError when it is not valid."""
        name, at, version = text.partition("@")
        check_name(name, "environment name")
        if not at:
            return cls(name=name)
        return cls(name=name, version=check_name(version, "tag or id"))

    @property
    def is_id(self) -> bool:
        """Whether this ref names an id and not a tag."""
        # Without doubt: a tag that looks like an id cannot be made (docs/format.md).
        return ID_PATTERN.fullmatch(self.version) is not None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"
