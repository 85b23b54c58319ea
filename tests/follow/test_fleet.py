"""What hosts report, who reads it, and what a hostile one can do with it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.base.json import to_json
from envferry.base.limits import REPORT_BYTES
from envferry.errors import UsageError
from envferry.follow.reporting import own_report, report_if_new
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.host_reports import (
    HostReport,
    ReportedEnvironment,
    ReportedTag,
    read_fleet,
    write_report,
)
from envferry.registry.prune import RetentionPolicy, Scope, plan_prune
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(timezone.utc)
PLATFORM = current_platform()


@dataclass(frozen=True, kw_only=True)
class Site:
    """A registry, and a host that reports to it."""

    folder: Path
    cli: CliRunner

    @property
    def registry(self) -> Registry:
        return Registry.open(str(self.folder / "registry"))

    @property
    def hosts(self) -> Path:
        return self.folder / "registry/v1/hosts"

    def publish(self, version: bytes) -> str:
        contents = {"bin/tool": b"#!/bin/sh\n", "lib/data": version * 1000}
        artifact = installable_artifact(self.folder / "dist", contents)
        self.registry.publish(artifact, progress=Silent())
        self.registry.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)
        return artifact.manifest.id

    def reported(self) -> Any:
        """Return the one report that there is."""
        (path,) = self.hosts.iterdir()
        return json.loads(path.read_text())

    def old_untagged(self, id_: str) -> None:
        """Make an artifact old."""
        when = time.time() - 50 * 86400
        for path in (self.folder / "registry/v1/envs").glob(f"*/*/{id_}/*"):
            os.utime(path, (when, when))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "registry").mkdir()
    url = str(tmp_path / "registry")
    environ = {
        "ENVFERRY_REGISTRY": url,
        "ENVFERRY_REPORT_TO": url,
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
    }
    (tmp_path / "envs").mkdir()
    return Site(
        folder=tmp_path, cli=CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    )


def report_of(host: str, *ids: str, age: timedelta = timedelta(), **fields: Any) -> HostReport:
    """Return the report of another host."""
    environments = tuple(
        ReportedEnvironment(name="demo", id=id_, platform=PLATFORM, is_current=True) for id_ in ids
    )
    when = f"{NOW - age:%Y-%m-%dT%H:%M:%SZ}"
    common: dict[str, Any] = {"time": when, "envferry": "1", "environments": environments}
    return HostReport(host=host, **{**common, **fields})


def test_a_host_reports_what_it_has(site: Site) -> None:
    first = site.publish(b"one")
    site.cli.run("install", "demo@stable")
    second = site.publish(b"two")
    site.cli.run("follow", "demo@stable")
    found = site.reported()
    assert found["host"] == os.uname().nodename
    assert {one["id"]: one["is_current"] for one in found["environments"]} == {
        first: False,
        second: True,
    }
    assert [(one["ref"], one["id"]) for one in found["follows"]] == [("demo@stable", second)]
    site.cli.run("rollback", "demo")
    assert {one["id"]: one["is_current"] for one in site.reported()["environments"]} == {
        first: True,
        second: False,
    }
    shown = json.loads(site.cli.run("fleet", "--json").stdout)
    (host,) = shown["hosts"]
    assert [one["id"] for one in host["environments"]] == [first]
    text = site.cli.run("fleet", "demo", "--all").stdout
    assert f"demo@{second}" in text
    assert f"demo@{first}: current on 1 host" in text
    site.cli.run("remove", "demo", "--all", "--yes")
    assert site.reported()["environments"] == []


def test_a_host_that_never_got_its_environment_is_shown(site: Site) -> None:
    """The one that needs help most has nothing to show."""
    site.publish(b"one")
    write_report(site.registry, report_of("gpu01", "0" * 12))
    tag = ReportedTag(ref="demo@stable", id="", error="no space left on the disk")
    other = ReportedTag(ref="other@stable", id="")
    write_report(site.registry, report_of("gpu02", follows=(tag, other)))
    lines = site.cli.run("fleet", "demo").stdout.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("gpu02")]
    assert row[1:3] == ["nothing", "demo@stable"]
    assert "no space left on the disk" in " ".join(row)
    said = site.cli.run("fleet", "dmeo", expect=7)
    assert "no host reports an environment dmeo" in said.stderr
    assert "demo" in said.stderr.partition("hint: ")[2]


def test_without_the_setting_nothing_is_written(site: Site) -> None:
    site.publish(b"one")
    quiet = CliRunner(
        home=site.folder,
        cache=site.cli.cache,
        environ={**site.cli.environ, "ENVFERRY_REPORT_TO": ""},
    )
    quiet.run("install", "demo@stable")
    assert not site.hosts.exists()
    assert "set report_to" in quiet.run("fleet", expect=7).stderr


def test_a_report_that_fails_is_a_warning(site: Site) -> None:
    id_ = site.publish(b"one")
    site.hosts.write_text("in the way")
    finished = site.cli.run("install", "demo@stable")
    assert "warning: not reported to" in finished.stderr
    assert f"demo@{id_} installed" in finished.stdout


@pytest.mark.parametrize("place", ["s3://bucket/prefix", "https://127.0.0.1:9/x", "ftp://x/y"])
def test_wherever_a_report_cannot_go_the_installation_stands(site: Site, place: str) -> None:
    id_ = site.publish(b"one")
    environ = {**site.cli.environ, "ENVFERRY_REPORT_TO": place}
    environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    cli = CliRunner(home=site.folder, cache=site.cli.cache, environ=environ)
    finished = cli.run("install", "demo@stable")
    assert "warning: not reported to" in finished.stderr
    assert f"demo@{id_} installed" in finished.stdout


def test_nothing_new_is_not_reported_again(site: Site) -> None:
    site.publish(b"one")
    site.cli.run("install", "demo@stable")
    envs = site.folder / "envs"

    def again(hours: float) -> bool:
        moment = f"{NOW + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
        report = own_report(envs, host=os.uname().nodename, time=moment, release="2")
        return report_if_new(site.registry, report, envs)

    assert again(0), "another version of envferry is news"
    assert not again(1)
    assert not again(5)
    assert again(7)
    (envs / ".envferry/.reported").write_text("damaged")
    assert again(7)


def test_prune_keeps_what_a_host_has(site: Site) -> None:
    lone, shared, silent, newest = (site.publish(text) for text in (b"1", b"2", b"3", b"4"))
    for id_ in (lone, shared, silent):
        site.old_untagged(id_)
    write_report(site.registry, report_of("gpu01", shared))
    write_report(site.registry, report_of("gpu02", shared, newest))
    write_report(site.registry, report_of("gpu03", silent, age=timedelta(days=31)))
    policy = RetentionPolicy(keep_tagged=True)
    decisions = plan_prune(site.registry, Scope(), policy, NOW).decisions
    assert {one.id: (one.goes, one.reason) for one in decisions if one.id != newest} == {
        lone: (True, "no rule keeps it"),
        shared: (False, "installed on gpu01 and 1 more"),
        silent: (True, "no rule keeps it"),
    }
    shown = site.cli.run("prune", "--keep-tagged", "--reported-within", "60d").stdout
    assert "installed on gpu03" in shown


def test_reports_are_no_damage_of_a_registry(site: Site) -> None:
    site.publish(b"one")
    write_report(site.registry, report_of("gpu01"))
    assert not check_registry(site.registry, read_bytes=False, progress=Silent()).findings


HOSTILE = {
    "no-json.json": b"{",
    "not-utf8.json": b'{"host": "\xff"}',
    "deep.json": b"[" * 100_000,
    "large.json": b" " * (REPORT_BYTES + 1),
    "wrong.json": b'{"host": 1}',
    "year-zero.json": to_json(report_of("year-zero", time="0001-01-01T00:00:00+23:59")),
    "no-time.json": to_json(report_of("no-time", time="tomorrow")),
    "of-another.json": to_json(report_of("gpu01")),
    "newer.json": b'{"schema": 2}',
    "strange name": b"{}",
}


def test_hostile_reports_keep_nobody_from_reading_the_others(site: Site) -> None:
    id_ = site.publish(b"one")
    write_report(site.registry, report_of("gpu01", id_))
    for name, content in HOSTILE.items():
        (site.hosts / name).write_bytes(content)
    (site.hosts / "folder").mkdir()
    fleet = read_fleet(site.registry)
    assert [one.host for one in fleet.reports] == ["gpu01"]
    expected = {f"v1/hosts/{name}" for name in HOSTILE}
    assert expected - {"v1/hosts/strange name"} <= set(fleet.damaged)
    site.old_untagged(id_)
    assert plan_prune(site.registry, Scope(), RetentionPolicy(keep_tagged=True), NOW).decisions
    shown = site.cli.run("fleet")
    assert "gpu01" in shown.stdout
    assert "is not used" in shown.stderr


def test_what_a_host_cannot_rightly_say_is_left_out(site: Site) -> None:
    id_ = site.publish(b"one")
    nonsense: list[dict[str, Any]] = [
        {"name": "../etc", "id": id_},
        {"name": "demo", "id": "x" * 12},
        {"name": "demo", "id": id_, "ref": "r" * 401},
    ]
    environments = tuple(
        ReportedEnvironment(**{"platform": PLATFORM, "is_current": True, **one}) for one in nonsense
    )
    write_report(site.registry, report_of("gpu01", environments=environments))
    (found,) = read_fleet(site.registry).reports
    assert found.environments == ()


def test_a_terminal_is_not_written_to_by_hosts(site: Site) -> None:
    id_ = site.publish(b"one")
    report = report_of("gpu01", id_)
    one = msgspec.structs.replace(report.environments[0], ref="demo\x1b[2J")
    write_report(site.registry, msgspec.structs.replace(report, environments=(one,)))
    assert "\x1b[2J" not in site.cli.run("fleet").stdout


def test_a_host_writes_no_row_but_its_own(site: Site) -> None:
    id_ = site.publish(b"one")
    report = report_of("gpu01", id_)
    texts = {"ref": "demo\ngpu02  demo@other", "installed": "\n"}
    one = msgspec.structs.replace(report.environments[0], **texts)
    tag = ReportedTag(ref="demo\n", id=id_, polled="\n", waiting="\x85", error="\u2028gpu03")
    write_report(
        site.registry,
        msgspec.structs.replace(report, environments=(one,), follows=(tag,), envferry="\n"),
    )
    (found,) = read_fleet(site.registry).reports
    assert not {"\n", "\x85", "\u2028"} & set(repr_of(found))
    assert not [row for row in site.cli.run("fleet").stdout.splitlines() if row[:5] == "gpu02"]


def repr_of(report: HostReport) -> str:
    """Return all texts of a report."""
    texts = [*report.environments, *report.follows, report]
    return "".join(str(value) for one in texts for value in msgspec.structs.asdict(one).values()
                   if isinstance(value, str))  # fmt: skip


def test_a_report_from_the_future_keeps_nothing(site: Site) -> None:
    id_, _ = site.publish(b"one"), site.publish(b"two")
    site.old_untagged(id_)
    write_report(site.registry, report_of("gpu01", id_, age=-timedelta(days=3650)))
    decisions = plan_prune(site.registry, Scope(), RetentionPolicy(keep_tagged=True), NOW).decisions
    assert [one.goes for one in decisions if one.id == id_] == [True]


def test_too_long_a_report_is_refused_where_it_is_made(site: Site) -> None:
    ids = [f"{number:012x}" for number in range(4000)]
    with pytest.raises(UsageError, match="at most"):
        write_report(site.registry, report_of("gpu01", *ids))


def test_a_web_server_takes_no_report(site: Site) -> None:
    import http.server

    site.publish(b"one")
    with web_server(site.folder / "registry", http.server.SimpleHTTPRequestHandler) as url:
        registry = Registry.open(url)
        assert registry.resolve(Ref.parse("demo@stable"), PLATFORM)
        with pytest.raises(UsageError, match="is read-only: hosts cannot report to it"):
            write_report(registry, report_of("gpu01"))
        with pytest.raises(UsageError, match="cannot be listed"):
            read_fleet(registry)


def test_a_strange_name_of_a_host_is_refused(site: Site) -> None:
    with pytest.raises(UsageError, match="not a valid name of a host"):
        write_report(site.registry, report_of("../gpu01"))
