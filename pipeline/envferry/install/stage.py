"""Stage 6, install: Artifact -> Installation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.install.activation import make_current
from envferry.install.plan import InstallOptions, is_installed, prepare_install
from envferry.install.preview import InstallPreview, describe_plan
from envferry.install.staging import discard, plan_staging, write_tree
from envferry.install.upkeep import changing

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.archive.reader import Source
    from envferry.models import Installation, Manifest
    from envferry.progress import Progress

log = logging.getLogger(__name__)

__all__ = ["InstallOptions", "InstallPreview", "install_artifact", "preview_install"]


def install_artifact(
    source: Source,
    manifest: Manifest | None,
    *,
    options: InstallOptions,
    progress: Progress,
    announce: Callable[[InstallPreview], None] = lambda plan: None,
) -> Installation:
    """Install an archive under its name, whole or not at all, and make it the current one.

    What other installations have is shared, verified, and only the rest is read: from frames to
    files in one pass, into a directory of its own; then the record; then one atomic change of a
    symbolic link. Until that last step the old environment is untouched. `announce` is told what
    will be read before that begins. Raises IntegrityError, HostError or TargetOccupied with
    nothing changed.
    """
    order = prepare_install(source, manifest, options)
    home, installation = order.home, order.installation
    with changing(home, installing=installation.id):
        if is_installed(home, installation):
            discard(home, installation.id)
            installation = home.installation(installation.id)
        else:
            if home.record(installation.id).exists():
                log.warning("%s@%s is incomplete: repairing it", home.name, installation.id)
            installation = write_tree(order, progress, announce)
        make_current(home, installation, progress, check=options.check)
    return installation


def preview_install(
    source: Source, manifest: Manifest | None, *, options: InstallOptions
) -> InstallPreview:
    """Say what an install would read, to the byte, and change nothing; raise what it would."""
    order = prepare_install(source, manifest, options)
    if order.is_whole:
        return describe_plan(order, range(len(order.archive.index.files)), [])
    return plan_staging(order)
