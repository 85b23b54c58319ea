"""Where the channels of a spec are, and which of its pins they have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.files import expand_home
from envferry.build.downloads import DownloadCache
from envferry.config import condarc_paths, settings
from envferry.errors import SpecError
from envferry.lock.conda.relax_pins import RelaxRequest, relax_pins
from envferry.lock.conda.repodata import cached_indexes
from envferry.lock.lock_options import LockOptions
from envferry.specs.channel_names import read_channel_names
from envferry.specs.reading import read_spec
from envferry.specs.syntax.conda_lines import parse_conda_line

if TYPE_CHECKING:
    from envferry.lock.conda.repodata import ChannelIndexes
    from envferry.models import Replacement, Spec
    from envferry.progress import Progress
    from envferry.specs.channel_names import ChannelNames

log = logging.getLogger(__name__)


def missing_pins(spec: Spec, progress: Progress) -> dict[str, str]:
    """Return the conda lines that no channel satisfies, each with what it would be relaxed to.

    Raises StoreError when a channel cannot be reached.
    """
    halves = {platform: read_spec(spec.path, platform=platform) for platform in spec.platforms}
    options = LockOptions(relax="all")
    names = channel_names(spec, options)
    channels = channels_of(spec, options, names)
    label = f"looking for the pins of {spec.name} in its channels"
    with (
        cached_indexes() as indexes,
        progress.task(label, indexes.server.expected) as indexes.server.advance,
    ):
        lines = placed_lines(halves, names)
        _, replacements = relaxed_pins(lines, channels, options, indexes)
    return {item.asked: item.used for item in replacements}


def channel_names(spec: Spec, options: LockOptions) -> ChannelNames:
    """Return what channel names stand for; of several mirrors, the first that answers.

    Offline, it is the first.
    """
    names = read_channel_names(condarc_paths(), spec.options.channels)
    servers = DownloadCache(settings().cache_dir / "downloads")
    prefixes = (line.channel for line in map(parse_conda_line, spec.conda) if line)
    return names.with_mirrors_that(
        lambda place: (
            # Every channel has noarch, whichever platforms it has besides.
            options.offline or servers.answers(f"{place.rstrip('/')}/noarch/repodata.json")
        ),
        (*spec.channels, *options.channels, *prefixes),
    )


def channels_of(spec: Spec, options: LockOptions, names: ChannelNames) -> tuple[str, ...]:
    """Return the channels to solve with; relative paths in a spec start from its folder."""
    if not (options.channels or spec.channels):
        message = f"{spec.path} names no channels"
        raise SpecError(message, hint="add `channels: [conda-forge]`, or give `--channel`")
    if options.channels:
        # Paths of the command line start from the working folder, not from the spec's.
        return tuple(absolute(channel, Path()) for channel in names.resolve(options.channels))
    base = spec.path.parent
    named = (line.channel for line in map(parse_conda_line, spec.conda) if line and line.channel)
    # What stands before `::` is searched, too, after all others: as conda does.
    return tuple(absolute(channel, base) for channel in names.resolve((*spec.channels, *named)))


def absolute(channel: str, base: Path) -> str:
    """Make a path to a channel absolute; names and URLs stay as they are."""
    path = base / expand_home(Path(channel)) if "://" not in channel else None
    # A bare word is a name, unless a folder of that name looks like a channel.
    is_path = channel.startswith((".", "~", "/"))
    return str(path.resolve()) if path and (is_path or (path / "noarch").is_dir()) else channel


def placed_lines(halves: dict[str, Spec], names: ChannelNames) -> dict[str, tuple[str, ...]]:
    """Return the match specs of each platform, with their channels said in full, before `::`."""

    def place(line: str, half: Spec) -> str:
        parsed = parse_conda_line(line)
        if not parsed or not parsed.channel:
            return str(line)
        channel = names.resolve_spec(f"{parsed.channel}::").removesuffix("::")
        # Taken apart in front of the bracket: a value in it may have `::`.
        before = line.partition("[")[0]
        rest = before.rpartition("::")[2].strip()
        subdir = f"subdir='{parsed.subdir}'" if parsed.subdir else ""
        keys = ",".join(filter(None, (parsed.keys, subdir)))
        place = absolute(channel, half.path.parent)
        return f"{place}::{rest}[{keys}]" if keys else f"{place}::{rest}"

    return {
        platform: tuple(place(line, half) for line in half.conda)
        for platform, half in halves.items()
    }


def relaxed_pins(
    conda: dict[str, tuple[str, ...]],
    channels: tuple[str, ...],
    options: LockOptions,
    indexes: ChannelIndexes,
) -> tuple[dict[str, tuple[str, ...]], tuple[Replacement, ...]]:
    """Return the match specs to solve by platform, and which of them are not as asked."""
    replacements: list[Replacement] = []
    relaxed = dict(conda)
    for platform in conda if options.relax else ():
        request = RelaxRequest(
            specs=conda[platform],
            channels=channels,
            platform=platform,
            level=options.relax or "build",
        )
        answer = relax_pins(request, indexes)
        relaxed[platform] = answer.specs
        replacements += answer.replacements
    return relaxed, tuple(replacements)


def warn_of(replacements: tuple[Replacement, ...], channels: tuple[str, ...]) -> None:
    """Say which pins are not as asked."""
    for item in replacements:
        used = f"using {item.used}" if item.used else "left out"
        log.warning("%s is not in %s: %s", item.asked, ", ".join(channels), used)
