"""The options of `build` and `release`, and how they become a build, or two that must be equal."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from envferry.archive.compression import DEFAULT_LEVEL
from envferry.base.files import exclusive_lock, remove_tree
from envferry.base.text import plural
from envferry.cli.shared.command import CommandOptions, option
from envferry.cli.shared.shared_options import OfflineOptions, becomes
from envferry.cli.shared.timed_stages import measured
from envferry.config import settings
from envferry.engines.selection import Engine
from envferry.errors import IntegrityError
from envferry.names import DIST_DIR, SPECS_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.base.secret import Secret
    from envferry.build.build_options import BuildOptions
    from envferry.build.preview import BuildPreview
    from envferry.cli.shared.console import Console
    from envferry.engines.port import Sandbox
    from envferry.models import BuiltEnv, Lock

log = logging.getLogger(__name__)

DIFFERENCES_SHOWN = 20


class BuildingOptions(OfflineOptions):
    """For commands that build."""

    sandbox: Engine = option(
        "--sandbox",
        type=click.Choice([engine.value for engine in Engine]),
        default=Engine.AUTO.value,
        callback=becomes(Engine),
        show_default=True,
        help="The container engine.",
    )
    image: str | None = option("--image", metavar="IMAGE", help="The image for docker and podman.")
    allow_clobber: tuple[str, ...] = option(
        "--allow-clobber",
        multiple=True,
        metavar="NAME",
        help="Let this package overwrite conda's files, or be overwritten; repeatable.",
    )
    allow_conflict: tuple[str, ...] = option(
        "--allow-conflict",
        multiple=True,
        metavar="NAME",
        help="Ignore the unmet requirements of this package; repeatable.",
    )
    from_scratch: bool = option(
        "--from-scratch", is_flag=True, help="Do not start from the previous build."
    )
    no_check: bool = option("--no-check", is_flag=True, help="Do not run the spec's checks.")

    def as_build_options(self) -> BuildOptions:
        """Return what the stage is to do."""
        from envferry.build.build_options import BuildOptions

        return BuildOptions(
            offline=self.offline,
            check=not self.no_check,
            from_scratch=self.from_scratch,
            allow_clobber=self.allow_clobber,
            allow_conflict=self.allow_conflict,
        )


class PackedOptions(CommandOptions):
    """For commands that write an archive."""

    output: Path = option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=DIST_DIR,
        show_default=True,
        help="The directory to write the artifact to.",
    )
    level: int = option(
        "--level",
        type=click.IntRange(1, 22),
        default=DEFAULT_LEVEL,
        show_default=True,
        help="The zstd compression level.",
    )


def preview_spec(argument: str, choice: BuildingOptions) -> BuildPreview:
    """Check the lock of a spec and say what a build would take."""
    from envferry import api
    from envferry.build.downloads import DownloadCache
    from envferry.build.preview import preview_build

    cache = DownloadCache(settings().cache_dir / "downloads")
    return preview_build(api.read_lock(argument), cache=cache, options=choice.as_build_options())


def preview_line(found: BuildPreview) -> str:
    """Return what a build would take."""
    text = f"{found.name}: would be built for {found.prefix}: {found.conda} conda + {found.pip} pip"
    text += f" packages, {plural(len(found.downloads), 'file')} to download"
    if found.sources:
        text += f", {plural(found.sources, 'source package')}"
    return text


def build_spec(
    console: Console, argument: str, choice: BuildingOptions, *, twice: bool = False
) -> BuiltEnv:
    """Check the lock of a spec and build it; with `twice`, once more, and compare."""
    from envferry import api
    from envferry.engines.selection import choose_sandbox
    from envferry.lock.conda.channel_logins import logins_of_spec

    lock, options = api.read_lock(argument), choice.as_build_options()
    sandbox = choose_sandbox(choice.sandbox, choice.image)
    logins = logins_of_spec(argument, SPECS_DIR)
    built = build_lock(console, lock, sandbox, options, channels=logins)
    if twice:
        build_again(console, built, lock, sandbox, options)
    return built


def build_lock(
    console: Console,
    lock: Lock,
    sandbox: Sandbox,
    options: BuildOptions,
    *,
    channels: Mapping[str, Secret],
) -> BuiltEnv:
    """Build a lock; `channels` as `channel_logins` returns them."""
    from envferry.build.downloads import DownloadCache
    from envferry.build.stage import build_env

    cache = DownloadCache(settings().cache_dir / "downloads", channels=channels)
    with measured(console.progress, lock.name) as progress:
        return build_env(lock, sandbox=sandbox, cache=cache, options=options, progress=progress)


def build_again(
    console: Console, built: BuiltEnv, lock: Lock, sandbox: Sandbox, options: BuildOptions
) -> None:
    """Build a second time where everything that may differ does; raise when a byte does.

    Another folder, user, umask, date, hash seed, locale and time zone; wheels of sources are made
    again, too. Raises IntegrityError that names the files and how they differ.
    """
    from envferry.build.request import ANOTHER_DAY, OTHER_VARIATION
    from envferry.build.tree_comparison import compare_trees

    around = OTHER_VARIATION
    if sandbox.can_fake_time:
        around = replace(around, environ={**around.environ, **ANOTHER_DAY})
    else:
        log.warning(
            "libfaketime is not installed: the second build runs at another time of the same date"
        )
    with folder_for_comparing(options.builds_dir / f"{built.name}-{built.platform}.again") as home:
        # Offline, as the first build has left every file in the cache.
        usual = replace(options, builds_dir=home, offline=True, check=False)
        again = replace(usual, variation=around, anew=True)
        second = build_lock(console, lock, sandbox, again, channels={})
        with console.progress.task("compare the two trees"):
            differences = [str(item) for item in compare_trees(Path(built.tree), Path(second.tree))]
        # Trees first: they tell which files differ, archives only that some do.
        refuse(differences, built.name)
        with console.progress.task("compare the two archives"):
            refuse(compare_archives(built, second, home), built.name)


@contextmanager
def folder_for_comparing(home: Path) -> Iterator[Path]:
    """Yield a private empty folder that `cache prune` knows; then remove it."""
    with exclusive_lock(home.with_name(f"{home.name}.lock"), "the second build"):
        if home.exists():
            remove_tree(home)
        home.mkdir()
        try:
            yield home
        finally:
            remove_tree(home)


def compare_archives(one: BuiltEnv, other: BuiltEnv, home: Path) -> list[str]:
    """Pack two builds and return the files of the artifacts that differ."""
    from envferry.build.tree_comparison import compare_trees
    from envferry.pack.pack_options import PackOptions
    from envferry.pack.stage import pack_env
    from envferry.progress import Silent

    folders = []
    for number, built in enumerate((one, other)):
        folder = home / f"packed-{number}"
        options = PackOptions(output_dir=folder)
        pack_env(built, options=options, progress=Silent())
        folders.append(folder)
    differences = [str(item) for item in compare_trees(*folders)]
    for folder in folders:
        shutil.rmtree(folder)
    return differences


def refuse(differences: Sequence[str], name: str) -> None:
    """Raise IntegrityError for what two builds do not agree about."""
    if differences:
        more = len(differences) - DIFFERENCES_SHOWN
        shown = [*differences[:DIFFERENCES_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise IntegrityError(
            "\n  ".join([f"two builds of {name} differ:", *shown]),
            hint="a package's own script or build causes this: leave it out, or report it there",
        )
