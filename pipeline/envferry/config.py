"""Settings: the only place that reads environment variables."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.channel_credentials import credentials_paths
from envferry.base.logins import Logins, index_logins
from envferry.base.proxies import read_proxies
from envferry.base.secret import Secret
from envferry.base.settings_files import read_settings
from envferry.base.settings_table import SYSTEM_FILE
from envferry.base.site_indexes import SiteIndexes, read_site_indexes
from envferry.base.uv_variables import deciding_variables, environ_for_uv
from envferry.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envferry.base.settings_files import SettingValue

SOURCE_DATE_EPOCH = 315532800
"""1980-01-01, the earliest time that zip files can hold; the mtime of everything in an archive."""


COMPLETION_VARIABLE = "_ENVFERRY_COMPLETE"
TRUSTED_DIR = Path("/etc/envferry/trusted.d")
SIGN_KEY = "ENVFERRY_SIGN_KEY"
RUN_FILE = "ENVFERRY_RUN_FILE"
KEY_PASSPHRASE = "ENVFERRY_KEY_PASSPHRASE"
IDENTITY_TOKEN = "SIGSTORE_ID_TOKEN"
"""What cosign and GitLab call it."""
IDENTITY_VARIABLES = (
    *(IDENTITY_TOKEN, "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"),
)
"""With these, a CI job says who it is."""
REQUIREMENT_FILE = "require-signatures"
"""Beside the directory of trusted keys; its content does not matter."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says; command line options win over it."""

    registry: str
    """Where artifacts and tags live: a directory, `s3://…` or `https://…`."""
    cache: Path | None
    """Where the cache is; None where neither a setting nor a home directory says so."""
    envs_dir: Path
    """Where a host keeps its environments."""
    source_date_epoch: int
    """Seconds since 1970 that become the mtime of every archive member."""
    trusted_dir: Path
    """Where the public keys (`*.pub`) are that this host trusts; /dev/null for none."""
    sign_key: Secret | None
    """A private key in PEM, for CI, which has no files of its own; or the name of one."""
    key_passphrase: Secret | None = None
    """What unlocks the keys to sign with."""
    key_passphrase_file: Path | None = None
    """A file whose first line does."""
    ssh_agent: str = ""
    """The socket of an ssh-agent."""
    min_speed: int = 1024
    """Bytes per second: a server that sends less, for half a minute, is given up; 0 for any."""
    sigstore_root: Path | None = None
    """A Sigstore trusted root that replaces the one that sigstore's own package has."""
    sigstore_config: Path | None = None
    """The client trust configuration of the Sigstore that signs; None for the public one."""
    identity_token: Secret | None = None
    """An OpenID Connect token that a Sigstore takes."""
    requirement: str = ""
    """What says that nothing unsigned is taken in: a variable, or a line of a file."""
    link: str = "auto"
    """How installations share files."""
    umask: int | None = None
    hooks: tuple[str, ...] = ()
    """Programs to run after an installation became current, or was removed."""
    kernel_dir: Path | None = None
    modulefile_dir: Path | None = None
    trusted_dir_set_by: str = ""
    """The variable, or the line of a file, that names `trusted_dir`; empty for the default."""
    allow_races: bool = False
    report_to: str = ""
    """The registry that learns what this host has; empty for none."""
    wheels_gigabytes: int = 20
    """How much of extracted wheels that no build uses stays in the cache."""
    tag_grace_days: int = 14
    """How long a signed tag is taken after it has expired."""
    audit_database: Path | None = None
    """The database of advisories, where it is not in the cache."""
    license_policy: Path | None = None
    """The policy that says which licences may be shipped."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], files: Iterable[Path] = ()) -> Settings:
        """Read settings files, then `ENVFERRY_*`, which win over them, and the epoch."""
        told = read_settings(environ, files)

        def text(key: str) -> str:
            value = told[key].value
            return value if isinstance(value, str) else ""

        def absolute(key: str) -> Path | None:
            return Path(text(key)).absolute() if text(key) else None

        home = home_of(environ)
        home_cache = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
        cache = text("cache") or (f"{home_cache}/envferry" if home_cache else "")
        hooks = told["post_install_hooks"].value
        epoch = environ.get("SOURCE_DATE_EPOCH") or str(SOURCE_DATE_EPOCH)
        if not epoch.isdecimal():
            message = f"SOURCE_DATE_EPOCH is {epoch!r}, expected seconds since 1970"
            raise SpecError(message)
        return cls(
            registry=text("registry"),
            # What is noted of a build or an installation holds in other directories too.
            cache=Path(cache).absolute() if cache else None,
            envs_dir=Path(text("envs_dir")).absolute(),
            source_date_epoch=int(epoch),
            trusted_dir=Path(text("trusted_dir")),
            trusted_dir_set_by=told["trusted_dir"].set_by,
            sign_key=_secret(environ, SIGN_KEY),
            key_passphrase=_secret(environ, KEY_PASSPHRASE),
            key_passphrase_file=(
                Path(text("key_passphrase_file")) if text("key_passphrase_file") else None
            ),
            ssh_agent=environ.get("SSH_AUTH_SOCK", ""),
            sigstore_root=absolute("sigstore_root"),
            sigstore_config=absolute("sigstore_config"),
            identity_token=_secret(environ, IDENTITY_TOKEN),
            min_speed=int(str(told["min_speed"].value)),
            requirement=(
                told["require_signatures"].source if told["require_signatures"].value else ""
            ),
            link=text("link"),
            umask=int(text("umask"), 8) if text("umask") else None,
            hooks=hooks if isinstance(hooks, tuple) else (),
            kernel_dir=Path(text("kernel_dir")) if text("kernel_dir") else None,
            modulefile_dir=Path(text("modulefile_dir")) if text("modulefile_dir") else None,
            allow_races=bool(told["allow_races"].value),
            report_to=text("report_to"),
            wheels_gigabytes=int(str(told["wheels_gigabytes"].value)),
            tag_grace_days=int(str(told["tag_grace_days"].value)),
            audit_database=absolute("audit_database"),
            license_policy=absolute("license_policy"),
        )

    @property
    def cache_dir(self) -> Path:
        """Verified downloads and built environments; safe to delete.

        Raises SpecError where nothing says where that is.
        """
        if self.cache is None:
            message = f"no place for the cache: HOME is not set, and user {os.getuid()} has no home"
            raise SpecError(
                message, hint="set ENVFERRY_CACHE to a folder that this user can write to"
            )
        return self.cache

    def signatures_required_by(self) -> str | None:
        """Return what says that nothing unsigned is taken in: a variable or a file; else None.

        /etc has its say wherever ENVFERRY_TRUSTED_DIR leads.
        """
        if self.requirement:
            return self.requirement
        places = (TRUSTED_DIR.parent, self.trusted_dir.parent)
        files = (place / REQUIREMENT_FILE for place in places)
        # `lexists`: a link that leads nowhere still says that signatures are required.
        return next((str(file) for file in files if os.path.lexists(file)), None)


def home_of(environ: Mapping[str, str]) -> str | None:
    """Return the home that `HOME` names, or the user's own where it is not set.

    None for a user without an entry in passwd, as container platforms like to start programs.
    """
    try:
        return environ.get("HOME") or str(Path("~").expanduser())
    except RuntimeError:
        return None


def host_name() -> str:
    """Return what this machine calls itself."""
    return os.uname().nodename


def acting_user() -> str:
    """Return who runs this process; of one that sudo started, also who asked for it."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container without a passwd entry
        user = f"uid {os.geteuid()}"
    asked = os.environ.get("SUDO_USER", "")
    # Every user can set the variable, and what it says goes into histories and statements. The
    # backslash is for names of a Windows domain: DOMAIN\user.
    is_name = re.fullmatch(r"[A-Za-z0-9_.@\\-]{1,64}", asked)
    return f"{asked} as {user}" if is_name and asked != user else user


