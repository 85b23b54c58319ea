"""The command status: whether installed environments are healthy, for monitoring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from envferry.cli.shared.byte_sizes import parse_size
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.shared_options import EnvsDirOptions, TrustedKeyOptions
from envferry.errors import by_exit_code
from envferry.install.records.actor import utc_now
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class StatusCommandOptions(TrustedKeyOptions, EnvsDirOptions):
    """What to look at."""

    names: tuple[str, ...] = argument(nargs=-1, metavar="[NAME]...")
    textfile: Path | None = option(
        "--textfile",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write metrics for Prometheus's textfile collector; the name ends in .prom.",
    )
    min_free: int = option(
        "--min-free",
        metavar="SIZE",
        default="1G",
        callback=parse_size,
        show_default=True,
        help="The minimum free space, such as 20G.",
    )


@command(StatusCommandOptions)
def status(console: Console, options: StatusCommandOptions) -> None:
    """Report whether the environments of this host are healthy: for monitoring.

    Looks at the current installation of each NAME, or of all: whether there is one, how its checks
    ended when they ran last, whether sizes, modes and times are as installed, whether a key that is
    trusted now signed it, and at free space. The exit code is 0 only if everything is healthy;
    otherwise 7 if nothing is current, 4 if checks failed, 8 for changed files or a signature that
    is not trusted, 11 for too little space: the first of these that applies.
    """
    from envferry.base.prometheus import check_textfile, write_textfile
    from envferry.install.host.status import StatusOptions, describe_status, metrics_of, read_status

    check_textfile(options.textfile)
    trust = load_trust(options.trusted_keys, takes_in=False)
    keys = [key.id for key in trust.keys_for("release")]
    keys += map(str, trust.identities.accepted)
    revoked = trust.bundle.revoked_artifacts if trust.bundle else ()
    wanted = StatusOptions(
        envs_dir=options.envs_dir.absolute(),
        names=options.names,
        # A bundle without a key that may sign now is not a host without keys.
        trusted_keys=keys or (["none"] if trust.bundle else []),
        revoked={(one.name, one.platform, one.id): one.why for one in revoked},
        min_free=options.min_free,
        time=utc_now(),
    )
    found = read_status(wanted)
    if options.textfile:
        write_textfile(options.textfile, metrics_of(found))
    console.result(found, lambda: describe_status(found))
    if found.exit_code:
        name, first = next(item for item in found.all_findings if item[1].code == found.exit_code)
        about = f"{name}: " if name else ""
        hints = {
            "current": f"`envferry install {name or 'NAME@TAG'}`",
            "checks": f"`envferry checks {name}` runs them again",
            "drift": f"`envferry verify {name}` says which files, with --repair it restores them",
            "signature": "install what a trusted key signed, or trust the key that signed this",
            "disk": "`envferry du` shows what takes the space; `envferry remove NAME` frees it",
        }
        msg = f"{about}{first.text}"
        raise by_exit_code(found.exit_code)(msg, hint=hints[first.fault])
