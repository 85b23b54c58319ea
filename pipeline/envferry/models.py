"""The values that join the stages: frozen, typed, without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from envferry.errors import SpecError
from envferry.names import current_platform

if TYPE_CHECKING:
    from pathlib import Path

ChannelPriority = Literal["strict", "flexible", "disabled"]
"""As conda has it: `strict` looks no further than the first channel that has a name, `flexible`
only where nothing else solves, `disabled` takes the highest version of all."""


class Checks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must work in a finished environment."""

    imports: tuple[str, ...] = ()
    """Modules that the environment's python must import."""
    commands: tuple[str, ...] = ()
    """Shell command lines that must exit with 0, run with the environment's `bin` first on PATH."""

    def argvs(self, prefix: str) -> list[tuple[str, ...]]:
        """Return the command line of each check, in an environment at `prefix`.

        Imports run with `-I`: neither the working directory, nor user site-packages, nor variables
        such as PYTHONPATH add to what the environment itself has.
        """
        # -B: a check must not write byte code into the tree that it checks.
        python = (f"{prefix}/bin/python", "-I", "-B", "-c")
        imports = [(*python, f"import {name}") for name in self.imports]
        # The system's shell: an environment need not have one.
        return [*imports, *(("/bin/sh", "-c", line) for line in self.commands)]


# Unknown keys are refused: a misspelt one would be a requirement that no host checks.
class SystemRequirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the training host must offer; also the virtual packages to solve for."""

    glibc: str | None = None
    cuda: str | None = None
    archspec: str | None = None
    cuda_arch: str | msgspec.UnsetType = msgspec.UNSET
    """The lowest compute capability of the GPUs (CEP 46); not written where it is not given."""


class DataFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that comes with an environment and is not part of a package."""

    url: str
    """`https://…`, `file://…`, or a path: relative ones start at the folder of the spec."""
    sha256: str
    path: str
    """Where it is put, relative to the prefix."""
    variables: dict[str, str] = {}
    """Variables that activation sets, to these paths relative to the prefix: `.` is the prefix."""


class SpecOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `envferry:` key of a spec."""

    version: str | None = None
    platforms: tuple[str, ...] = ()
    system: SystemRequirements = SystemRequirements()
    checks: Checks = Checks()
    exclude: tuple[str, ...] = ()
    """Globs of files, relative to the prefix, that are not carried."""
    frozen: bool = False
    """Keep conda and pip from changing the installed environment in place."""
    channels: dict[str, str] = {}
    """Where a channel is that goes by a name of ours: a URL or a path."""
    variables: dict[str, str] = {}
    """What activation sets: the spec's own `variables:` (CEP 24), not under `envferry:`."""
    data: tuple[DataFile, ...] = ()
    """Files that come along: encodings, corpora, configurations of models."""
    channel_priority: ChannelPriority | None = None
    """Whether a package may come from a channel behind the first that has its name."""
    readme: str = ""
    """What the environment is for, in Markdown; pages show it."""


CHECKS = "checks"
"""Among a manifest's tools when the build did not run the spec's checks."""


def left_out(options: SpecOptions) -> dict[str, str]:
    """Return what a manifest says, among its tools, of options that change what is packed."""
    said = {"exclude": " ".join(options.exclude), "frozen": "yes" if options.frozen else ""}
    return {name: text for name, text in said.items() if text}


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """`specs/NAME.yml`: a conda environment file plus the `envferry:` key."""

    path: Path
    name: str
    channels: tuple[str, ...]
    conda: tuple[str, ...]
    """Match specs of the conda half, as written."""
    pip: tuple[str, ...]
    """Requirement lines of the pip half, as written, options such as `--extra-index-url` too."""
    options: SpecOptions
    digest: str
    """BLAKE3 of what decides the lock (requirements, channels, platforms, system), in hex."""

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms to lock for: those of the spec, else this machine's."""
        return self.options.platforms or (current_platform(),)

    @property
    def lock_path(self) -> Path:
        """Where this spec's lock lies: `NAME.conda-lock.yml` beside it."""
        return self.path.with_name(f"{self.path.stem}.conda-lock.yml")


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """A conda pin that the channel could not satisfy, and what was asked for instead."""

    asked: str
    used: str
    """Empty when the package was left out."""
    platform: str


class LockedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a lock names."""

    manager: Literal["conda", "pip"]
    name: str
    version: str
    platform: str
    url: str
    """`file://`, `http://` or `https://`, without credentials."""
    sha256: str | None = None
    md5: str | None = None
    build: str | None = None
    """The conda build string; None for pip packages."""
    dependencies: dict[str, str] = {}
    record: dict[str, Any] = {}
    """What the channel's index says of a conda package beyond that: indexes are patched, packages
    are not. Empty where it is unknown."""

    @property
    def kind(self) -> Literal["conda", "wheel", "sdist", "git", "directory"]:
        """What the URL leads to; of the last three the build makes a wheel.

        `sha256` is that of the file; for `git` the commit, for `directory` the digest by
        `build/source_tree.py`.
        """
        if self.manager == "conda":
            return "conda"
        if self.url.startswith("git+"):
            return "git"
        if self.url.startswith("file:") and self.url.endswith("/"):
            return "directory"
        return "wheel" if self.file_name.endswith(".whl") else "sdist"

    @property
    def file_name(self) -> str:
        """The last part of the URL, with its percent signs decoded."""
        from urllib.parse import unquote, urlsplit

        # Split before it is decoded: `%2F` is a part of the name and no separator.
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])


class Publisher(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who published a file of a package index, as its verified attestation says (PEP 740)."""

    kind: str
    """`GitHub`, `GitLab`, `Google`, …"""
    repository: str = ""
    workflow: str = ""
    environment: str = ""
    identity: str = ""
    """What kinds without a repository name: an account, or a project's id."""

    def __str__(self) -> str:
        details = [self.workflow, f"environment {self.environment}" if self.environment else ""]
        more = ", ".join(filter(None, details))
        who = self.repository or self.identity
        return f"{self.kind} {who} ({more})" if more else f"{self.kind} {who}"


class FileProvenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found out about who published the locked file of a package."""

    publishers: tuple[Publisher, ...] = ()
    """None when its index has no provenance of it."""
    before: tuple[Publisher, ...] = ()
    """The last known publishers of earlier locks, where they are not those of this file."""
    unasked: bool = False
    """Whether its index could not be asked: then `publishers` says nothing."""


class BuildRequirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a source package of the pip half is made into a wheel with."""

    name: str
    """The source package."""
    platform: str
    wheels: tuple[LockedPackage, ...]


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """`specs/NAME.conda-lock.yml`, read."""

    path: Path
    name: str
    packages: tuple[LockedPackage, ...]
    content_hashes: dict[str, str]
    """conda-lock's own content hash for each platform."""
    spec_digest: str
    """The `Spec.digest` that this lock was made from."""
    options: SpecOptions
    digest: str
    """BLAKE3 of the file, in hex."""
    replacements: tuple[Replacement, ...] = ()
    """The conda pins that were relaxed."""
    build_requirements: tuple[BuildRequirements, ...] = ()
    """One for each package that is locked as source, on each platform."""
    indexes: tuple[str, ...] = ()
    """The package indexes from the settings of the machine that locked."""
    provenance: dict[str, dict[str, FileProvenance]] = msgspec.field(default_factory=dict)
    """By platform and name: the pip packages whose index was asked who published them."""
    channels: tuple[str, ...] = ()
    """What it was solved with, without logins."""
    tools: dict[str, str] = msgspec.field(default_factory=dict)
    """Names and versions of the programs that decided what it says."""

    def for_platform(self, platform: str) -> tuple[LockedPackage, ...]:
        """Return the packages for `platform`; raise SpecError when it is not locked."""
        packages = tuple(item for item in self.packages if item.platform == platform)
        # A platform may be locked and have no packages.
        if not packages and platform not in self.content_hashes:
            locked = ", ".join(sorted(self.content_hashes)) or "none"
            message = f"{self.path} is not locked for {platform} (locked: {locked})"
            hint = f"run `envferry lock {self.name} --platform {platform}`"
            raise SpecError(message, hint=hint)
        return packages

    def build_requirements_for(self, platform: str) -> dict[str, tuple[LockedPackage, ...]]:
        """Return what each source package is built with, by name."""
        ours = (item for item in self.build_requirements if item.platform == platform)
        return {item.name: item.wheels for item in ours}