def environment_variable(name: str) -> str:
    """Return what a variable says that a spec names; empty where it is not set."""
    return os.environ.get(name, "")


def wants_colours() -> bool:
    """Whether text may have colours: not with NO_COLOR (no-color.org), not on a plain terminal."""
    return not os.environ.get("NO_COLOR") and not is_plain_terminal()


def is_plain_terminal() -> bool:
    """Whether the terminal only prints lines, as those of editors and logs do."""
    return os.environ.get("TERM") == "dumb"


def settings_files() -> tuple[Path, ...]:
    """Return the settings files of this process, the least important first."""
    home = home_of(os.environ)
    folder = os.environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    own = os.environ.get("ENVFERRY_CONFIG") or (f"{folder}/envferry/config.toml" if folder else "")
    return (SYSTEM_FILE, *([Path(own)] if own else []))


def settings() -> Settings:
    """Return the settings of this process."""
    return Settings.from_environ(os.environ, settings_files())


def settings_with_sources() -> dict[str, SettingValue]:
    """Return each setting of this process, and what says so."""
    return read_settings(os.environ, settings_files())


def user_kernels() -> Path:
    """Return the directory where Jupyter looks for kernels of this user; of root, for all users.

    https://docs.jupyter.org/en/latest/use/jupyter-directories.html
    """
    if os.geteuid() == 0:
        return Path("/usr/local/share/jupyter/kernels")
    home = home_of(os.environ)
    data = os.environ.get("JUPYTER_DATA_DIR") or (f"{home}/.local/share/jupyter" if home else "")
    if not data:
        message = "no place for a Jupyter kernel: HOME is not set"
        raise SpecError(message, hint="give --kernel DIR")
    return Path(data) / "kernels"


def _secret(environ: Mapping[str, str], name: str) -> Secret | None:
    """Return a variable that is a secret; None where it is empty or not set."""
    text = environ.get(name)
    return Secret(text) if text else None


