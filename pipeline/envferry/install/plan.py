"""Plan an install: every error is found before a byte is written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from envferry.archive.identity import check_manifest
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive
from envferry.errors import PipelineError, TargetOccupied, UsageError
from envferry.install.host.host_check import Needs, check_host, cuda_runtime
from envferry.install.programs.integrations import Integrations, wanted_integrations
from envferry.install.records.env_home import HOME, EnvHome
from envferry.install.records.events import UNKNOWN_ACTOR, Actor
from envferry.install.records.installation import Installation, Origin
from envferry.install.records.installed import find_reusable, open_installed
from envferry.install.tree.link_mode import Link
from envferry.install.tree.reusable_trees import ReusableTrees
from envferry.install.tree.tree_check import faults_among, top_faults
from envferry.models import Checks, Manifest, SystemRequirements
from envferry.names import ENVS_DIR, check_env_prefix

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.archive.reader import Source

log = logging.getLogger(__name__)

BASE_NAMES = ("base", "root")
BLOCK_BYTES = 4096
"""What a file's last block wastes, at most, on the usual file systems."""


class InstallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to install."""

    envs_dir: Path = ENVS_DIR
    name: str | None = None
    """Another name than the environment was built with."""
    prefix: str | None = None
    """The path at which it is used; None: that of the current installation, else where it really
    is."""
    replace: bool = False
    """Move aside what is already there and is not ours."""
    check: bool = True
    """Run the environment's checks afterwards, and go back when they fail."""
    link: Link = Link.AUTO
    """How unchanged files come from what is installed already."""
    force: tuple[str, ...] = ()
    """Findings of the host check to live with."""
    kernel_dir: Path | None = None
    """Where to put a Jupyter kernel; None leaves what there is, `none` takes it away."""
    modulefile_dir: Path | None = None
    """Where to put a modulefile, in the same way."""
    origin: Origin | None = None
    """Who installs it, from where and when: for the record."""
    threads: int = 0
    """0: as many as there are cores, and a few at least."""
    verify_shared: bool = False
    """Read every file before it is shared, also one that was not written to since it was known."""

    @property
    def actor(self) -> Actor:
        """Who installs it."""
        return Actor(time=self.origin.time, user=self.origin.user) if self.origin else UNKNOWN_ACTOR


class InstallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An install that passed all checks."""

    archive: Archive
    home: EnvHome
    installation: Installation
    """Its record, but for the files that will be edited."""
    relocation: Relocation
    reusable: ReusableTrees
    options: InstallOptions
    integrations: Integrations
    is_whole: bool
    """Whether it is already installed completely."""

    @property
    def journal_subject(self) -> str:
        """What the journal of this install starts with: another archive or prefix is another."""
        digest = blake3(self.archive.index_frame).hexdigest()
        return f"envferry {digest} {self.installation.prefix}"


def prepare_install(
    source: Source, manifest: Manifest | None, options: InstallOptions
) -> InstallPlan:
    """Read the index and check archive, target and host; write nothing."""
    archive = Archive(source)
    if manifest is not None:
        check_manifest(archive, manifest)
    home = EnvHome.of(options.envs_dir, options.name or archive.index.name)
    installation = plan_installation(archive.index, manifest, home, options)
    check_target(home, installation, replace=options.replace)
    relocation = Relocation(archive.index.prefix, installation.prefix, archive.index)
    relocation.check(archive.index)
    is_whole = is_installed(home, installation)
    reusable = ReusableTrees()
    # This reads the indexes of all installations: only where something is missing.
    if not is_whole:
        reusable = find_reusable(home, installation, read_all=options.verify_shared)
    plan = InstallPlan(
        archive=archive,
        home=home,
        installation=installation,
        relocation=relocation,
        reusable=reusable,
        options=options,
        integrations=wanted_integrations(home, options.kernel_dir, options.modulefile_dir),
        is_whole=is_whole,
    )
    check_host(find_needs(plan, manifest), options.force)
    return plan


def find_needs(plan: InstallPlan, manifest: Manifest | None) -> Needs:
    """Return what the host must offer; shared files and those of an interrupted install are free.

    A complete installation needs only a host that can run it.
    """
    index = plan.archive.index
    numbers = set(range(len(index.files)))
    if plan.is_whole:
        numbers = set()
    # Links and shared blocks take no space, copies do.
    elif plan.options.link is not Link.COPY:
        numbers -= plan.reusable.candidates(index, plan.relocation).keys()
    partial = plan.home.partial(index.id)
    # An interrupted install has taken this much of the space already.
    written = sum(map(disk_bytes, partial.rglob("*")))
    needed = sum(index.files[number].size + BLOCK_BYTES for number in numbers)
    return Needs(
        platform=index.platform,
        system=manifest.requirements if manifest else SystemRequirements(),
        cuda_runtime=cuda_runtime(index.packages),
        cuda_code=manifest.gpu_code if manifest else {},
        directory=plan.home.directory,
        free_bytes=max(needed - written, 0),
        inodes=len(numbers) if not written else 0,
        has_links=any(entry.type == "symlink" for entry in index.files),
    )


def disk_bytes(path: Path) -> int:
    """Return the space that a file takes; 0 when it was just removed."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def plan_installation(
    index: Index, manifest: Manifest | None, home: EnvHome, options: InstallOptions
) -> Installation:
    """Return the record of the installation that is to be made."""
    return Installation(
        name=home.name,
        id=index.id,
        platform=index.platform,
        prefix=wanted_prefix(home, options.prefix),
        built_prefix=index.prefix,
        archive_xxh128=manifest.archive.xxh128 if manifest else "",
        files=len(index.files),
        size=sum(entry.size for entry in index.files),
        checks=manifest.checks if manifest else Checks(),
        version=manifest.version if manifest else None,
        origin=options.origin,
        requirements=manifest.requirements if manifest else SystemRequirements(),
        cuda_code=manifest.gpu_code if manifest else {},
    )


