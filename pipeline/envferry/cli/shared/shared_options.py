"""Options that several commands share: classes that the options of a command derive from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from envferry.cli.shared.command import CommandOptions, option
from envferry.config import settings
from envferry.errors import UsageError
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

    from envferry.trust.host_trust import Trust
    from envferry.trust.keyless import KeylessSigner

Value = TypeVar("Value", bound="Enum")


def becomes(kind: type[Value]) -> Callable[[click.Context, click.Parameter, str], Value]:
    """Return the callback of an option whose value is a member of an enum."""

    def convert(_context: click.Context, _option: click.Parameter, text: str) -> Value:
        return kind(text)

    return convert


class RegistryOptions(CommandOptions):
    """For commands that open a registry."""

    registry: str = option(
        "--registry",
        metavar="URL",
        # A function, so that `--help` works with a broken settings file.
        default=lambda: settings().registry,
        show_default="ENVFERRY_REGISTRY, else ./artifacts",
        help="Where artifacts live: a directory, s3://bucket/prefix, oci://host/repository, https://…",
    )


class PlatformOptions(CommandOptions):
    """For commands about an artifact, which is of one platform."""

    platform: str = option(
        "--platform",
        metavar="PLATFORM",
        default=current_platform,
        help="A platform other than this machine's.",
    )


class InterpreterOptions(CommandOptions):
    """For commands that make the one-file tool."""

    interpreter: Path | None = option(
        "--interpreter",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="The Python in envferry.run: bin/python3.X, needed for another platform; default: the"
        " one that runs envferry.",
    )


class TrustedKeyOptions(CommandOptions):
    """For commands that check signatures."""

    trusted_keys: tuple[Path, ...] = option(
        "--trusted-key",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also trust this public key, besides /etc/envferry/trusted.d/*.pub; repeatable.",
    )


class SignKeyOptions(CommandOptions):
    """For commands that sign."""

    sign_keys: tuple[str, ...] = option(
        "--sign-key",
        multiple=True,
        # Names of keys in agents and tokens are no paths: one would lose slashes.
        type=click.Path(path_type=str),
        metavar="KEY",
        help="Sign with this key: a file, `ssh:NAME` in an ssh-agent, or a URI `pkcs11:…`;"
        " repeatable. Default: the key in ENVFERRY_SIGN_KEY, if any.",
    )


class KeylessOptions(CommandOptions):
    """For commands that sign artifacts, also without a key."""

    sigstore: bool = option(
        "--sigstore",
        is_flag=True,
        help="Sign artifacts with the identity of this CI job (extra `envferry[sigstore]`);"
        " Sigstore's public log will name the job and the artifacts.",
    )
    identity_token: Path | None = option(
        "--identity-token",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="With --sigstore: an OpenID Connect token for it; default: SIGSTORE_ID_TOKEN, else"
        " the one that the CI service provides.",
    )

    def keyless(self) -> KeylessSigner | None:
        """Return what signs without a key, if that is wanted; raise UsageError if it cannot."""
        from envferry.trust.keyless import load_keyless

        if self.sigstore:
            return load_keyless(self.identity_token)
        if self.identity_token:
            message = "`--identity-token` is for signatures without a key"
            raise UsageError(message, hint="add `--sigstore`")
        return None


class IdentityOptions(CommandOptions):
    """For commands that check who signed artifacts."""

    identity: str | None = option(
        "--identity",
        metavar="IDENTITY",
        help="Demand a Sigstore signature by this workflow's URL and ref, or mail address, or by"
        " one of /etc/envferry/identities.d/*.toml.",
    )
    issuer: str | None = option(
        "--issuer", metavar="URL", help="With --identity: the OpenID Connect provider behind it."
    )
    trusted_root: Path | None = option(
        "--trusted-root",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The Sigstore trusted root; default: trusted_root.json in identities.d, else the"
        " public one in sigstore's package.",
    )

    def with_identity(self, trust: Trust) -> Trust:
        """Return a trust that accepts this identity as well."""
        from envferry.trust.identities import Identities, Identity
        from envferry.trust.signing import refuse_world_writable

        known = trust.identities
        if bool(self.identity) != bool(self.issuer):
            message = "`--identity` and `--issuer` go together"
            hint = "GitHub's issuer is https://token.actions.githubusercontent.com"
            raise UsageError(message, hint=hint)
        accepted = known.accepted
        if self.identity and self.issuer:
            accepted = (*accepted, Identity(identity=self.identity, issuer=self.issuer))
        if self.trusted_root and not accepted:
            message = "`--trusted-root` is for the signature of an identity"
            raise UsageError(message, hint="add `--identity` and `--issuer`")
        if self.trusted_root:
            refuse_world_writable(self.trusted_root, "Sigstore trusted root")
        root = self.trusted_root or known.trusted_root
        return replace(trust, identities=Identities(accepted=accepted, trusted_root=root))


class TagExpiryOptions(CommandOptions):
    """For commands that move tags."""

    tag_days: int | None = option(
        "--tag-expires",
        type=click.IntRange(1, 36500),
        metavar="DAYS",
        help="The tags expire after so many days, unless they are moved or renewed.",
    )


class SignatureOptions(TrustedKeyOptions):
    """For commands that take artifacts in."""

    require_signature: bool = option(
        "--require-signature",
        is_flag=True,
        help="Reject what is unsigned even without trusted keys; see ENVFERRY_REQUIRE_SIGNATURES.",
    )


class EnvsDirOptions(CommandOptions):
    """For commands about what is installed on this host."""

    envs_dir: Path = option(
        "--envs-dir",
        type=click.Path(path_type=Path),
        default=lambda: settings().envs_dir,
        show_default="/opt/conda/envs",
        help="The directory that holds this host's environments.",
    )


class ThreadOptions(CommandOptions):
    """For commands that compress or write in parallel."""

    threads: int = option(
        "--threads",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        help="The number of threads; default: one for each core.",
    )


class NewTagOptions(CommandOptions):
    """For commands that publish."""

    tags: tuple[str, ...] = option(
        "--tag",
        multiple=True,
        metavar="TAG",
        help="Also point this tag at the artifact; repeatable.",
    )


class ChosenTagOptions(CommandOptions):
    """For commands that copy artifacts by their tags."""

    tags: tuple[str, ...] = option(
        "--tag",
        multiple=True,
        metavar="TAG",
        help="Only this tag and the artifact it points to; repeatable.",
    )


class OfflineOptions(CommandOptions):
    """For commands that download."""

    offline: bool = option(
        "--offline", is_flag=True, help="Use only what is in the cache; download nothing."
    )


class DryRunOptions(CommandOptions):
    """For commands that write."""

    dry_run: bool = option(
        "--dry-run", is_flag=True, help="Print what would be done, and change nothing."
    )
