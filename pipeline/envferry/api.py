"""envferry for programs: each stage and each query of a registry as one function.

    from envferry import api

    lock = api.lock("demo")  # specs/demo.yml -> specs/demo.conda-lock.yml
    built = api.build(lock)  # in a throwaway container without network
    artifact = api.pack(built)  # dist/demo-linux-64-ID.tar.zst
    api.push(artifact, registry="s3://envs/prod", tags=("stable",))

    api.install("demo@stable", registry="s3://envs/prod")  # on a training host
    api.verify("demo")

What is named in `__all__` is public and follows semantic versioning: within one major version no
name, parameter, field or error class goes away or changes its meaning; parameters and fields may
be added, with defaults. Everything else of the package may change at any time. A spec is a path, or
a name in `specs/`; a registry is a URL or what `open_registry` returns, by default that of the
settings (`ENVFERRY_REGISTRY`, /etc/envferry/config.toml), which count here as for the command line.

Every expected error is a PipelineError with `message`, `hint` and the `exit_code` of the command
line. The functions print nothing; they log warnings to the logger `envferry`, and report progress
to a `Progress`, if one is given. They may be called from threads. Libraries of a build machine (the
extra `build`) are loaded when `lock`, `build` or `pack` is called.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.artifacts import read_artifact
from envferry.build.build_options import BuildOptions
from envferry.config import settings
from envferry.engines.selection import Engine
from envferry.errors import (
    HostError,
    IntegrityError,
    NoSandbox,
    NotFound,
    PipelineError,
    PolicyViolation,
    SpecError,
    StaleLock,
    StoreError,
    TargetOccupied,
    ToolFailed,
    UsageError,
)
from envferry.index.queries import Entry, Filter, Match
from envferry.install.plan import InstallOptions
from envferry.install.records.installation import Installation
from envferry.install.tree.link_mode import Link
from envferry.install.verify import Verified
from envferry.lock.lock_options import LockOptions
from envferry.models import Artifact, BuiltEnv, Lock, Manifest
from envferry.names import SPECS_DIR, Ref, current_platform
from envferry.pack.pack_options import PackOptions
from envferry.progress import Progress, Silent
from envferry.registry import Registry
from envferry.registry.push import PushedArtifact, push_artifact
from envferry.trust.attestations import VerifiedArtifact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.index import RegistryIndex
    from envferry.trust.signing import PublicKey

__all__ = [
    "Artifact",
    "BuildOptions",
    "BuiltEnv",
    "Engine",
    "Entry",
    "Filter",
    "HostError",
    "InstallOptions",
    "Installation",
    "IntegrityError",
    "Link",
    "Lock",
    "LockOptions",
    "Manifest",
    "Match",
    "NoSandbox",
    "NotFound",
    "PackOptions",
    "PipelineError",
    "PolicyViolation",
    "Progress",
    "PushedArtifact",
    "Registry",
    "SpecError",
    "StaleLock",
    "StoreError",
    "TargetOccupied",
    "ToolFailed",
    "UsageError",
    "Verified",
    "VerifiedArtifact",
    "build",
    "fetch",
    "find",
    "install",
    "lock",
    "ls",
    "open_registry",
    "pack",
    "push",
    "read_lock",
    "show",
    "verify",
    "verify_signature",
]


def lock(
    spec: str | Path, options: LockOptions | None = None, *, progress: Progress | None = None
) -> Lock:
    """Solve a spec and write its lock beside it; what is locked already stays as far as it may.

    Raises NotFound without such a spec, SpecError when it is wrong or has no solution, StoreError
    when a channel or index cannot be reached; then the lock that was there stays.
    """
    # Each stage is imported where it is called: a host lacks the libraries of a build machine.
    from envferry.lock.stage import lock_spec
    from envferry.specs.reading import find_spec, read_spec

    wanted = read_spec(find_spec(str(spec), SPECS_DIR))
    return lock_spec(wanted, options=options or LockOptions(), progress=progress or Silent())


def read_lock(spec: str | Path) -> Lock:
    """Return the lock of a spec, which must be up to date; no network is needed.

    Raises NotFound without a spec or a lock, StaleLock when the spec has changed since then.
    """
    from envferry.lock.existing_lock import check_lock
    from envferry.specs.reading import find_spec, read_spec

    return check_lock(read_spec(find_spec(str(spec), SPECS_DIR)))


def build(
    source: Lock | str | Path,
    options: BuildOptions | None = None,
    *,
    engine: Engine = Engine.AUTO,
    image: str | None = None,
    progress: Progress | None = None,
) -> BuiltEnv:
    """Build a lock, or the up-to-date lock of a spec, in a container without network; check it.

    `image` is for docker and podman. Logins in the URLs of a spec's channels are used where the
    spec is named, not with a Lock. Raises NoSandbox when no engine works here, IntegrityError
    for a download that is not what was locked, SpecError when packages conflict,
    ToolFailed when a check fails, TargetOccupied while another process builds the same.
    """
    from envferry.build.downloads import DownloadCache
    from envferry.build.stage import build_env
    from envferry.engines.selection import choose_sandbox
    from envferry.lock.conda.channel_logins import logins_of_spec

    if isinstance(source, Lock):
        # A lock has its URLs without logins: only the spec that names its channels can have them.
        wanted, channels = source, {}
    else:
        wanted, channels = read_lock(source), logins_of_spec(source, SPECS_DIR)
    return build_env(
        wanted,
        sandbox=choose_sandbox(engine, image),
        cache=DownloadCache(settings().cache_dir / "downloads", channels=channels),
        options=options or BuildOptions(),
        progress=progress or Silent(),
    )


def pack(
    built: BuiltEnv | str, options: PackOptions | None = None, *, progress: Progress | None = None
) -> Artifact:
    """Pack a built environment, or the last build of a name, into one archive.

    Raises NotFound when nothing was built, SpecError when something cannot be carried,
    TargetOccupied while another process packs it into the same directory.
    """
    from envferry.build.finished_builds import read_build
    from envferry.pack.stage import pack_env

    found = read_build(built, BuildOptions().builds_dir) if isinstance(built, str) else built
    return pack_env(found, options=options or PackOptions(), progress=progress or Silent())


def open_registry(
    url: str | None = None,
    *,
    sign_keys: Iterable[Path | str] = (),
    trusted_keys: Iterable[Path] = (),
) -> Registry:
    """Open a registry: a directory, `s3://…`, `oci://…` or `https://…`.

    What is pushed through it is signed with the keys (files, `ssh:…`, `pkcs11:…`), else with
    ENVFERRY_SIGN_KEY, if there is one.
    What is read must be signed by a key that this host trusts or that is named, if there are any.
    Raises UsageError for a URL that is not valid, or where signatures are required and no key is
    trusted; SpecError for a key that cannot be read.
    """
    from envferry.trust.host_keys import load_signer, load_trust

    trust = load_trust(trusted_keys)
    return Registry.open(
        url or settings().registry,
        signer=load_signer(sign_keys),
        trust=trust.if_any,
    )


def push(
    artifact: Artifact | str | Path,
    *,
    registry: Registry | str | None = None,
    tags: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> PushedArtifact:
    """Publish an artifact, or an archive file, and point `tags` and `latest` to it.

    What exists in the registry is not sent again. Raises IntegrityError for a damaged archive, or
    when its id is taken by another one; StoreError when the registry cannot be reached or refuses.
    """
    from envferry.pack.earlier_pack import PackNotes

    ready = artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact))
    return push_artifact(
        ready,
        registry=_opened(registry),
        tags=tags,
        progress=progress or Silent(),
        notes=PackNotes(settings().cache_dir / "packs"),
    )


def fetch(
    ref: str,
    directory: str | Path = ".",
    *,
    registry: Registry | str | None = None,
    platform: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Bring NAME, NAME@TAG or NAME@ID to a directory, verified; a broken one is resumed.

    Raises NotFound for what the registry lacks, IntegrityError for other bytes than were
    published, or signatures that this host does not accept, HostError when the disk is full.
    """
    from envferry.registry.fetch import fetch_artifact

    Path(directory).mkdir(parents=True, exist_ok=True)
    return fetch_artifact(
        Ref.parse(ref),
        registry=_opened(registry),
        directory=Path(directory),
        platform=platform or current_platform(),
        progress=progress or Silent(),
    )


