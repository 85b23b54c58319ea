"""The command `envferry follow`: keep an environment at a tag, one poll at a time."""

from __future__ import annotations

import random
import shlex
import sys
import time
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from envferry.base.prometheus import check_textfile
from envferry.cli.install import InstallCommandOptions
from envferry.cli.shared.command import command, option
from envferry.cli.shared.hooks import run_hooks
from envferry.cli.shared.host_report import report_host
from envferry.config import started_file
from envferry.errors import PipelineError, UsageError
from envferry.install.records.env_home import EnvHome
from envferry.names import Ref, current_platform
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.follow.poll import Followed, FollowRequest
    from envferry.install.plan import InstallOptions
    from envferry.models import Manifest


NOT_OF_POLLS = {"units", "dry_run", "as_json", "is_quiet", "verbosity"}
"""Options that are about one command, not about what the units are to do."""
PLACES = {"registry", "kernel", "modulefile"}
"""Options whose values are paths, though not of that type."""


class FollowOptions(InstallCommandOptions):
    """What to follow, and when it may change."""

    windows: tuple[str, ...] = option(
        "--window",
        multiple=True,
        metavar="TIMES",
        help="Install only in this time: 02:00-05:00, 'Sat,Sun 22:00-04:00'; repeatable.",
    )
    when_unused: bool = option(
        "--when-unused", is_flag=True, help="Install only while no process uses the environment."
    )
    jitter: float = option(
        "--jitter",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        default=0.0,
        help="First wait a random time of at most this, so that many hosts do not poll at once.",
    )
    keep: int | None = option(
        "--keep",
        type=click.IntRange(min=1),
        metavar="N",
        help="After an update keep the N installations that were current last; default: all.",
    )
    textfile: Path | None = option(
        "--textfile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write metrics for Prometheus's textfile collector; the name ends in .prom.",
    )
    units: Path | None = option(
        "--write-units",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Only write the systemd service and timer that poll, such as to /etc/systemd/system,"
        " and print the commands that give them these options and start them.",
    )


@command(FollowOptions)
def follow(console: Console, options: FollowOptions) -> None:
    """Check once whether the tag REF (NAME@TAG) has moved, and install what it points to.

    A tag that has not moved costs one request. An update waits for the maintenance window and, with
    --when-unused, for programs to end. If its checks fail, what was current stays so, and this
    artifact is not tried again. A rollback by hand is respected until the tag moves.

    To poll every five minutes: `envferry follow REF --write-units /etc/systemd/system`.
    """
    ref = Ref.parse(options.ref)
    if ref.is_id:
        message = f"{ref} is an id, which never moves"
        raise UsageError(message, hint=f"follow a tag, such as {ref.name}@stable")
    if options.units is not None:
        write_unit_files(console, options.units, ref)
        return
    check_textfile(options.textfile)
    if options.jitter:
        time.sleep(random.uniform(0, options.jitter))
    home = EnvHome.of(options.envs_dir, options.name or ref.name)
    try:
        from envferry.follow.poll import follow_once

        request = noted_request(options, ref, home)
        followed = follow_once(request, progress=console.progress)
    finally:
        # Also after a poll that failed: monitoring has to learn of it.
        if options.textfile and not options.dry_run:
            write_metrics(ref, home, options.textfile)
        if not options.dry_run:
            report_host(options.envs_dir)
    console.result(followed, lambda: [describe_followed(followed)])
    if followed.installation:
        run_hooks("install", followed.installation, options.envs_dir)


def noted_request(options: FollowOptions, ref: Ref, home: EnvHome) -> FollowRequest:
    """Return what the poll is to do; monitoring learns of options and keys that are wrong."""
    from envferry.follow.follow_state import note_error
    from envferry.follow.poll import recorded_time

    now = datetime.now().astimezone()
    try:
        return request_of(options, ref, home, now)
    except PipelineError as error:
        if not options.dry_run:
            note_error(home, ref.version, error, recorded_time(now))
        raise


