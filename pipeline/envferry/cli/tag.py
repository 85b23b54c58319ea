"""The command tag: point a tag at an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    PlatformOptions,
    RegistryOptions,
    SignKeyOptions,
    TagExpiryOptions,
)
from envferry.names import Ref, check_name
from envferry.registry import Registry
from envferry.registry.tags import preview_move
from envferry.trust.host_keys import load_signer
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class TagOptions(DryRunOptions, SignKeyOptions, TagExpiryOptions, PlatformOptions, RegistryOptions):
    """Which tag to point to which artifact."""

    ref: str = argument(shell_complete=complete_refs)
    tag: str = argument()


@command(TagOptions)
def tag(console: Console, options: TagOptions) -> None:
    """Point TAG at the artifact REF."""
    wanted, platform = Ref.parse(options.ref), options.platform
    registry = Registry.open(
        options.registry, signer=load_signer(options.sign_keys, options.tag_days)
    )
    check_name(options.tag, "tag")
    id_ = registry.resolve(wanted, platform)
    # A tag must not lead hosts to what they cannot install.
    registry.require_installable(registry.described(wanted.name, platform, id_))
    if options.dry_run:
        name = TagName(name=wanted.name, platform=platform, tag=options.tag)
        before, after = preview_move(registry, name, id_)
        line = f"{name} would point to {id_}, now {before.id if before else 'nothing'}"
        console.preview(after, lambda: [line])
        return
    record = registry.move_tag(wanted.name, platform, options.tag, id_)
    console.result(record, lambda: [f"{wanted.name}@{options.tag} is now {record.id}"])
