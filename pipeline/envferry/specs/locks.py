"""Read and write locks: conda-lock's own file format, version 1.

The format is that of `conda_lock/lockfile/v1/models.py` of conda-lock 4.0.3. What it has no place
for is in `metadata: custom_metadata:`, a mapping of strings; our keys start with `envferry_`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from blake3 import blake3

from envferry.base.files import write_bytes
from envferry.base.json import convert, decode_json
from envferry.errors import NotFound, SpecError
from envferry.models import (
    BuildRequirements,
    FileProvenance,
    Lock,
    LockedPackage,
    Replacement,
    SpecOptions,
)
from envferry.names import build_string
from envferry.redaction import without_credentials, without_login
from envferry.specs.syntax.yaml_text import parse_yaml, plain, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT_VERSION = "1"
CUSTOM_SCHEMA = "1"
GIT_COMMIT = re.compile(r"\Agit\+[^#]*@([0-9a-f]{40})(?:#|\Z)")
MAX_LOCK_BYTES = 64 << 20

RECORD_KEY = "envferry_record"
"""With platform and name behind it: what a channel's index says of a conda package."""

HEADER = """\
# Made by `envferry lock {name}` in conda-lock's format; change the spec and lock again instead.
"""

# libyaml's is several times faster; PyYAML may be built without it.
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class LockContents(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock is made of, before it is a file."""

    name: str
    source: str
    """The file name of the spec, beside which the lock lies."""
    channels: tuple[str, ...]
    packages: tuple[LockedPackage, ...]
    content_hashes: dict[str, str]
    spec_digest: str
    options: SpecOptions
    tools: dict[str, str]
    replacements: tuple[Replacement, ...] = ()
    build_requirements: tuple[BuildRequirements, ...] = ()
    indexes: tuple[str, ...] = ()
    """The package indexes that the machine's settings named."""
    provenance: Mapping[str, Mapping[str, FileProvenance]] = msgspec.field(default_factory=dict)
    """By platform and name."""


class _Hash(msgspec.Struct):
    md5: str | None = None
    sha256: str | None = None


class _Package(msgspec.Struct):
    name: str
    version: str
    manager: Literal["conda", "pip"]
    platform: str
    url: str
    hash: _Hash
    dependencies: dict[str, str] = {}


class _Channel(msgspec.Struct):
    url: str


class _Metadata(msgspec.Struct):
    content_hash: dict[str, str]
    channels: list[_Channel] = []
    custom_metadata: dict[str, str] = {}


class _File(msgspec.Struct):
    version: str
    metadata: _Metadata
    package: list[_Package]


def read_lock(path: Path) -> Lock:
    """Read a lock, of ours or one that conda-lock wrote.

    Raises NotFound when it does not exist, SpecError when it is damaged.
    """
    name = path.name.removesuffix(".yml").removesuffix(".conda-lock")
    hint = f"run `envferry lock {name}`"
    try:
        text = read_text(path, MAX_LOCK_BYTES)
    except FileNotFoundError as error:
        msg = f"the lock {path} does not exist"
        raise NotFound(msg, hint=hint) from error
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise SpecError(msg, hint=hint) from error
    return parse_lock(text, path)


# Equal text and path give one shared value: callers must not change the mappings in it.
@lru_cache(maxsize=4)
def parse_lock(text: str, path: Path) -> Lock:
    """Parse the text of a lock that is, or was, at `path`; raise SpecError when it is damaged.

    One that was just parsed is not parsed again: half a second for a large one.
    """
    name = path.name.removesuffix(".yml").removesuffix(".conda-lock")
    hint = f"run `envferry lock {name}`"
    try:
        content = parse_yaml(text, path)
        # Before the conversion, in which another format would look like a damaged file.
        if isinstance(content, dict) and content.get("version", FORMAT_VERSION) != FORMAT_VERSION:
            message = (
                f"{path} has the lock format {content['version']}, this envferry reads "
                f"{FORMAT_VERSION}"
            )
            raise SpecError(message, hint=hint)
        file = convert(plain(content), _File)
        return _to_lock(path, name, file, blake3(text.encode()).hexdigest())
    except (msgspec.MsgspecError, SpecError) as error:
        message = str(error)
        # Faults of the YAML parser name the file, and the line, already.
        if not message.startswith(str(path)):
            message = f"{path} is damaged: {message}"
        raise SpecError(message, hint=hint) from error


def write_lock(path: Path, contents: LockContents) -> Lock:
    """Write a lock, whole or not at all, and return it as read back.

    Equal contents give equal bytes; a file that holds them already is not touched. Raises
    SpecError, and leaves the file that is there, for contents that could not be read back.
    """
    data = render_lock(contents)
    lock = parse_lock(data.decode(), path)
    # Without a change the file keeps its time, which make and similar tools go by.
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return lock


def render_lock(contents: LockContents) -> bytes:
    """Return the bytes of a lock."""
    packages = sorted(contents.packages, key=lambda item: (item.platform, item.manager, item.name))
    document = {
        # A number in the file, as conda-lock writes it; our parser reads every scalar as a string.
        "version": int(FORMAT_VERSION),
        "metadata": {
            "content_hash": dict(sorted(contents.content_hashes.items())),
            "channels": [
                {"url": without_credentials(channel), "used_env_vars": []}
                for channel in contents.channels
            ],
            "platforms": sorted(contents.content_hashes),
            "sources": [contents.source],
            "custom_metadata": _custom_metadata(contents),
        },
        "package": [_entry(package) for package in packages],
    }
    # Wide lines: a URL folded over two lines cannot be searched for.
    text = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return (HEADER.format(name=contents.name) + text).encode()


def _custom_metadata(contents: LockContents) -> dict[str, str]:
    """Return what conda-lock has no place for, as the strings that it allows."""
    metadata = {
        "envferry_schema": CUSTOM_SCHEMA,
        "envferry_name": contents.name,
        "envferry_spec_digest": contents.spec_digest,
        "envferry_options": _json(_options(contents.options)),
        "envferry_tools": _json(contents.tools),
    }
    for package in sorted(contents.packages, key=lambda item: (item.platform, item.name)):
        if package.record:
            metadata[f"{RECORD_KEY} {package.platform} {package.name}"] = _json(package.record)
    if contents.replacements:
        metadata["envferry_replacements"] = _json(contents.replacements)
    if contents.indexes:
        metadata["envferry_indexes"] = _json([without_login(url) for url in contents.indexes])
    if provenance := {name: found for name, found in contents.provenance.items() if found}:
        metadata["envferry_publishers"] = _json(provenance)
    if folders := {
        package.url: package.sha256 for package in contents.packages if package.kind == "directory"
    }:
        metadata["envferry_folder_digests"] = _json(folders)
    if contents.build_requirements:
        ordered = sorted(contents.build_requirements, key=lambda item: (item.platform, item.name))
        metadata["envferry_build_requirements"] = _json(ordered)
    return metadata


def _options(options: SpecOptions) -> dict[str, Any]:
    """Return what is written of a spec's options: some only where there is something."""
    written: dict[str, Any] = msgspec.to_builtins(options)
    # Only where set: the locks of all other specs keep their bytes.
    for key in ("variables", "data", "readme"):
        if not written[key]:
            del written[key]
    return written


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _entry(package: LockedPackage) -> dict[str, Any]:
    """Return the entry of a package; only what is downloaded as one file has a hash (CEP 37)."""
    is_file = package.kind not in ("git", "directory")
    hashes = {"md5": package.md5, "sha256": package.sha256} if is_file else {}
    # Only channels have tokens in paths: in another URL, `/t/NAME/` is a part of the path.
    without_secrets = without_credentials if package.manager == "conda" else without_login
    return {
        "name": package.name,
        "version": package.version,
        "manager": package.manager,
        "platform": package.platform,
        "dependencies": dict(sorted(package.dependencies.items())),
        "url": without_secrets(package.url),
        "hash": {kind: digest for kind, digest in hashes.items() if digest},
        "category": "main",
        "optional": False,
    }


def _to_lock(path: Path, name: str, file: _File, digest: str) -> Lock:
    custom = file.metadata.custom_metadata
    schema = custom.get("envferry_schema", CUSTOM_SCHEMA)
    if schema != CUSTOM_SCHEMA:
        message = f"{path} has envferry's schema {schema}, this envferry reads {CUSTOM_SCHEMA}"
        raise SpecError(message, hint="install a newer envferry")
    folders = decode_json(custom.get("envferry_folder_digests", "{}"), dict[str, str])
    return Lock(
        path=path,
        name=custom.get("envferry_name", name),
        packages=tuple(_package(item, path, custom, folders) for item in file.package),
        content_hashes=dict(file.metadata.content_hash),
        spec_digest=custom.get("envferry_spec_digest", ""),
        options=decode_json(custom.get("envferry_options", "{}"), SpecOptions),
        digest=digest,
        replacements=decode_json(
            custom.get("envferry_replacements", "[]"), tuple[Replacement, ...]
        ),
        build_requirements=decode_json(
            custom.get("envferry_build_requirements", "[]"), tuple[BuildRequirements, ...]
        ),
        indexes=decode_json(custom.get("envferry_indexes", "[]"), tuple[str, ...]),
        provenance=decode_json(
            custom.get("envferry_publishers", "{}"), dict[str, dict[str, FileProvenance]]
        ),
        channels=tuple(channel.url for channel in file.metadata.channels),
        tools=decode_json(custom.get("envferry_tools", "{}"), dict[str, str]),
    )


def _package(
    item: _Package, path: Path, custom: dict[str, str], folders: Mapping[str, str]
) -> LockedPackage:
    """Return the package of an entry; `folders` has the digests of source folders by URL."""
    # Whoever has a lock splits its URLs without a guard: what has no form is refused here.
    try:
        urlsplit(item.url)
    except ValueError as error:
        message = f"{path}: the URL of {item.name} is not valid: {item.url!r} ({error})"
        raise SpecError(message) from error
    commit = GIT_COMMIT.search(item.url) if item.manager == "pip" else None
    # conda-lock, and envferry 0.1, write the commit, or a folder's digest, as the SHA-256.
    sha256 = item.hash.sha256 or (commit[1] if commit else folders.get(item.url))
    if not (sha256 or item.hash.md5):
        msg = f"{path} has no hash for {item.name} {item.version}"
        raise SpecError(msg)
    package = LockedPackage(
        manager=item.manager,
        name=item.name,
        version=item.version,
        platform=item.platform,
        url=item.url,
        sha256=sha256,
        md5=item.hash.md5,
        dependencies=dict(item.dependencies),
    )
    if item.manager == "pip":
        return package
    return msgspec.structs.replace(
        package,
        build=build_string(package.file_name),
        record=decode_json(
            custom.get(f"{RECORD_KEY} {item.platform} {item.name}", "{}"), dict[str, Any]
        ),
    )
