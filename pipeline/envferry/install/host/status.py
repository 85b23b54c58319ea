"""Whether the environments of a host are as they should be: for people and for monitoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.prometheus import Metric, timestamp
from envferry.base.text import human_bytes, plural
from envferry.errors import PipelineError
from envferry.install.host.disk_usage import measure_directory
from envferry.install.records.env_home import EnvHome
from envferry.install.records.installed import environment_names, open_installed
from envferry.install.records.last_results import read_state
from envferry.install.tree.tree_check import compare_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from envferry.install.host.disk_usage import DirectoryUsage
    from envferry.install.records.installation import Installation

Fault = Literal["current", "checks", "drift", "signature", "disk"]
EXIT_CODES: dict[Fault, int] = {"current": 7, "checks": 4, "drift": 8, "signature": 8, "disk": 11}
"""Of several faults the first one in this order decides (docs/errors.md)."""

ChecksState = Literal["passed", "failed", "not run", "none"]
SignatureState = Literal["trusted", "not trusted", "unknown", "no keys"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be."""

    fault: Fault
    text: str

    @property
    def code(self) -> int:
        """The exit code that it asks for."""
        return EXIT_CODES[self.fault]


class EnvironmentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One environment."""

    name: str
    id: str | None
    """The current installation; None without one."""
    version: str | None = None
    tag: str | None = None
    installed: str | None = None
    """When, in UTC."""
    checks: ChecksState = "none"
    drift: int | None = None
    """How many paths differ by size, mode or time; None where nothing can be compared."""
    signature: SignatureState = "no keys"
    findings: tuple[Finding, ...] = ()


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All that was asked for."""

    envs_dir: Path
    time: str
    environments: tuple[EnvironmentStatus, ...]
    usage: DirectoryUsage
    findings: tuple[Finding, ...]
    """What is wrong with the host, not with one environment."""

    @property
    def all_findings(self) -> list[tuple[str, Finding]]:
        """Every finding, with the environment that it is about."""
        found = [(status.name, one) for status in self.environments for one in status.findings]
        return found + [("", one) for one in self.findings]

    @property
    def exit_code(self) -> int:
        """0, or the code of the most important fault."""
        faults = {finding.fault for _, finding in self.all_findings}
        return next((code for fault, code in EXIT_CODES.items() if fault in faults), 0)


class StatusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at."""

    envs_dir: Path
    names: tuple[str, ...]
    """Empty for all."""
    trusted_keys: Collection[str]
    """Ids of the keys that this host trusts now."""
    min_free: int
    """Bytes."""
    time: str
    revoked: Mapping[tuple[str, str, str], str] = msgspec.field(default_factory=dict)
    """Why artifacts are revoked, by the name that they were published under, platform and id."""


def read_status(options: StatusOptions) -> HostStatus:
    """Look at environments as monitoring does: records, sizes and times; no file is read.

    It takes no lock and writes no note: it may run every minute, beside installs.
    """
    names = options.names or tuple(environment_names(options.envs_dir))
    environments = tuple(
        environment_status(EnvHome.of(options.envs_dir, name), options) for name in names
    )
    usage = measure_directory(options.envs_dir)
    findings = []
    if not environments:
        text = f"nothing is installed in {options.envs_dir}"
        findings.append(Finding(fault="current", text=text))
    if usage.free < options.min_free:
        least = human_bytes(options.min_free)
        text = f"{human_bytes(usage.free)} free in {options.envs_dir}, expected {least} at least"
        findings.append(Finding(fault="disk", text=text))
    return HostStatus(
        envs_dir=options.envs_dir,
        time=options.time,
        environments=environments,
        usage=usage,
        findings=tuple(findings),
    )


def environment_status(home: EnvHome, options: StatusOptions) -> EnvironmentStatus:
    """Look at the current installation of an environment."""
    id_ = home.current_id()
    if id_ is None:
        text = f"nothing is current at {home.link}"
        return EnvironmentStatus(
            name=home.name, id=None, findings=(Finding(fault="current", text=text),)
        )
    findings = []
    try:
        record = home.installation(id_)
        tree = open_installed(home, id_)
        differences = compare_tree(tree, quick=True, advance=lambda count: None)
    # What cannot be compared counts as drift: monitoring must not take it for healthy.
    except PipelineError as error:
        return EnvironmentStatus(
            name=home.name, id=id_, findings=(Finding(fault="drift", text=error.message),)
        )
    if differences:
        text = f"{plural(len(differences), 'path')} not as installed, such as {differences[0].path}"
        findings.append(Finding(fault="drift", text=text))
    checks, failed = checks_state(home, record)
    if failed:
        findings.append(Finding(fault="checks", text=f"the check `{failed}` failed"))
    if why := options.revoked.get((tree.index.name, record.platform, record.id)):
        findings.append(Finding(fault="signature", text=f"it was revoked: {why}"))
    signature = signature_state(record, options.trusted_keys)
    if signature == "not trusted":
        text = "no key that this host trusts now signed it"
        findings.append(Finding(fault="signature", text=text))
    return EnvironmentStatus(
        name=home.name,
        id=id_,
        version=record.version,
        tag=record.origin.tag if record.origin else None,
        installed=record.origin.time if record.origin else None,
        checks=checks,
        drift=len(differences),
        signature=signature,
        findings=tuple(findings),
    )


def checks_state(home: EnvHome, record: Installation) -> tuple[ChecksState, str]:
    """Return how the checks ended when they ran last, and the one that failed."""
    if not record.checks.argvs(record.prefix):
        return "none", ""
    last = read_state(home, record.id).checked
    if last is None:
        return "not run", ""
    return ("passed", "") if last.passed else ("failed", last.failed)


def signature_state(record: Installation, trusted: Collection[str]) -> SignatureState:
    """Say whether a key that is trusted now signed what was installed then."""
    if not trusted:
        return "no keys"
    if record.origin is None:
        return "unknown"
    return "trusted" if set(record.origin.signed_by) & set(trusted) else "not trusted"


def describe_status(status: HostStatus) -> Iterator[str]:
    """Yield a line for each environment, then what is wrong with it."""
    for one in status.environments:
        shown = f"{one.name}@{one.id}" if one.id else one.name
        yield (
            f"{shown}: not ok"
            if one.findings
            else f"{shown}: ok, checks: {one.checks}, signature: {one.signature}"
        )
        yield from (f"  {finding.fault}: {finding.text}" for finding in one.findings)
    yield from (f"{finding.fault}: {finding.text}" for finding in status.findings)


def info_of(with_id: Sequence[EnvironmentStatus]) -> Metric:
    """Return what names the current installations, as labels of a constant."""
    return Metric(
        name="envferry_environment_info",
        help="The current installation.",
        samples=tuple(
            (
                {
                    "name": one.name,
                    "id": one.id or "",
                    "version": one.version or "",
                    "tag": one.tag or "",
                },
                1,
            )
            for one in with_id
        ),
    )


def metrics_of(status: HostStatus) -> Iterable[Metric]:
    """Yield what monitoring stores of it."""
    with_id = [one for one in status.environments if one.id]

    def gauge(name: str, text: str, values: Iterable[tuple[str, float | None]]) -> Metric:
        samples = (({"name": label}, value) for label, value in values if value is not None)
        return Metric(name=f"envferry_{name}", help=text, samples=tuple(samples))

    yield info_of(with_id)
    yield gauge(
        "environment_current",
        "1 if an installation is current.",
        [(one.name, int(one.id is not None)) for one in status.environments],
    )
    yield gauge(
        "environment_ok",
        "1 if nothing was found.",
        [(one.name, int(not one.findings)) for one in status.environments],
    )
    yield gauge(
        "environment_installed_timestamp_seconds",
        "When the current installation was installed.",
        [(one.name, timestamp(one.installed)) for one in with_id],
    )
    yield gauge(
        "environment_checks_passed",
        "1 if the checks passed when they ran last, 0 if one failed; absent if they did not run.",
        [
            (one.name, int(one.checks == "passed"))
            for one in with_id
            if one.checks in ("passed", "failed")
        ],
    )
    yield gauge(
        "environment_drift_paths",
        "Paths whose size, mode or time is not as installed.",
        [(one.name, one.drift) for one in with_id],
    )
    yield gauge(
        "environment_signature_trusted",
        "1 if a key that is trusted now signed it; absent where that is unknown.",
        [
            (one.name, int(one.signature == "trusted"))
            for one in with_id
            if one.signature in ("trusted", "not trusted")
        ],
    )
    directory = {"envs_dir": str(status.envs_dir)}
    for name, text, value in (
        ("disk_used_bytes", "Bytes of all installations, shared files once.", status.usage.total),
        ("disk_free_bytes", "Bytes that are free there.", status.usage.free),
        ("status_exit_code", "The exit code of `envferry status`.", status.exit_code),
        ("status_timestamp_seconds", "When `envferry status` ran.", timestamp(status.time) or 0),
    ):
        yield Metric(name=f"envferry_{name}", help=text, samples=((directory, value),))
