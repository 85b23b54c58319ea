"""`envferry verify REF`: an artifact and its signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.errors import UsageError
from envferry.names import Ref

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.trust.host_trust import Trust


class SignedRef(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact whose signatures are to be verified."""

    ref: str
    platform: str
    registry: str


def verify_ref(console: Console, wanted: SignedRef, trust: Trust) -> None:
    """Verify the signatures of an artifact in a registry or on a disk, and read all of its bytes.

    So too the `tool/` of an export, and the one-file tool: they are code that hosts run.
    """
    from envferry.install.image import is_image, read_image
    from envferry.registry.accepted_sources import (
        is_file_ref,
        open_trusting,
        verify_signed,
        verify_signed_file,
    )
    from envferry.trust.image_signature import verify_image
    from envferry.trust.tool_signature import is_run_file, is_tool, verify_run_file, verify_tool

    path = Path(wanted.ref)
    # Keys alone sign these; identities sign artifacts, too.
    is_for_keys = is_tool(path) or is_run_file(path) or is_image(path)
    if not (trust.keys if is_for_keys else trust.if_any):
        message = f"{wanted.ref}: signature not verified (no trusted keys)"
        hint = "name one with --trusted-key FILE.pub; `envferry check --bytes` needs none"
        raise UsageError(message, hint=hint)
    tool_keys = trust.keys_for("tool")
    if is_tool(Path(wanted.ref)):
        verified = verify_tool(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_run_file(Path(wanted.ref)):
        verified = verify_run_file(Path(wanted.ref), tool_keys, least=trust.least_for("tool"))
    elif is_image(Path(wanted.ref)):
        trust.forbid_revoked_index(read_image(Path(wanted.ref)).index)
        least = trust.least_for("release")
        verified = verify_image(Path(wanted.ref), trust.keys_for("release"), least=least)
    elif is_file_ref(wanted.ref):
        verified = verify_signed_file(Path(wanted.ref), trust, progress=console.progress)
    else:
        ref, platform = Ref.parse(wanted.ref), wanted.platform
        place = open_trusting(wanted.registry, trust)
        manifest = place.manifest(ref.name, platform, place.resolve(ref, platform))
        verified = verify_signed(manifest, place, trust, progress=console.progress)
    line = f"{verified.artifact} is signed by {', '.join(verified.signed_by)}"
    by = f"built by {verified.who}, {verified.time}"
    console.result(verified, lambda: [line, by])
