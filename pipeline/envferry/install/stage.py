"""Stage 6, install: Artifact -> Installation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.install.cleanup import changing
from envferry.install.plan import InstallOptions, is_installed, prepare_install
from envferry.install.preview import InstallPreview, preview_plan
from envferry.install.records.events import note_event
from envferry.install.staging import discard, preview_staging, write_tree
from envferry.install.switching import switch_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.archive.reader import Source
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.models import Manifest
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
    plan = prepare_install(source, manifest, options)
    # The plan is made before the lock, which makes the environment's folder: an install that is
    # refused leaves nothing behind.
    home, installation = plan.home, plan.installation
    detail = options.origin.ref if options.origin else ""
    with changing(home, installing=installation.id):
        # Asked again: it was planned without the lock, and another command may have been faster.
        if is_installed(home, installation):
            # What an interrupted attempt left is of no use beside a whole tree.
            discard(home, installation.id)
            installation = with_new_tag(home, installation)
        else:
            if home.record(installation.id).exists():
                log.warning("%s@%s is incomplete: repairing it", home.name, installation.id)
            installation = write_tree(plan, progress, announce)
            note_event(home, options.actor, "installed", installation.id, detail)
        switch_to(home, installation, options, plan.integrations, progress)
    return installation


def with_new_tag(home: EnvHome, wanted: Installation) -> Installation:
    """Return the record of what is installed already, with the tag that led here this time.

    And with the keys that it was accepted by: a host may have got its keys after its environments.
    """
    record = home.installation(wanted.id)
    before, now = record.origin, wanted.origin
    if before is None or now is None:
        return record
    # A signature is of the archive's bytes. The id is of the tar stream, so archives that were
    # compressed otherwise share it.
    same_bytes = record.archive_xxh128 == wanted.archive_xxh128
    accepted = now.signed_by if same_bytes else ()
    signed_by = tuple(dict.fromkeys((*before.signed_by, *accepted)))
    origin = msgspec.structs.replace(before, ref=now.ref, tag=now.tag, signed_by=signed_by)
    if origin != before:
        record = msgspec.structs.replace(record, origin=origin)
        write_bytes(home.record(record.id), to_json(record))
    return record


def preview_install(
    source: Source, manifest: Manifest | None, *, options: InstallOptions
) -> InstallPreview:
    """Say what an install would read, to the byte, and change nothing; raise what it would."""
    plan = prepare_install(source, manifest, options)
    # Every file is here: no frame would be read.
    if plan.is_whole:
        return preview_plan(plan, range(len(plan.archive.index.files)), [])
    return preview_staging(plan)