def allows_races() -> bool:
    """Whether a setting accepts object storage that ignores conditions on writes."""
    return settings().allow_races


def started_file() -> Path | None:
    """Return the one-file tool that was started; None where an installed envferry was."""
    path = os.environ.get(RUN_FILE, "")
    return Path(path) if path else None


def is_completing() -> bool:
    """Whether a shell has asked how a line goes on, by click's protocol."""
    return COMPLETION_VARIABLE in os.environ


def child_environ(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with `changes`, None removing a name: for children.

    No child gets the key to sign with, nor what unlocks it, nor what a CI job says who it is with,
    nor is it the one-file tool.
    """
    kept_back = (SIGN_KEY, KEY_PASSPHRASE, RUN_FILE, *IDENTITY_VARIABLES)
    changes = {**dict.fromkeys(kept_back), **changes}
    environ = {**os.environ, **{name: text or "" for name, text in changes.items()}}
    return {name: text for name, text in environ.items() if changes.get(name, "") is not None}


def identity_environ(**changes: str | None) -> dict[str, str]:
    """Return `child_environ` for what asks a CI service who this job is."""
    told = {name: os.environ[name] for name in IDENTITY_VARIABLES if name in os.environ}
    return child_environ(**{**told, **changes})


def tidy_environment() -> None:
    """Keep relative PATH entries from children, and what the one-file tool finds itself by."""
    os.environ.pop("LD_ORIGIN_PATH", None)  # ld.so(8)
    if "PATH" in os.environ:
        entries = os.pathsep.join(filter(os.path.isabs, os.environ["PATH"].split(os.pathsep)))
        os.environ["PATH"] = entries or os.defpath


def uv_environ(**changes: str | None) -> dict[str, str]:
    """Return `child_environ` for uv, without what would decide its answer."""
    return environ_for_uv(child_environ(**changes))


def uv_settings_skipped() -> tuple[str, ...]:
    """Return the variables that would decide for uv, and are kept from it."""
    return deciding_variables(os.environ)


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the servers that downloads come from."""

    certificates: Path | None
    """A file of CA certificates that replaces the built-in ones."""
    netrc: Path | None
    """Where credentials for hosts may be found."""
    proxies: dict[str, str]
    """Proxy URLs by scheme (`http`, `https`, `all`), and `no`: the hosts to reach without."""
    logins: dict[str, Secret] = msgspec.field(default_factory=dict)
    """`user:password` as URLs have it, by `host:port`: from uv's variables that name indexes."""
    credentials: tuple[Path, ...] = ()
    """Where rattler and pixi keep logins of conda channels."""

    def all_logins(self, channels: Mapping[str, Secret] | None = None) -> Logins:
        """Return what says which login a request gets; `channels` as in `Logins`."""
        return Logins(
            indexes=self.logins,
            netrc=self.netrc,
            credentials=self.credentials,
            channels=channels,
        )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> NetworkSettings:
        """Read what pip, requests and curl read: certificates and proxies."""
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        certificates = next((environ[name] for name in names if environ.get(name)), None)
        home = home_of(environ)
        place = environ.get("NETRC") or (f"{home}/.netrc" if home else "")
        netrc = Path(place) if place and os.access(place, os.R_OK) else None
        return cls(
            certificates=Path(certificates) if certificates else None,
            netrc=netrc,
            proxies=read_proxies(environ),
            logins=index_logins(environ, Path(home) if home else None),
            credentials=credentials_paths(environ, home),
        )


def site_indexes() -> SiteIndexes:
    """Return the package indexes that this machine's settings name."""
    home = home_of(os.environ)
    return read_site_indexes(os.environ, Path(home) if home else None)


def network() -> NetworkSettings:
    """Return the network settings of this process."""
    return NetworkSettings.from_environ(os.environ)


def registry_login_paths() -> tuple[Path, ...]:
    """Return where podman and docker keep the logins of OCI registries, in their order.

    https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
    """
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return (Path(named),)
    home, runtime = home_of(os.environ), os.environ.get("XDG_RUNTIME_DIR")
    settings_home = os.environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    docker = os.environ.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    places = (
        f"{runtime}/containers/auth.json" if runtime else "",
        f"{settings_home}/containers/auth.json" if settings_home else "",
        f"{docker}/config.json" if docker else "",
    )
    return tuple(Path(place) for place in places if place)


def condarc_paths() -> tuple[Path, ...]:
    """Return the conda settings files that are there, in the order in which they are read."""
    home = home_of(os.environ)
    named = os.environ.get("CONDARC")
    root = os.environ.get("CONDA_ROOT") or os.environ.get("MAMBA_ROOT_PREFIX")
    candidates = [
        Path("/etc/conda/.condarc"),
        *([Path(root) / ".condarc"] if root else []),
        *([Path(home) / ".conda" / ".condarc", Path(home) / ".condarc"] if home else []),
        *([Path(named)] if named else []),
    ]
    return tuple(path for path in candidates if path.is_file())
