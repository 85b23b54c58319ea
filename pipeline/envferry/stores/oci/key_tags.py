"""Which key is which tag of which repository, and back.

Below `v1/envs` and `v1/tags` each environment has a repository of its own, REPOSITORY/NAME; all
else is in REPOSITORY. A key is a tag that begins with `_`, and a dot two letters on: what people
call `NAME:TAG` is made of these, never the other way round.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from envferry.base.sha256 import sha256_hex
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
"""https://github.com/opencontainers/distribution-spec, "Pulling manifests"."""
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LONGEST_TAG = 128
ID = r"[0-9a-f]{12}"
# Without a dot, which ends the platform in `_t.PLATFORM.TAG`.
PLATFORM = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
FILE_KEY = re.compile(
    rf"v1/envs/(?P<name>[^/]+)/(?P<platform>{PLATFORM})/(?P<id>{ID})/(?P<file>[A-Za-z0-9._-]+)"
)
TAG_KEY = re.compile(rf"v1/tags/(?P<name>[^/]+)/(?P<platform>{PLATFORM})/(?P<tag>[A-Za-z0-9._-]+)")
FILE_TAG = re.compile(rf"_f\.(?P<platform>{PLATFORM})-(?P<id>{ID})\.(?P<file>.+)")
TAG_TAG = re.compile(rf"_t\.(?P<platform>{PLATFORM})\.(?P<tag>.+)")
PLAIN_PREFIX, HASHED_PREFIX, ENVIRONMENT_PREFIX = "_k.", "_h.", "_e."
INTERNAL = re.compile(r"_[a-z]\..*")
IMAGE_TAG = re.compile(rf"(?P<platform>{PLATFORM})-(?P<id>{ID})")
REFERRERS_TAG = re.compile(r"(?P<algorithm>sha256)-(?P<hex>[0-9a-f]{64})(\.(att|sig|sbom))?")
RUNNABLE = "run."
"""Begins the tags of images that have a system below an environment."""
RUNNABLE_TAG = re.compile(rf"run\._t\.(?P<platform>{PLATFORM})\.(?P<tag>.+)")
"""The image that `run.TAG` has for a platform: its index is made of these."""
ARCHIVE = "archive"
"""What an archive is called in a tag: its own name would repeat the rest of it."""
ENCODED_NAME = "x--"
"""Begins the path of an environment whose name cannot be one, as with upper-case letters."""
TOPS = ("v1/envs/", "v1/tags/")
ESCAPES = {"_": "__", "/": "_s", "+": "_p"}
BACK = {escaped[1]: plain for plain, escaped in ESCAPES.items()}


class Place(msgspec.Struct, frozen=True):
    """Where a value is."""

    repository: str
    """The whole path on the server."""
    tag: str


class ArchiveName(msgspec.Struct, frozen=True):
    """What the key of an archive says."""

    name: str
    platform: str
    id: str

    @property
    def tag(self) -> str:
        """The tag of the image."""
        return f"{self.platform}-{self.id}"


class OciTag(msgspec.Struct, frozen=True):
    """What the key of a tag says."""

    name: str
    platform: str
    tag: str


class Names(msgspec.Struct, frozen=True):
    """Keys and places below one REPOSITORY."""

    root: str

    def place(self, key: str) -> Place:
        """Return where the value of a key is."""
        name = environment_of(key)
        repository = self.repository(name) if name else self.root
        return Place(repository, tag_of(key, in_environment=bool(name)))

    def repository(self, name: str) -> str:
        """Return the repository of an environment."""
        return f"{self.root}/{path_of(name)}"

    def key(self, tag: str, name: str | None) -> str | None:
        """Return the key of a tag; None for other tags, and where only the manifest says it."""
        if found := (FILE_TAG.fullmatch(tag) if name else None):
            file = found["file"]
            if file == ARCHIVE or file.startswith(f"{ARCHIVE}."):
                stem = f"{name}-{found['platform']}-{found['id']}"
                file = f"{stem}.tar.zst{file.removeprefix(ARCHIVE)}"
            return f"v1/envs/{name}/{found['platform']}/{found['id']}/{file}"
        if found := (TAG_TAG.fullmatch(tag) if name else None):
            return f"v1/tags/{name}/{found['platform']}/{found['tag']}"
        if tag.startswith(PLAIN_PREFIX):
            return unescape(tag.removeprefix(PLAIN_PREFIX))
        return None


