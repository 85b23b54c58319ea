"""The report that a host makes after a change, for commands that change it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry import __version__
from envferry.config import host_name, settings
from envferry.errors import PipelineError
from envferry.install.records.actor import utc_now
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


def report_host(envs_dir: Path) -> None:
    """Report what this host has, if its settings say where to; a report that fails is a warning.

    What was installed is installed: a failed report must not make the command fail.
    """
    place = settings().report_to
    if not place:
        return
    from envferry.follow.reporting import own_report, report_if_new
    from envferry.registry import Registry

    try:
        report = own_report(envs_dir, host=host_name(), time=utc_now(), release=__version__)
        report_if_new(Registry.open(place), report, envs_dir)
    except (PipelineError, OSError, ModuleNotFoundError) as error:  # boto3 is an extra
        log.warning("not reported to %s: %s", fit_to_show(place), error)