def install(
    source: Artifact | str | Path,
    options: InstallOptions | None = None,
    *,
    registry: Registry | str | None = None,
    trusted_keys: Iterable[Path] = (),
    progress: Progress | None = None,
) -> Installation:
    """Install an artifact, an archive file, NAME, NAME@TAG or NAME@ID, whole or not at all.

    Without options it goes to the envs directory of the settings. Raises HostError when this
    machine cannot run it, TargetOccupied when something else is there or an install of it runs,
    IntegrityError for damaged or unaccepted bytes, ToolFailed when a check fails: then the
    environment that was current stays so.
    """
    from envferry.install.stage import install_artifact
    from envferry.registry.accepted_sources import opened_archive, origin_of
    from envferry.trust.host_keys import load_trust

    wanted = options or InstallOptions(envs_dir=settings().envs_dir)
    trust = load_trust((*trusted_keys, *_named_keys(registry)), wanted.envs_dir)
    place = registry.url if isinstance(registry, Registry) else registry or settings().registry
    name = _archive_name(source)
    # An opened registry is used as it is; its URL alone goes into the record.
    with opened_archive(name, registry or place, trust) as (archive, manifest):
        origin = wanted.origin or origin_of(name, place, trust.signers_of(manifest))
        return install_artifact(
            archive,
            manifest,
            options=replace(wanted, origin=origin),
            progress=progress or Silent(),
        )


