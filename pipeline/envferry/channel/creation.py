"""Create a channel: interpreters, wheels and requirements -> conda packages, indexed."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from packaging.requirements import InvalidRequirement, Requirement

from envferry.base.files import exclusive_lock
from envferry.base.json import convert
from envferry.build.cache_locks import cache_lock
from envferry.channel.conda_package import CondaPackage, write_conda_package
from envferry.channel.interpreter import Interpreter, find_interpreter, running_interpreter
from envferry.channel.interpreter_staging import python_abi_package, stage_interpreter
from envferry.channel.wheel import (
    ChannelWheel,
    Closure,
    close_over,
    describe_wheel,
    fits,
    read_wheel,
    supported_tags,
)
from envferry.channel.wheel_layout import stage_wheel
from envferry.config import SOURCE_DATE_EPOCH
from envferry.errors import HostError, NotFound, SpecError
from envferry.lock.conda.index_channel import index_channel, read_index
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from envferry.build.downloads import DownloadCache
    from envferry.models import LockedPackage
    from envferry.progress import Progress

SOURCE_ENDINGS = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz")


class ChannelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to put into which channel."""

    directory: Path
    """Created when it is not there; what is already in it stays."""
    pythons: tuple[str, ...] = ()
    """Executables; by default, the one that runs this process."""
    arguments: tuple[str, ...] = ()
    """Paths of wheels, and requirements such as `numpy` or `rich[jupyter]>=13`."""
    source_date_epoch: int = SOURCE_DATE_EPOCH
    """Seconds since 1970 that every package gives as its time."""


class ChannelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a request added and kept."""

    directory: Path
    platform: str
    added: tuple[str, ...]
    """The new package files, as `SUBDIR/FILE`."""
    unchanged: tuple[str, ...]
    """Those that already existed."""
    missing: tuple[str, ...]
    """Names that the packages depend on and this channel does not have."""


def create_channel(
    request: ChannelRequest, *, cache: DownloadCache, progress: Progress
) -> ChannelSummary:
    """Make conda packages of interpreters, wheels and requirements, and index their channel.

    Requirements are resolved with all that they depend on; wheels are taken as they are. Raises
    SpecError or NotFound, naming all bad arguments, before anything is written.
    """
    if not current_platform().startswith("linux-"):
        message = f"a channel can be made on Linux only, this is {current_platform()}"
        raise HostError(message, hint="run it on a Linux machine")
    interpreters = [find_interpreter(name) for name in request.pythons] or [running_interpreter()]
    # All checks of arguments come before the first byte is written: a typing error leaves no
    # channel.
    wheels, requirements = _sort_arguments(request.arguments)
    _require_fitting(wheels, interpreters)
    # Held as long as downloads are read: a prune meanwhile would remove them.
    with cache_lock(cache.root, shared=True) if requirements else nullcontext():
        closures = _resolve(interpreters, wheels, requirements, cache=cache, progress=progress)
        channel = _Channel(directory=request.directory, timestamp=request.source_date_epoch)
        request.directory.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(request.directory / ".lock", f"the channel {request.directory}"):
            for interpreter in interpreters:
                with progress.task(f"Packing python {interpreter.version}") as advance:
                    channel.add_interpreter(interpreter, advance)
            chosen = [(wheel, closure) for closure in closures for wheel in closure.wheels.values()]
            total_bytes = sum(wheel.path.stat().st_size for wheel, _ in chosen)
            with progress.task(f"Packing {len(chosen)} wheels", total_bytes) as advance:
                for wheel, closure in chosen:
                    channel.add_wheel(wheel, closure)
                    advance(wheel.path.stat().st_size)
            # Under the lock, too: an index written beside another writer would lack that writer's
            # packages.
            index_channel(request.directory)
    return ChannelSummary(
        directory=request.directory,
        platform=current_platform(),
        added=tuple(channel.added),
        unchanged=tuple(channel.unchanged),
        missing=_missing_names(request.directory, [*channel.added, *channel.unchanged]),
    )


def _sort_arguments(arguments: Sequence[str]) -> tuple[list[ChannelWheel], list[Requirement]]:
    """Tell wheels from requirements; raise one error that names everything that is neither."""
    wheels: list[ChannelWheel] = []
    requirements: list[Requirement] = []
    faults: list[str] = []
    absent: list[str] = []
    for text in arguments:
        try:
            if text.endswith(".whl") and not Path(text).is_file():
                absent.append(f"the wheel {text} does not exist")
            elif text.endswith(".whl"):
                wheels.append(read_wheel(Path(text)))
            elif text.endswith(SOURCE_ENDINGS):
                faults.append(f"{text} is a source distribution: build a wheel of it first")
            else:
                requirements.append(_plain_requirement(text))
        except SpecError as error:
            faults.append(error.message)
    if faults:
        hint = "name wheel files and requirements such as `numpy` or `rich>=13`"
        raise SpecError("\n".join([*faults, *absent]), hint=hint)
    if absent:
        raise NotFound("\n".join(absent), hint="check the path")
    return wheels, requirements


def _plain_requirement(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        message = f"{text!r} is neither a wheel file nor a requirement"
        raise SpecError(message) from error
    if requirement.url:
        message = f"{text!r} names a URL: download the wheel and name its file"
        raise SpecError(message)
    return requirement


def _require_fitting(wheels: Sequence[ChannelWheel], interpreters: Sequence[Interpreter]) -> None:
    """Raise SpecError that names each wheel which fits none of the interpreters, with the tags."""
    faults = [
        f"{wheel.path.name} has the tags {', '.join(sorted(map(str, wheel.tags)))}"
        + (f" and needs Python {wheel.requires_python}" if wheel.requires_python else "")
        for wheel in wheels
        if not any(fits(wheel, interpreter) for interpreter in interpreters)
    ]
    if faults:
        known = ", ".join(
            f"Python {interpreter.version} ({supported_tags(interpreter)[0]} and older)"
            for interpreter in interpreters
        )
        message = "\n".join(["wheels that fit none of the interpreters:", *faults])
        hint = f"the interpreters are {known}: name another with --python, or other wheels"
        raise SpecError(message, hint=hint)


def _resolve(
    interpreters: Sequence[Interpreter],
    wheels: Sequence[ChannelWheel],
    requirements: Sequence[Requirement],
    *,
    cache: DownloadCache,
    progress: Progress,
) -> list[Closure]:
    """Find for each interpreter all wheels, downloading what the requirements resolve to."""
    locked = [_lock_requirements(item, wheels, requirements) for item in interpreters]
    # In one go for all interpreters: their pure wheels are the same files.
    files = cache.fetch_all([item for items in locked for item in items], progress=progress)
    read = {path: read_wheel(path) for path in sorted(set(files.values()))}
    closures = []
    for interpreter, items in zip(interpreters, locked, strict=True):
        given = [wheel for wheel in wheels if fits(wheel, interpreter)]
        found = [read[files[item.url]] for item in items]
        closures.append(close_over(interpreter, [*found, *given], requirements))
    return closures


def _lock_requirements(
    interpreter: Interpreter, wheels: Sequence[ChannelWheel], requirements: Sequence[Requirement]
) -> tuple[LockedPackage, ...]:
    """Resolve the requirements for an interpreter; wheels that were given are not looked for."""
    if not requirements:
        return ()
    from envferry.lock.pip.pip_half import resolve_pip
    from envferry.lock.pip.pip_request import PipRequest

    given = {(wheel.name, str(wheel.version)) for wheel in wheels if fits(wheel, interpreter)}
    locked = resolve_pip(
        PipRequest(
            requirements=tuple(str(item) for item in requirements),
            python_version=interpreter.version,
            platform=current_platform(),
            provided=tuple(sorted(given)),
        )
    )
    sources = [item.file_name for item in locked if not item.file_name.endswith(".whl")]
    if sources:
        message = f"no wheel for Python {interpreter.version}: {', '.join(sources)}"
        raise SpecError(message, hint="build wheels of these and name the files")
    return locked


class _Channel(msgspec.Struct, kw_only=True):
    """A channel directory that packages are added to."""

    directory: Path
    timestamp: int
    added: list[str] = msgspec.field(default_factory=list)
    unchanged: list[str] = msgspec.field(default_factory=list)

    def add_interpreter(self, interpreter: Interpreter, advance: Callable[[int], None]) -> None:
        """Add `python` and the `python_abi` that goes with it."""
        with self._new_tree() as tree:
            # Only what was staged tells the build, and with it the file's name.
            package = stage_interpreter(interpreter, tree)
            self._write(package, tree, advance)
        with self._new_tree() as tree:
            self._write(python_abi_package(interpreter), tree)

    def add_wheel(self, wheel: ChannelWheel, closure: Closure) -> None:
        """Add the package that a wheel becomes in a closure."""
        package = describe_wheel(wheel, closure)
        if self._is_known(package):
            return
        with self._new_tree() as tree:
            self._write(stage_wheel(wheel, package, closure.interpreter, tree), tree)

    @contextmanager
    def _new_tree(self) -> Iterator[Path]:
        """Yield an empty directory on the channel's own disk, gone afterwards."""
        with tempfile.TemporaryDirectory(prefix=".work-", dir=self.directory) as path:
            tree = Path(path, "tree")
            tree.mkdir()
            yield tree

    def _write(
        self, package: CondaPackage, tree: Path, advance: Callable[[int], None] | None = None
    ) -> None:
        if self._is_known(package):
            return
        target = self._target(package)
        target.parent.mkdir(exist_ok=True)
        write_conda_package(package, tree, target, timestamp=self.timestamp, advance=advance)
        self.added.append(f"{package.subdir}/{target.name}")

    def _is_known(self, package: CondaPackage) -> bool:
        """Whether the channel has this package; its name stands for its content, digest and all."""
        target = self._target(package)
        name = f"{package.subdir}/{target.name}"
        if target.is_file() and name not in self.added and name not in self.unchanged:
            self.unchanged.append(name)
        return target.is_file()

    def _target(self, package: CondaPackage) -> Path:
        return self.directory / package.subdir / f"{package.stem}.conda"


def _missing_names(directory: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return what the named packages depend on and the channel does not have."""
    records = {
        f"{subdir}/{name}": record
        for subdir in ("noarch", current_platform())
        for name, record in read_index(directory, subdir).items()
    }
    present = {str(record["name"]) for record in records.values()}
    depends = {
        spec.partition(" ")[0]
        for name in names
        for spec in convert(records[name].get("depends", []), list[str])
    }
    # Names with two underscores are conda's virtual packages: the host has them, no channel does.
    return tuple(sorted(name for name in depends - present if not name.startswith("__")))
