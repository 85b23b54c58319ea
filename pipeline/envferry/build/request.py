"""What the host asks of the builder inside a container, and what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class BuildVariation(msgspec.Struct, frozen=True, kw_only=True):
    """What may differ between two builds of one lock, and must not show in what they make."""

    work_dir: str = "/envferry"
    """Where the container sees the request and the downloads."""
    user: int = 0
    umask: str = "022"
    environ: Mapping[str, str] = msgspec.field(default_factory=dict)


OTHER_VARIATION = BuildVariation(
    work_dir="/var/tmp/another/place",
    user=4321,
    umask="077",
    environ={
        "HOME": "/tmp/another/home",
        "LC_ALL": "C",
        "LOGNAME": "another",
        # Another seed gives sets another order.
        "PYTHONHASHSEED": "4321",
        "TZ": "Asia/Kolkata",
        "USER": "another",
    },
)
ANOTHER_DAY = {
    "LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1",
    # More than a year, so that every date has another year.
    "FAKETIME": "+400d",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
}
"""The environment of a program whose clock is to go wrong, where libfaketime is."""


class CondaFile(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified conda package."""

    path: str
    """Where the container sees it; empty for one that a started prefix holds."""
    name: str
    url: str
    sha256: str | None = None
    md5: str | None = None
    record: dict[str, Any] = {}
    """What the lock has of the channel's index; empty where it does not know."""
    dependencies: dict[str, str] | None = None
    """What a lock without such records says that the package needs; None where it says nothing."""


class WheelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified wheel."""

    path: str
    """Where the container sees it."""
    name: str
    version: str
    sha256: str
    small_path: str = ""
    """Where the container sees the wheel of all that is not linked from the store; empty where the
    whole is to be installed."""
    small_sha256: str = ""


class PlacedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified file that belongs to no package."""

    path: str
    """Where the container sees it."""
    target: str
    """Where it goes, relative to the prefix."""


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Make this environment."""

    prefix: str
    scratch: str
    """A directory on the file system of the prefix, for caches to hard-link from."""
    platform: str
    conda: tuple[CondaFile, ...]
    wheels: tuple[WheelFile, ...]
    is_started: bool = False
    """The prefix holds the other conda packages and wheels, linked from an earlier build."""
    changes_conda: bool = False
    """The conda half is not the one of that build: packages have come, or gone."""
    wheel_files: tuple[str, ...] = ()
    """The files of those other wheels, relative to the prefix."""
    allow_clobber: tuple[str, ...] = ()
    """Packages, of either half, whose wheel may overwrite files of conda's."""
    allow_conflict: tuple[str, ...] = ()
    """Packages whose own requirements need not hold."""
    variables: dict[str, str] = {}
    """What activating the environment sets."""
    compiles: bool = True
    """Whether modules get byte code."""
    data: tuple[PlacedFile, ...] = ()

    @property
    def added_prefix(self) -> str:
        """Where conda packages are linked that a started prefix lacks, before they come into it."""
        return f"{self.scratch}/added"


class WheelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Make a wheel of this source package."""

    name: str
    source: str
    """Where the container sees the archive or folder."""
    folder: str = ""
    """Where in it the project is."""
    home: str
    """An empty directory to work in; the wheel goes to `dist` in it."""
    python: str
    """The environment's own interpreter."""
    requires: tuple[WheelFile, ...]
    """The build requirements, all of them."""


class LinkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result of linking the conda packages."""

    faults: tuple[str, ...] = ()
    """Requirements between the packages that are not met, in words."""
    failure: str = ""
    """Why a package cannot be read or linked."""
    linked: tuple[str, ...] = ()
    """The packages, each after those that it needs."""
    warnings: tuple[str, ...] = ()
    """What the packages say of each other that a lock without dependencies cannot confirm."""


class BuildAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a build."""

    tools: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    conda_warnings: tuple[str, ...] = ()
    """Those of the warnings that are about the conda half."""
    wheel_warnings: tuple[str, ...] = ()
    """Those that are about the wheels."""
    why_not_reusable: str = "the builder did not say whether packages can go by themselves"
    """Why something that was brought cannot go by itself; empty where all of it can."""
    contested: tuple[str, ...] = ()
    """The files that several wheels have, with other contents, relative to the prefix."""
    wheel_files: dict[str, tuple[str, ...]] = {}
    """What each wheel of the request has brought, by its name, relative to the prefix."""
    conda_files: dict[str, tuple[str, ...]] = {}
    """What each conda package has brought that was linked, by its name, relative to the prefix."""
    conda_tied: str = ""
    """Why no conda package can come or go by itself; empty where each of them can."""
    data: tuple[str, ...] = ()
    """Where the files landed that belong to no package, relative to the prefix."""
    site_packages: str = ""
    """Where wheels go, relative to the prefix."""
    why_whole: str = ""
    """Why the wheels have to be installed whole; empty when that is not so."""
    why_from_scratch: str = msgspec.field(default="", name="from_nothing")
    """Why the tree cannot start from the earlier build; empty when it was made."""
    error: str | None = None
    hint: str = ""
    exit_code: int = 0