def wanted_prefix(home: EnvHome, told: str | None) -> str:
    """Return the path that an installation is for.

    An update is for the path of the installation before: what is in a container's volume stays
    for the path inside of it, also when only the first install said so.
    """
    current = home.current_id()
    before = recorded(home, current) if current and not told else None
    return told or (before.prefix if before else str(home.link))


def check_target(home: EnvHome, installation: Installation, *, replace: bool) -> None:
    """Raise unless `envs/NAME` is free, ours, or may be replaced."""
    prefix = installation.prefix
    if home.name in BASE_NAMES:
        message = f"{home.name} is conda's own environment, which is never a target"
        raise UsageError(message, hint="install it under another --name")
    check_env_prefix(prefix, "choose another --envs-dir, or another path with --prefix")
    # Resolved, because `envs/NAME` is a link into that folder.
    if HOME in home.envs_dir.resolve().parts:
        message = f"{home.envs_dir} is inside an installed environment"
        raise TargetOccupied(message, hint="name another place with --envs-dir")
    if home.is_taken and not replace:
        what = "a link elsewhere" if home.link.is_symlink() else "not ours"
        msg = f"{home.link} exists and is {what}: left untouched"
        raise TargetOccupied(
            msg,
            hint="use another --name, or --replace to move it aside",
        )
    # An id is one folder, with one prefix edited into its files: with another prefix, these would
    # change below the programs that run from it.
    there = recorded(home, installation.id)
    if home.current_id() == installation.id and there and there.prefix != installation.prefix:
        msg = f"{home.link} is the same artifact, installed for another prefix"
        raise TargetOccupied(
            msg,
            hint="install it under another --name",
        )


def is_installed(home: EnvHome, wanted: Installation) -> bool:
    """Whether the same artifact is installed for the same prefix, and still there.

    Sizes, modes and times of all files are looked at, as they are for `verify --quick`.
    """
    there = recorded(home, wanted.id)
    if there is None or there.prefix != wanted.prefix:
        return False
    try:
        tree = open_installed(home, wanted.id)
    except PipelineError as error:
        log.info("installing %s@%s again: %s", home.name, wanted.id, error)
        return False
    faults = [*top_faults(tree), *faults_among(tree, range(len(tree.index.files)), quick=True)]
    for fault in faults[:1]:
        log.info("%s@%s is damaged: %s: %s", home.name, wanted.id, fault.path, fault.reason)
    return not faults


def recorded(home: EnvHome, id_: str) -> Installation | None:
    """Return a record that is there and can be read."""
    try:
        return home.installation(id_)
    # FileNotFoundError: another command has removed it between the look and the read.
    except (PipelineError, FileNotFoundError):
        return None