def tag_of(key: str, *, in_environment: bool) -> str:
    """Return the tag that holds a key."""
    if in_environment:
        if found := FILE_KEY.fullmatch(key):
            archive = f"{found['name']}-{found['platform']}-{found['id']}.tar.zst"
            file = found["file"]
            if file == archive or file.startswith(f"{archive}."):
                file = ARCHIVE + file.removeprefix(archive)
            tag = f"_f.{found['platform']}-{found['id']}.{file}"
            # Where a platform looks as if an id were in it, the tag would be read otherwise.
            if len(tag) <= LONGEST_TAG and Names("x").key(tag, found["name"]) == key:
                return tag
        # Refused and not hashed: people must be able to pull NAME:TAG under the name they chose.
        if found := TAG_KEY.fullmatch(key):
            return _checked(f"_t.{found['platform']}.{found['tag']}", found["tag"])
    tag = PLAIN_PREFIX + escape(key)
    # The manifest's annotation says which key it is; a hash cannot be read back.
    return tag if len(tag) <= LONGEST_TAG else HASHED_PREFIX + sha256_hex(key.encode())


def archive_name(key: str) -> ArchiveName | None:
    """Return what the key of an archive says; None for other keys."""
    found = FILE_KEY.fullmatch(key)
    if not found:
        return None
    named = ArchiveName(found["name"], found["platform"], found["id"])
    return named if found["file"] == f"{named.name}-{named.tag}.tar.zst" else None


def archive_beside(key: str) -> ArchiveName | None:
    """Return the archive that a file in its folder belongs to."""
    found = FILE_KEY.fullmatch(key)
    return ArchiveName(found["name"], found["platform"], found["id"]) if found else None


def tag_name(key: str) -> OciTag | None:
    """Return what the key of a tag says; None for other keys."""
    found = TAG_KEY.fullmatch(key)
    return OciTag(found["name"], found["platform"], found["tag"]) if found else None


def environment_of(key: str) -> str | None:
    """Return the environment that a key, or a prefix, belongs to."""
    for top in TOPS:
        if key.startswith(top) and "/" in (rest := key.removeprefix(top)):
            return rest.partition("/")[0]
    return None


def path_of(name: str) -> str:
    """Return an environment's part of the path of its repository, which has lower case only."""
    # A name that looks encoded is encoded as well: no two names have the same path.
    if REPOSITORY.fullmatch(name) and not name.startswith(ENCODED_NAME):
        return name
    # In hex, whose letters every repository's name may have.
    return ENCODED_NAME + name.encode().hex()


def environments_in(tags: Iterator[str]) -> Iterator[str]:
    """Yield the environments that the tags of REPOSITORY name."""
    for tag in tags:
        if tag.startswith(ENVIRONMENT_PREFIX):
            yield tag.removeprefix(ENVIRONMENT_PREFIX)


def escape(key: str) -> str:
    """Write a key with the letters of tags."""
    return "".join(ESCAPES.get(letter, letter) for letter in key)


def unescape(text: str) -> str | None:
    """Read what `escape` wrote; None for what it cannot have written."""
    # Pairs first, from the left: `___s` is an underscore and a slash.
    if re.search(r"_([^_sp]|$)", re.sub("__", "", text)):
        return None
    return re.sub(r"_([_sp])", lambda found: BACK[found[1]], text)


def _checked(tag: str, chosen: str) -> str:
    """Refuse what people call a tag where registry and tools call something else so."""
    kinds = (INTERNAL, IMAGE_TAG, REFERRERS_TAG)
    if chosen.startswith(RUNNABLE) or any(kind.fullmatch(chosen) for kind in kinds):
        message = f"{chosen!r} cannot be a tag in an OCI registry: envferry or other tools use it"
        raise UsageError(message, hint="choose one such as `stable`")
    if len(tag) > LONGEST_TAG:
        message = f"{chosen!r} is too long for a tag in an OCI registry"
        raise UsageError(message, hint="choose a shorter one")
    return tag
