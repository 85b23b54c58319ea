"""The options of `build` and `release`, and how they become a build, or two that must be equal."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envferry.base.files import exclusive_lock, remove_tree
from envferry.config import settings
from envferry.engines.selection import Engine
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.build.options import BuildOptions
    from envferry.cli.console import Console
    from envferry.engines.port import Sandbox
    from envferry.models import BuiltEnv, Lock

log = logging.getLogger(__name__)

SPECS_DIR = Path("specs")
DIFFERENCES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildChoice:
    """How to build, as the command line says it."""

    engine: Engine
    image: str | None
    offline: bool
    check: bool
    allow_clobber: tuple[str, ...]
    allow_conflict: tuple[str, ...]

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> BuildChoice:
        """Read the values of `build_options`."""
        return cls(
            engine=Engine(choices["sandbox"]),
            image=choices["image"],
            offline=choices["offline"],
            check=not choices["no_check"],
            allow_clobber=choices["allow_clobber"],
            allow_conflict=choices["allow_conflict"],
        )


def build_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add the options of `build`."""
    for option in (
        click.option("--no-check", is_flag=True, help="Do not run the spec's checks."),
        click.option(
            "--allow-conflict", multiple=True, metavar="NAME",
            help="The requirements of this package need not hold; repeatable.",
        ),
        click.option(
            "--allow-clobber", multiple=True, metavar="NAME",
            help="This package may overwrite conda's files (or be overwritten); repeatable.",
        ),
        click.option("--offline", is_flag=True, help="Take every download from the cache."),
        click.option("--image", help="The image for docker and podman.", metavar="IMAGE"),
        click.option(
            "--sandbox", type=click.Choice([engine.value for engine in Engine]),
            default=Engine.AUTO.value, show_default=True, help="The container engine.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def build_spec(
    console: Console, argument: str, choice: BuildChoice, *, twice: bool = False
) -> BuiltEnv:
    """Check the lock of a spec and build it; with `twice`, once more, and compare."""
    from envferry.build.options import BuildOptions
    from envferry.engines.selection import choose_sandbox
    from envferry.lock.existing_lock import check_lock
    from envferry.specs.reading import find_spec, read_spec

    lock = check_lock(read_spec(find_spec(argument, SPECS_DIR)))
    sandbox = choose_sandbox(choice.engine, choice.image)
    options = BuildOptions(
        builds_dir=settings().cache_dir / "builds",
        offline=choice.offline,
        check=choice.check,
        allow_clobber=choice.allow_clobber,
        allow_conflict=choice.allow_conflict,
    )
    built = build_lock(console, lock, sandbox, options)
    if twice:
        build_again(console, built, lock, sandbox, options)
    return built


def build_lock(console: Console, lock: Lock, sandbox: Sandbox, options: BuildOptions) -> BuiltEnv:
    """Build a lock."""
    from envferry.build.downloads import DownloadCache
    from envferry.build.stage import build_env

    cache = DownloadCache(settings().cache_dir / "downloads")
    return build_env(lock, sandbox=sandbox, cache=cache, options=options, progress=console.progress)


def build_again(
    console: Console, built: BuiltEnv, lock: Lock, sandbox: Sandbox, options: BuildOptions
) -> None:
    """Build a second time where everything that may differ does; raise when a byte does.

    Another folder, user, umask, date, hash seed, locale and time zone; wheels of sources are made
    again, too. Raises IntegrityError that names the files and how they differ.
    """
    from envferry.build.request import ANOTHER_DAY, OTHER_CIRCUMSTANCES
    from envferry.build.tree_comparison import compare_trees

    around = OTHER_CIRCUMSTANCES
    if sandbox.can_fake_time:
        around = replace(around, environ={**around.environ, **ANOTHER_DAY})
    else:
        log.warning("libfaketime is not here: the second build has another time, not another date")
    with folder_for_comparing(options.builds_dir / f"{built.name}-{built.platform}.again") as home:
        usual = replace(options, builds_dir=home, offline=True, check=False)
        again = replace(usual, circumstances=around, anew=True)
        second = build_lock(console, lock, sandbox, again)
        with console.progress.task("compare the two trees"):
            differences = [str(item) for item in compare_trees(Path(built.tree), Path(second.tree))]
        refuse(differences, built.name)
        with console.progress.task("compare the two archives"):
            refuse(compare_archives(built, second, home), built.name)


@contextmanager
def folder_for_comparing(home: Path) -> Iterator[Path]:
    """Yield an empty folder that nobody else uses and that `cache prune` knows; then remove it."""
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
    from envferry.pack.stage import PackOptions, pack_env
    from envferry.progress import Silent

    folders = []
    for number, built in enumerate((one, other)):
        folder = home / f"packed-{number}"
        options = PackOptions(output_dir=folder, mtime=settings().source_date_epoch)
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
            hint="a package's own script or build made it so: leave that package out, or report it",
        )