class BuiltEnv(msgspec.Struct, frozen=True, kw_only=True):
    """A finished environment on the build machine, recorded in `built.json` beside its tree."""

    name: str
    platform: str
    prefix: str
    """The path that the environment believes it lives at."""
    tree: str
    """Where its files are on this machine now."""
    lock_path: str
    lock_digest: str
    content_hash: str
    options: SpecOptions
    tools: dict[str, str]
    """Names and versions of the programs that made it."""
    image: str | None = None
    """The digest of the container image it was built in, when there is one."""
    schema: int = 1


class ArchiveFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Size and digests of an archive file; all sizes in bytes, all digests in hex."""

    file: str
    size: int
    xxh128: str
    blake3: str
    tar_size: int
    index_offset: int
    """Where the index's skippable frame starts."""
    index_size: int
    """The length of that whole frame."""
    index_blake3: str
    """BLAKE3 of that whole frame."""
    tar_sha256: str = ""
    """SHA-256 of the tar stream, the diff id of an image's layer; older manifests have none."""


class PackageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One package of an environment, as the manifest lists it."""

    name: str
    version: str
    kind: Literal["conda", "pypi"]
    build: str | None = None
    license: str | None = None
    size: int = 0
    """The bytes of its files, uncompressed."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`*.manifest.json`: describes an archive and binds its digests, lock and packages.

    Equal inputs give an equal manifest: no time, user or host is in it.
    """

    name: str
    platform: str
    id: str
    prefix: str
    archive: ArchiveFacts
    lock_digest: str
    content_hash: str
    packages: tuple[PackageFacts, ...]
    requirements: SystemRequirements = SystemRequirements()
    checks: Checks = Checks()
    tools: dict[str, str] = {}
    version: str | None = None
    image: str | None = None
    keeps_prefix: tuple[str, ...] = ()
    """The files that hold the prefix, and hold it wherever the environment is installed."""
    # UNSET and not None: manifests without it keep the bytes, and so the digests, that they had.
    cuda_code: dict[str, tuple[str, ...]] | msgspec.UnsetType = msgspec.UNSET
    """What the packages hold code for, by name: `sm_90`, `compute_90`; not written where none."""
    readme: str | msgspec.UnsetType = msgspec.UNSET
    """What the environment is for, in Markdown, as its spec says; not written where nothing."""
    schema: int = 1

    @property
    def stem(self) -> str:
        """What the artifact's file names start with: `NAME-PLATFORM-ID`."""
        return f"{self.name}-{self.platform}-{self.id}"

    @property
    def gpu_code(self) -> dict[str, tuple[str, ...]]:
        """`cuda_code`; empty where the manifest does not say, as older ones do not."""
        return self.cuda_code if isinstance(self.cuda_code, dict) else {}


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """An archive, its manifest, checksum and lock, side by side in one directory."""

    directory: Path
    manifest: Manifest

    @property
    def archive_path(self) -> Path:
        """`NAME-PLATFORM-ID.tar.zst`."""
        return self.directory / self.manifest.archive.file

    @property
    def checksum_path(self) -> Path:
        """`NAME-PLATFORM-ID.tar.zst.xxh128`, which `xxhsum -c` reads."""
        return self.directory / f"{self.manifest.archive.file}.xxh128"

    @property
    def manifest_path(self) -> Path:
        """`NAME-PLATFORM-ID.manifest.json`."""
        return self.directory / f"{self.manifest.stem}.manifest.json"

    @property
    def lock_path(self) -> Path:
        """`NAME-PLATFORM-ID.conda-lock.yml`."""
        return self.directory / f"{self.manifest.stem}.conda-lock.yml"


class TagRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag holds: the id it points to and how often it has moved."""

    id: str
    counter: int
    # UNSET is not written: the signed bytes of records without an end stay what they were.
    time: str | msgspec.UnsetType = msgspec.UNSET
    """When it was signed, in RFC 3339; records that do not expire have none."""
    expires: str | msgspec.UnsetType = msgspec.UNSET
    """When hosts stop accepting it as current."""
    schema: int = 1
