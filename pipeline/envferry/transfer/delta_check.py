"""Check the deltas on a disk; findings are like those of a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.errors import IntegrityError
from envferry.registry.check import BAD, CheckFinding
from envferry.registry.layout import DELTAS
from envferry.stores.port import CannotList
from envferry.transfer.delta_read import read_delta
from envferry.transfer.deltas import RECORD, delta_key

if TYPE_CHECKING:
    from envferry.registry import Registry
    from envferry.registry.check import Report

HINT = "export it again"


def check_deltas(source: Registry, report: Report, *, read_bytes: bool) -> Report:
    """Add the deltas of a registry folder to what was found in it.

    With `read_bytes` every byte of them is compared; their bases are not needed.
    """
    try:
        keys = [listed.key for listed in source.store.list(DELTAS)]
    except CannotList:
        keys = []
    # `v1/deltas/NAME/PLATFORM/ID/FILE`: what lies higher up belongs to no delta.
    folders = {"/".join(key.split("/")[:5]) + "/" for key in keys if key.count("/") > 4}
    found = [_check(source, folder, read_bytes=read_bytes) for folder in sorted(folders)]
    findings = (*report.findings, *(finding for finding in found if finding))
    ordered = tuple(sorted(findings, key=lambda finding: finding.key))
    return replace(report, findings=ordered, deltas=len(folders))


def _check(source: Registry, folder: str, *, read_bytes: bool) -> CheckFinding | None:
    """Return what is wrong with the delta in a folder, if anything is."""
    key = folder + RECORD
    fault = CheckFinding(severity="broken", key=key, what="", mend=HINT)
    # An export writes it last, so without it the rest says nothing.
    if source.store.stat(key) is None:
        return replace(fault, what="it is missing: the export was interrupted")
    try:
        delta = read_delta(source, key)
        delta.require_file()
        if read_bytes and not delta.is_sound():
            file = delta_key(delta.record.artifact)
            msg = f"{file} is damaged: its BLAKE3 is not that of {RECORD}"
            raise IntegrityError(msg)
    except BAD as error:
        return replace(fault, what=error.message)
    return None