def verify(
    name: str,
    *,
    envs_dir: str | Path | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Verified:
    """Compare an installed NAME or NAME@ID with what was installed: `differences` says how.

    With `quick`, only sizes, modes and times are compared, and no file is read. Raises NotFound
    when it is not installed, IntegrityError when its record is damaged.
    """
    from envferry.install.records.actor import utc_now
    from envferry.install.records.env_home import EnvHome
    from envferry.install.verify import verify_installation

    env, _, id_ = name.partition("@")
    home = EnvHome.of(Path(envs_dir) if envs_dir else settings().envs_dir, env)
    return verify_installation(
        home, id_ or None, quick=quick, progress=progress or Silent(), time=utc_now()
    )


def verify_signature(
    source: Artifact | str | Path,
    *,
    registry: Registry | str | None = None,
    trusted_keys: Iterable[Path] = (),
    progress: Progress | None = None,
) -> VerifiedArtifact:
    """Verify who signed an archive file or NAME@TAG, and every byte of it.

    Raises UsageError when no key is trusted, IntegrityError when no trusted key signed it or a
    byte differs.
    """
    from envferry.registry.accepted_sources import is_file_ref, verify_signed, verify_signed_file
    from envferry.trust.host_keys import load_trust

    trust, shown = load_trust((*trusted_keys, *_named_keys(registry))), progress or Silent()
    name = _archive_name(source)
    if trust.if_any is None:
        message = f"{name}: signature not verified (no trusted keys)"
        raise UsageError(message, hint="name one: trusted_keys=[Path('release.pub')]")
    if is_file_ref(name):
        return verify_signed_file(Path(name), trust, progress=shown)
    # The keys of this call count, also for a registry that was opened with others.
    place = replace(_opened(registry), trust=trust)
    return verify_signed(_manifest(name, place, None), place, trust, progress=shown)


def ls(
    selection: Filter | None = None,
    *,
    registry: Registry | str | None = None,
    progress: Progress | None = None,
) -> tuple[Entry, ...]:
    """Return the artifacts of a registry, the newest first, by a local index.

    The index is brought up to date first. Raises StoreError when the registry cannot be reached or
    listed.
    """
    from envferry.index.queries import entries

    with closing(_index(registry, progress)) as index:
        return index.ask(entries(selection or Filter()))


def find(
    package: str,
    selection: Filter | None = None,
    *,
    registry: Registry | str | None = None,
    progress: Progress | None = None,
) -> tuple[Match, ...]:
    """Return the artifacts that hold a package: `torch`, `numpy>=1.26,<2`, `openssl=3.0`.

    Raises UsageError for what is not a package, StoreError when the registry cannot be listed.
    """
    from envferry.index import MatchSpec
    from envferry.index.queries import find as find_package

    wanted = MatchSpec.parse(package)
    with closing(_index(registry, progress)) as index:
        return index.ask(find_package(wanted, selection or Filter()))


def show(
    source: Artifact | str | Path,
    *,
    registry: Registry | str | None = None,
    platform: str | None = None,
) -> Manifest:
    """Return the manifest of NAME, NAME@TAG, NAME@ID or an archive file: packages, requirements.

    Raises NotFound for what the registry lacks, IntegrityError for a manifest that is damaged or
    not signed by a key that this host trusts.
    """
    from envferry.registry.accepted_sources import is_file_ref

    name = _archive_name(source)
    if is_file_ref(name):
        return read_artifact(Path(name)).manifest
    return _manifest(name, _opened(registry), platform)


def _opened(registry: Registry | str | None) -> Registry:
    """Return a registry that is opened already, or open it with the keys of this machine."""
    return registry if isinstance(registry, Registry) else open_registry(registry)


def _named_keys(registry: Registry | str | None) -> tuple[PublicKey, ...]:
    """Return the keys that were named when a registry was opened: they hold for all of its use."""
    if isinstance(registry, Registry) and registry.trust:
        return registry.trust.named_keys
    return ()


def _manifest(ref: str, registry: Registry, platform: str | None) -> Manifest:
    wanted, of = Ref.parse(ref), platform or current_platform()
    return registry.manifest(wanted.name, of, registry.resolve(wanted, of))


def _index(registry: Registry | str | None, progress: Progress | None) -> RegistryIndex:
    """Open the index of a registry and bring it up to date."""
    from envferry.index import RegistryIndex

    index = RegistryIndex.open(_opened(registry), settings().cache_dir)
    index.refresh(progress=progress)
    return index


def _archive_name(source: Artifact | str | Path) -> str:
    """Return what an artifact is called by: the absolute path of its archive, or a ref."""
    if isinstance(source, Artifact):
        return str(source.archive_path.absolute())
    # Absolute, and so with a slash: a Path is a file, even where a ref could be called like that.
    return str(source.absolute()) if isinstance(source, Path) else source
