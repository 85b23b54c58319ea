"""The commands `envferry trust` and `revoke`: the trust bundle, made, carried and accepted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from envferry.base.files import write_bytes
from envferry.base.times import now, read_time, rfc3339
from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import (
    DryRunOptions,
    PlatformOptions,
    RegistryOptions,
    SignKeyOptions,
    TrustedKeyOptions,
)
from envferry.config import settings
from envferry.errors import NotFound, UsageError
from envferry.names import Ref
from envferry.registry import Registry
from envferry.trust.bundle import (
    BUNDLE_NAME,
    BundleKey,
    RevokedArtifact,
    Role,
    SignedBundle,
    follow_to,
    read_bundle,
)
from envferry.trust.host_keys import bundle_path, host_clock, load_signer, read_kept_bundle
from envferry.trust.signing import NO_KEYS_DIR, pem_of, read_trusted_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.cli.shared.console import Console
    from envferry.trust.bundle import TrustBundle
    from envferry.trust.bundle_edit import BundleEditor


@click.group()
def trust() -> None:
    """Manage the trust bundle: who may sign what, until when, and what is revoked.

    Where there is none, the keys in /etc/envferry/trusted.d may sign everything.
    """


class BundleOptions(SignKeyOptions, DryRunOptions):
    """For commands that write a new version of a bundle."""

    bundle: Path = option(
        "--bundle",
        type=click.Path(path_type=Path),
        metavar="FILE",
        default=BUNDLE_NAME,
        show_default=True,
        help="The trust bundle to change.",
    )

    def read(self) -> SignedBundle | None:
        """Read the bundle; None where there is none yet."""
        if not self.bundle.exists():
            return None
        return read_bundle(self.bundle)

    def existing(self) -> SignedBundle:
        """Read the bundle; raise NotFound where there is none."""
        found = self.read()
        if found is None:
            message = f"the trust bundle {self.bundle} does not exist"
            raise NotFound(message, hint="`envferry trust add KEY.pub --role root` makes one")
        return found

    def editor(self) -> BundleEditor:
        """Return who signs."""
        from envferry.trust.bundle_edit import BundleEditor

        signer = load_signer(self.sign_keys)
        if signer is None:
            message = "a trust bundle must be signed, and no key is given"
            raise UsageError(message, hint="add --sign-key FILE with a root key")
        return BundleEditor(signer.keys, now())

    def next_version(self, change: Callable[[TrustBundle], TrustBundle]) -> SignedBundle:
        """Return the bundle with a change, signed."""
        return self.editor().edited(self.read(), change)


class AddKeyOptions(BundleOptions):
    """Which key may do what."""

    key: Path = argument(metavar="KEY.pub", type=click.Path(path_type=Path))
    roles: tuple[Role, ...] = option(
        "--role",
        type=click.Choice(get_args(Role)),
        multiple=True,
        required=True,
        help="What it may sign: root for bundles, release for artifacts; repeatable.",
    )
    name: str = option(
        "-n",
        "--name",
        default="",
        metavar="TEXT",
        help="The name of its owner, as commands show it.",
    )
    not_before: str = option(
        "--not-before",
        default="",
        metavar="TIME",
        help="When it becomes valid: 2027-01-01T00:00:00Z.",
    )
    expires: str = option(
        "--expires", default="", metavar="TIME", help="When it expires; default: never."
    )


@command(AddKeyOptions, group=trust)
def add(console: Console, options: AddKeyOptions) -> None:
    """Add a key, or change the roles and dates of an existing one.

    The first one needs `--role root`. Rotation: add the new root key, signed by the old and the new
    one, then revoke the old.
    """
    from envferry.trust.bundle_edit import add_key

    # The named key alone, without those that this machine trusts.
    (public,) = read_trusted_keys(NO_KEYS_DIR, [options.key])
    key = BundleKey(
        name=options.name or options.key.stem,
        pem=pem_of(public.key).decode(),
        roles=options.roles,
        not_before=_time(options.not_before, "--not-before"),
        expires=_time(options.expires, "--expires"),
    )
    line = f"{public.id} ({key.name}) may sign {', '.join(key.roles)}"
    write(console, options, options.next_version(add_key(key)), line)


class RevokeKeyOptions(BundleOptions):
    """Which key counts no more."""

    key_id: str = argument(metavar="KEYID")
    why: str = option("--why", required=True, metavar="TEXT", help="The reason, as hosts show it.")


@command(RevokeKeyOptions, group=trust)
def revoke_key(console: Console, options: RevokeKeyOptions) -> None:
    """Revoke a key by its id: nothing that it ever signed is accepted any more."""
    from envferry.trust.bundle_edit import revoke_key as revoked

    # For its NotFound: `next_version` would begin a bundle where there is none.
    options.existing()
    made = options.next_version(revoked(options.key_id, options.why, now()))
    write(console, options, made, f"{options.key_id} is revoked")


class ThresholdOptions(BundleOptions):
    """How many must sign."""

    role: Role = argument(type=click.Choice(get_args(Role)))
    least: int = argument(metavar="N", type=click.IntRange(1))


@command(ThresholdOptions, group=trust)
def threshold(console: Console, options: ThresholdOptions) -> None:
    """Set how many keys must sign: ROOT keys a bundle, RELEASE keys an artifact."""
    from envferry.trust.bundle_edit import set_threshold

    options.existing()
    made = options.next_version(set_threshold(options.role, options.least))
    write(console, options, made, f"{options.role} needs {options.least}")


@command(BundleOptions, group=trust)
def sign(console: Console, options: BundleOptions) -> None:
    """Add a signature to the newest version, where several root keys must sign it."""
    made = options.editor().countersigned(options.existing())
    write(console, options, made, f"signed by {len(made.file.bundle.signatures)} keys")


class UpdateTrustOptions(TrustedKeyOptions, DryRunOptions):
    """The bundle for this host."""

    source: Path = argument(metavar="FILE|DIR", type=click.Path(path_type=Path))


@command(UpdateTrustOptions, group=trust)
def update(console: Console, options: UpdateTrustOptions) -> None:
    """Accept the trust bundle FILE on this host, or the one in the exported folder DIR.

    The first one must be signed by a key in /etc/envferry/trusted.d or by --trusted-key, each
    further one by the root keys of its predecessor. It is kept beside trusted.d.
    """
    path = options.source / "keys" / BUNDLE_NAME if options.source.is_dir() else options.source
    if not path.exists():
        message = f"the trust bundle {path} does not exist"
        raise NotFound(message, hint="name the file, or the folder that `envferry export` wrote")
    signed = read_bundle(path)
    target = bundle_path()
    known = read_kept_bundle(target)
    anchors = read_trusted_keys(settings().trusted_dir, options.trusted_keys)
    follow_to(signed, known, anchors, host_clock().now)
    if not options.dry_run:
        write_bytes(target, signed.to_bytes())
    before = f", before {known.version}" if known else ""
    line = f"version {signed.bundle.version}{before}"
    say(console, target, signed, line, dry_run=options.dry_run)


class ShowTrustOptions(CommandOptions):
    """Which bundle to show."""

    file: Path | None = argument(metavar="[FILE]", required=False, type=click.Path(path_type=Path))


@command(ShowTrustOptions, group=trust)
def show(console: Console, options: ShowTrustOptions) -> None:
    """Show the trust bundle FILE, or the one that this host uses."""
    path = options.file or bundle_path()
    if not path.exists():
        message = f"the trust bundle {path} does not exist"
        raise NotFound(message, hint="without one, every key in trusted.d may sign everything")
    bundle = read_bundle(path).bundle
    console.result(bundle, lambda: [str(path), *bundle_lines(bundle)])


class RevokeOptions(BundleOptions, PlatformOptions, RegistryOptions):
    """Which artifact is revoked."""

    ref: str = argument(shell_complete=complete_refs)
    why: str = option("--why", required=True, metavar="TEXT", help="The reason, as hosts show it.")


@command(RevokeOptions)
def revoke(console: Console, options: RevokeOptions) -> None:
    """Revoke the artifact REF: hosts with the new trust bundle do not install it any more.

    What is installed stays; `envferry status` says so. Carry the bundle to the hosts with
    `envferry export`, or by itself, and run `envferry trust update` there.
    """
    from envferry.trust.bundle_edit import revoke_artifact

    options.existing()
    wanted, platform = Ref.parse(options.ref), options.platform
    # One that is gone from the registry may lie on disks and hosts.
    id_ = wanted.version
    if not wanted.is_id:
        id_ = Registry.open(options.registry).resolve(wanted, platform)
    gone = RevokedArtifact(
        name=wanted.name, platform=platform, id=id_, why=options.why, time=rfc3339(now())
    )
    made = options.next_version(revoke_artifact(gone))
    write(console, options, made, f"{wanted.name}@{id_} ({platform}) is revoked")


def write(console: Console, options: BundleOptions, made: SignedBundle, line: str) -> None:
    """Write a bundle, unless it is a dry run, and say what it has become."""
    if not options.dry_run:
        write_bytes(options.bundle, made.to_bytes())
    say(console, options.bundle, made, line, dry_run=options.dry_run)


def say(console: Console, path: Path, made: SignedBundle, line: str, *, dry_run: bool) -> None:
    """Say what a bundle has become, or would."""
    facts = {"file": path, "version": made.bundle.version}
    written = f"{path}: {'would be ' if dry_run else ''}version {made.bundle.version}"
    show = console.preview if dry_run else console.result
    show(facts, lambda: [line, written])


def bundle_lines(bundle: TrustBundle) -> Iterator[str]:
    """Yield what a bundle says."""
    yield f"version {bundle.version} of {bundle.created}"
    moment = now()
    for key in bundle.keys:
        id_ = key.public.id
        words = [
            f"from {key.not_before}" if key.not_before else "",
            f"until {key.expires}" if key.expires else "",
            "revoked" if id_ in bundle.revoked_ids else "",
            "" if key.is_valid(moment) else "not valid now",
        ]
        more = "".join(f", {word}" for word in words if word)
        yield f"{id_}  {key.name}: {', '.join(key.roles)}{more}"
    for role, least in sorted(bundle.thresholds.items()):
        yield f"{role} needs {least}"
    for one in bundle.revoked_keys:
        yield f"revoked key {one.id} on {one.time[:10]}: {one.why}"
    for gone in bundle.revoked_artifacts:
        yield f"revoked {gone.name}@{gone.id} ({gone.platform}) on {gone.time[:10]}: {gone.why}"


def _time(text: str, option_name: str) -> str:
    if not text:
        return ""
    found = read_time(text)
    if found is None:
        message = f"{option_name} {text!r} is not a time"
        raise UsageError(message, hint="write it as 2027-01-01T00:00:00Z")
    return rfc3339(found)