def request_of(options: FollowOptions, ref: Ref, home: EnvHome, now: datetime) -> FollowRequest:
    """Return what the poll is to do."""
    from envferry.follow.poll import FollowRequest
    from envferry.follow.window import MaintenanceWindow
    from envferry.registry import Registry
    from envferry.registry.accepted_sources import origin_of

    trust = load_trust(
        options.trusted_keys,
        None if options.dry_run else options.envs_dir,
        allow_downgrade=options.allow_downgrade,
        require_signature=options.require_signature,
    )

    def install_options(manifest: Manifest) -> InstallOptions:

        origin = origin_of(options.ref, options.registry, trust.signers_of(manifest))
        return options.as_install_options(origin)

    return FollowRequest(
        ref=ref,
        platform=current_platform(),
        registry=Registry.open(options.registry, trust=trust),
        home=home,
        options=install_options,
        now=now,
        windows=tuple(map(MaintenanceWindow.parse, options.windows)),
        when_unused=options.when_unused,
        keep=options.keep,
        dry_run=options.dry_run,
    )


def write_metrics(ref: Ref, home: EnvHome, path: Path) -> None:
    """Write what is known after a poll, be it a failed one."""
    from envferry.base.prometheus import write_textfile
    from envferry.follow.follow_state import read_follow_state
    from envferry.follow.metrics import follow_metrics

    state = read_follow_state(home, ref.version)
    write_textfile(path, follow_metrics(str(ref), home.current_id(), state))


def write_unit_files(console: Console, directory: Path, ref: Ref) -> None:
    """Write the units, and say how to start them."""
    from envferry.follow.units import options_line, write_units

    line = options_line(given_words(click.get_current_context()))
    written = write_units(directory, this_command())
    start = f"systemctl daemon-reload && systemctl enable --now envferry-follow@{ref}.timer"
    place = f"/etc/envferry/follow-{ref}.env"
    told = f"mkdir -p /etc/envferry && echo {shlex.quote(line)} > {place}"
    steps = [told, start] if line else [start]
    facts = {"files": written, "options": line, "start": start}
    console.result(facts, lambda: [*map(str, written), *steps])


def given_words(context: click.Context) -> list[str]:
    """Return the options of this command line that a poll by systemd needs as well.

    Paths are absolute in them: a service starts in the root directory.
    """
    words = []
    for one in context.command.params:
        name = one.name or ""
        # What settings say, each poll reads by itself.
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not is_given or not isinstance(one, click.Option) or name in NOT_OF_POLLS:
            continue
        if one.is_flag:
            words.append(one.opts[-1])
            continue
        value = context.params[name]
        for item in value if one.multiple else [value]:
            text = str(item.value if isinstance(item, Enum) else item)
            is_place = isinstance(one.type, click.Path) or name in PLACES
            if is_place and text and "://" not in text:
                text = str(Path(text).absolute())
            # With `=`, a value that begins with a dash is not taken for an option.
            words.append(f"{one.opts[-1]}={text}")
    return words


def this_command() -> str:
    """Return what starts this envferry, for systemd."""
    script, shell = Path(sys.argv[0]).absolute(), ""
    if run_file := started_file():
        script, shell = run_file.absolute(), "/bin/sh "  # a disk may be mounted `noexec`
    # Started as `python -m envferry`: this is a file of the package.
    elif script.name != "envferry":
        script = Path(sys.executable).with_name("envferry")
    if set(str(script)) & set(" \"'\\%$"):
        message = f"systemd cannot start {script}: there are blanks or quotes in its path"
        raise UsageError(message, hint="install envferry in another directory")
    return f"{shell}{script}"


def describe_followed(followed: Followed) -> str:
    """Return the line for people and for the journal."""
    was = f" (was {followed.before})" if followed.before else ""
    if followed.outcome == "installed":
        return f"{followed.ref}: installed {followed.id}{was}"
    if followed.outcome == "unchanged":
        return f"{followed.ref}: {followed.id} is current"
    stays = followed.before or "nothing"
    if followed.outcome == "would install":
        return f"{followed.ref}: {followed.id} would be installed{was}"
    return f"{followed.ref}: {stays} stays, {followed.id} {followed.outcome}: {followed.reason}"
