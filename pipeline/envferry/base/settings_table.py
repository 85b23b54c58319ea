"""Every setting of envferry: its key in a file, its variable, its default, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

SYSTEM_FILE = Path("/etc/envferry/config.toml")
LINKS = ("auto", "reflink", "hardlink", "copy")
ValueKind = Literal[
    "text", "path", "paths", "flag", "number", "days", "gigabytes", "umask", "link", "secret"
]
Value = str | bool | int | tuple[str, ...] | None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    key: str
    """In a file; one that no file may have is known by its variable only."""
    variable: str
    kind: ValueKind
    help: str
    default: Value = None
    shown_default: str = ""
    option: str = ""
    in_files: bool = True


SETTINGS = (
    Setting(
        key="registry",
        variable="ENVFERRY_REGISTRY",
        kind="text",
        default="./artifacts",
        option="--registry",
        help="Where artifacts live: a directory, `s3://bucket/prefix` or `https://…`.",
    ),
    Setting(
        key="envs_dir",
        variable="ENVFERRY_ENVS_DIR",
        kind="path",
        default="/opt/conda/envs",
        option="--envs-dir",
        help="The directory that holds this host's environments.",
    ),
    Setting(
        key="trusted_dir",
        variable="ENVFERRY_TRUSTED_DIR",
        kind="path",
        default="/etc/envferry/trusted.d",
        option="--trusted-key adds to it",
        help="The directory of the public keys (`*.pub`) that this host trusts: if set, it must "
        "exist; `/dev/null` trusts none.",
    ),
    Setting(
        key="require_signatures",
        variable="ENVFERRY_REQUIRE_SIGNATURES",
        kind="flag",
        default=False,
        option="--require-signature",
        help="Reject everything unsigned. Once it is true anywhere, nothing can set it to false.",
    ),
    Setting(
        key="tag_grace_days",
        variable="ENVFERRY_TAG_GRACE_DAYS",
        kind="days",
        default=14,
        help="How many days an expired signed tag is still accepted, with a warning.",
    ),
    Setting(
        key="link",
        variable="ENVFERRY_LINK",
        kind="link",
        default="auto",
        option="--link",
        help="How installations share files: `auto`, `reflink`, `hardlink` or `copy`.",
    ),
    Setting(
        # A string: TOML allows no leading zeros in integers.
        key="umask",
        variable="ENVFERRY_UMASK",
        kind="umask",
        shown_default="that of the process",
        help='The umask to work with, in octal as text: `"022"`. Files of an environment have the '
        "archive's modes whatever it is.",
    ),
    Setting(
        key="post_install_hooks",
        variable="ENVFERRY_POST_INSTALL_HOOKS",
        kind="paths",
        default=(),
        shown_default="none",
        help="Programs to run when an environment was installed, rolled back or removed, with the "
        "arguments EVENT (`install`, `rollback`, `remove`), NAME, ID, PREFIX; only root or the "
        "user who runs envferry may be able to change them. The variable separates by `:`.",
    ),
    Setting(
        key="kernel_dir",
        variable="ENVFERRY_KERNEL_DIR",
        kind="path",
        option="--kernel",
        shown_default="none",
        help="Every environment with ipykernel gets a Jupyter kernel in this directory.",
    ),
    Setting(
        key="modulefile_dir",
        variable="ENVFERRY_MODULEFILE_DIR",
        kind="path",
        option="--modulefile",
        shown_default="none",
        help="Every environment gets a modulefile (Lmod, Environment Modules) in this directory.",
    ),
    Setting(
        key="report_to",
        variable="ENVFERRY_REPORT_TO",
        kind="text",
        shown_default="none",
        help="The registry that learns what this host has installed (`envferry fleet`): a "
        "directory or `s3://bucket/prefix`; this host must be allowed to write to `v1/hosts` "
        "there.",
    ),
    Setting(
        key="cache",
        variable="ENVFERRY_CACHE",
        kind="path",
        shown_default="`$XDG_CACHE_HOME/envferry`, else `~/.cache/envferry`",
        help="Downloads, builds and indexes; safe to delete.",
    ),
    Setting(
        # The default is that of `Limits` (base/limits.py).
        key="min_speed",
        variable="ENVFERRY_MIN_SPEED",
        kind="number",
        default=1024,
        help="Bytes per second: a server that sends less for half a minute is given up; 0 for any.",
    ),
    Setting(
        key="wheels_gigabytes",
        variable="ENVFERRY_WHEELS_GIGABYTES",
        kind="gigabytes",
        default=20,
        help="How many GB of extracted wheels that no build uses stay in the cache; 0 extracts "
        "none for later.",
    ),
    Setting(
        key="sigstore_root",
        variable="ENVFERRY_SIGSTORE_ROOT",
        kind="path",
        shown_default="the one that sigstore's own package has",
        help="A Sigstore `trusted_root.json`, for the attestations of pip packages.",
    ),
    Setting(
        key="sigstore_config",
        variable="ENVFERRY_SIGSTORE_CONFIG",
        kind="path",
        shown_default="the public Sigstore, by its TUF repository",
        help="A Sigstore client trust configuration: where `--sigstore` signs.",
    ),
    Setting(
        key="audit_database",
        variable="ENVFERRY_AUDIT_DATABASE",
        kind="path",
        option="--database",
        shown_default="`audit/advisories.json.zst` in the cache",
        help="The database of advisories that `envferry audit update` makes.",
    ),
    Setting(
        key="license_policy",
        variable="ENVFERRY_LICENSE_POLICY",
        kind="path",
        shown_default="none",
        help="A policy file whose `[licenses]` says what may be shipped: `lint` and `lock` warn, "
        "`release` publishes nothing else.",
    ),
    Setting(
        key="allow_races",
        variable="ENVFERRY_ALLOW_RACES",
        kind="flag",
        default=False,
        help="Write to object storage that ignores conditions on writes. The site sees to it that "
        "only one command writes at a time.",
    ),
    Setting(
        # Not in files: every user can read /etc/envferry/config.toml.
        key="sign_key",
        variable="ENVFERRY_SIGN_KEY",
        kind="secret",
        shown_default="none",
        option="--sign-key",
        help="A private key in PEM, for CI, or the name of one: `ssh:…`, `pkcs11:…`. Never in a"
        " file.",
        in_files=False,
    ),
    Setting(
        key="key_passphrase",
        variable="ENVFERRY_KEY_PASSPHRASE",
        kind="secret",
        shown_default="asked at the terminal",
        help="The passphrase of a key to sign with, or the PIN of a token. Never in a file of"
        " settings.",
        in_files=False,
    ),
    Setting(
        key="key_passphrase_file",
        variable="ENVFERRY_KEY_PASSPHRASE_FILE",
        kind="path",
        shown_default="none",
        help="A file whose first line is that passphrase or PIN.",
    ),
    Setting(
        key="tool_dir",
        variable="ENVFERRY_TOOL_DIR",
        kind="path",
        shown_default="see docs/one-file.md",
        help="Where the one file `envferry.run` unpacks itself.",
        in_files=False,
    ),
    Setting(
        key="run_file",
        variable="ENVFERRY_RUN_FILE",
        kind="path",
        shown_default="set by `envferry.run`",
        help="The one file that was started, which hints and systemd units then name.",
        in_files=False,
    ),
    Setting(
        # Not in files: it says which file to read.
        key="config",
        variable="ENVFERRY_CONFIG",
        kind="path",
        shown_default="`$XDG_CONFIG_HOME/envferry/config.toml`, else in `~/.config/envferry`",
        help="The user's settings file. /etc/envferry/config.toml is read before it.",
        in_files=False,
    ),
)
