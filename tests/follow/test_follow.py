"""A host that follows a tag: what it asks, when it changes, what it says."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from envferry.base.prometheus import render_metrics
from envferry.errors import NotFound, StoreError, ToolFailed, UsageError
from envferry.follow.follow_state import read_follow_state, state_path
from envferry.follow.metrics import follow_metrics
from envferry.follow.poll import Followed, FollowRequest, follow_once
from envferry.follow.units import options_line, write_units
from envferry.follow.window import MaintenanceWindow
from envferry.install.activation import roll_back
from envferry.install.plan import InstallOptions
from envferry.install.records.env_home import EnvHome
from envferry.models import Checks
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 28, 23, 10, tzinfo=timezone.utc)  # a Saturday
PLATFORM = current_platform()


@dataclass(frozen=True, kw_only=True)
class Site:
    """A registry and a host that follows demo@stable in it."""

    folder: Path
    envs: Path

    def publish(self, version: bytes, **fields: Any) -> str:
        """Publish a version and move the tag to it; return its id."""
        contents = {"bin/tool": b"#!/bin/sh\necho %b\n" % version, "lib/data": version * 1000}
        artifact = installable_artifact(self.folder / "dist", contents, **fields)
        registry = Registry.open(str(self.folder / "registry"))
        registry.publish(artifact, progress=Silent())
        registry.move_tag("demo", PLATFORM, "stable", artifact.manifest.id)
        return artifact.manifest.id

    def request(self, url: str = "", **changes: Any) -> FollowRequest:
        request = FollowRequest(
            ref=Ref.parse("demo@stable"),
            platform=PLATFORM,
            registry=Registry.open(url or str(self.folder / "registry")),
            home=self.home,
            options=lambda manifest: InstallOptions(envs_dir=self.envs),
            now=NOW,
        )
        return replace(request, **changes)

    def poll(self, url: str = "", **changes: Any) -> Followed:
        return follow_once(self.request(url, **changes), progress=Silent())

    @property
    def home(self) -> EnvHome:
        return EnvHome.of(self.envs, "demo")


@pytest.fixture
def site(tmp_path: Path, envs: Path) -> Site:
    (tmp_path / "registry").mkdir()
    return Site(folder=tmp_path, envs=envs)


def test_a_tag_is_followed(site: Site) -> None:
    first = site.publish(b"one")
    found = site.poll()
    assert (found.outcome, found.id, found.before) == ("installed", first, None)
    assert site.poll().outcome == "unchanged"
    second = site.publish(b"two")
    found = site.poll()
    assert (found.outcome, found.id, found.before) == ("installed", second, first)
    assert site.home.current_id() == second


def test_an_unchanged_tag_costs_one_request(site: Site) -> None:
    asked: list[str] = []

    class Counting(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            asked.append(f"{self.command} {self.path}")

    site.publish(b"one")
    with web_server(site.folder / "registry", Counting) as url:
        site.poll(url)
        asked.clear()
        assert site.poll(url).outcome == "unchanged"
        assert asked == [f"HEAD /v1/tags/demo/{PLATFORM}/stable"]
        asked.clear()
        site.poll(url, now=NOW + timedelta(days=2))
        assert len(asked) > 1, "once a day it is read again"


def test_an_update_waits_for_the_window(site: Site) -> None:
    first = site.publish(b"one")
    site.poll()
    second = site.publish(b"two")
    night = (MaintenanceWindow.parse("02:00-05:00"),)
    found = site.poll(windows=night)
    assert (found.outcome, found.reason) == ("waiting", "outside of the maintenance window")
    assert site.home.current_id() == first
    assert read_follow_state(site.home, "stable").waiting == found.reason
    assert site.poll(windows=night, now=NOW.replace(hour=3)).outcome == "installed"
    assert site.home.current_id() == second
    assert read_follow_state(site.home, "stable").waiting == ""


def test_an_update_waits_for_programs_to_end(site: Site) -> None:
    site.publish(b"one")
    site.poll()
    second = site.publish(b"two")
    with subprocess.Popen(["sleep", "1000"], cwd=site.envs / "demo/lib") as child:
        found = site.poll(when_unused=True)
        assert found.outcome == "waiting"
        assert f"(pid {child.pid})" in found.reason
        child.kill()
    if os.geteuid() == 0:
        assert site.poll(when_unused=True).id == second


def test_what_fails_its_checks_is_not_tried_again(site: Site, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    first = site.publish(b"one", checks=Checks(commands=("true",)))
    site.poll()
    bad = site.publish(b"two", checks=Checks(commands=(f"echo >>{ran}; exit 1",)))
    with pytest.raises(ToolFailed):
        site.poll()
    assert site.home.current_id() == first
    state = read_follow_state(site.home, "stable")
    assert (state.rejected, state.error_code) == (bad, 4)
    assert site.poll().outcome == "rejected"
    assert len(ran.read_text().splitlines()) == 1
    assert read_follow_state(site.home, "stable").error_code == 4, "monitoring still sees it"
    third = site.publish(b"three")
    assert site.poll().id == third
    assert read_follow_state(site.home, "stable").error_code == 0


@pytest.mark.parametrize("by_hand", [False, True])
def test_who_rolls_back_by_hand_is_obeyed(site: Site, by_hand: bool) -> None:
    first = site.publish(b"one")
    site.poll()
    second = site.publish(b"two")
    site.poll()
    if by_hand:  # as if `install` had installed it, and a poll found it current
        state_path(site.home, "stable").unlink()
        site.poll()
    roll_back(site.home, None)
    assert site.poll().outcome == "held"
    assert site.home.current_id() == first
    roll_back(site.home, second)
    assert site.poll().outcome == "unchanged"
    third = site.publish(b"three")
    assert site.poll().id == third


def test_a_registry_that_does_not_answer_is_remembered(site: Site) -> None:
    with pytest.raises(NotFound):
        site.poll()
    first = site.publish(b"one")
    site.poll()
    with pytest.raises(StoreError):
        site.poll("http://127.0.0.1:9")
    state = read_follow_state(site.home, "stable")
    assert (state.error_code, state.error_at) == (9, "2026-11-28T23:10:00Z")
    text = render_metrics(follow_metrics("demo@stable", site.home.current_id(), state))
    assert 'envferry_follow_last_error_code{ref="demo@stable"} 9\n' in text
    assert f'id="{first}",current="{first}"' in text
    assert site.poll().outcome == "unchanged"
    assert read_follow_state(site.home, "stable").error == ""


def test_a_damaged_note_is_found_out_again(site: Site) -> None:
    site.publish(b"one")
    site.poll()
    state_path(site.home, "stable").write_text("{")
    assert site.poll().outcome == "unchanged"


def test_old_installations_go_if_that_is_wanted(site: Site) -> None:
    ids = []
    for version in (b"one", b"two", b"three"):
        ids.append(site.publish(version))
        site.poll(keep=2)
    left = [one.id for one in site.home.installations()]
    # Where processes cannot be looked into, the oldest stays.
    assert set(left) in ({ids[1], ids[2]}, set(ids))
    if os.geteuid() == 0:
        assert set(left) == {ids[1], ids[2]}


def test_a_dry_run_changes_nothing(site: Site) -> None:
    site.publish(b"one")
    assert site.poll(dry_run=True).outcome == "would install"
    assert list(site.envs.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("02:00-05:00", ["Sat 02:00", "Sun 04:59"], ["Sat 01:59", "Sat 05:00"]),
        (
            "Sat,Sun 22:00-04:00",
            ["Sat 22:00", "Mon 03:59"],
            ["Mon 22:00", "Sat 03:59", "Sat 12:00"],
        ),
        ("Tue 00:00-00:00", ["Tue 00:00", "Tue 23:59"], ["Mon 23:59", "Wed 00:00"]),
    ],
)
def test_windows(text: str, inside: list[str], outside: list[str]) -> None:
    window = MaintenanceWindow.parse(text)
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

    def moment(text: str) -> datetime:
        day, clock = text.split()
        first = datetime(2026, 11, 23, tzinfo=timezone.utc)  # a Monday
        hour, minute = map(int, clock.split(":"))
        return first + timedelta(days=names.index(day), hours=hour, minutes=minute)

    assert all(window.contains(moment(one)) for one in inside)
    assert not any(window.contains(moment(one)) for one in outside)


@pytest.mark.parametrize("text", ["", "night", "25:00-26:00", "2-5", "Foo 02:00-03:00", "02:00"])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid window"):
        MaintenanceWindow.parse(text)


def test_the_command(site: Site, tmp_path: Path) -> None:
    hook, textfile = tmp_path / "hook", tmp_path / "follow.prom"
    hook.write_text(f"#!/bin/sh\necho $1 $3 >>{tmp_path}/said\n")
    hook.chmod(0o755)
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_ENVS_DIR": str(site.envs),
        "ENVFERRY_POST_INSTALL_HOOKS": str(hook),
    }
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    first = site.publish(b"one")
    words = ("follow", "demo@stable", "--textfile", textfile)
    assert cli.run(*words).stdout == f"demo@stable: installed {first}\n"
    assert cli.run(*words).stdout == f"demo@stable: {first} is current\n"
    assert (tmp_path / "said").read_text() == f"install {first}\n"
    assert 'envferry_follow_up_to_date{ref="demo@stable"} 1\n' in textfile.read_text()
    shown = cli.run("list", "demo").stdout
    assert f"from       {tmp_path}/registry" in shown
    second = site.publish(b"two", checks=Checks(commands=("false",)))
    cli.run(*words, expect=4)
    assert 'envferry_follow_last_error_code{ref="demo@stable"} 4\n' in textfile.read_text()
    assert f"{first} stays, {second} rejected" in cli.run(*words).stdout
    cli.run("follow", f"demo@{first}", expect=2)
    cli.run("follow", "demo@stable", "--window", "night", expect=2)


def test_monitoring_learns_of_options_and_keys_that_are_wrong(site: Site, tmp_path: Path) -> None:
    """They come from files of the host, and a service that ends so never asks the registry."""
    textfile = tmp_path / "follow.prom"
    environ = {
        "ENVFERRY_REGISTRY": str(tmp_path / "registry"),
        "ENVFERRY_ENVS_DIR": str(site.envs),
    }
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    first = site.publish(b"one")
    words = ("follow", "demo@stable", "--textfile", textfile)
    cli.run(*words)
    wrong = ((("--trusted-key", tmp_path / "none.pub"), 7), (("--window", "night"), 2))
    for options, code in wrong:
        cli.run(*words, *options, expect=code)
        text = textfile.read_text()
        assert f'envferry_follow_last_error_code{{ref="demo@stable"}} {code}\n' in text
        assert f'id="{first}",current="{first}"' in text
    cli.run(*words)
    assert 'envferry_follow_last_error_code{ref="demo@stable"} 0\n' in textfile.read_text()


@pytest.mark.parametrize("command", [("follow", "demo@stable"), ("status",)])
def test_a_textfile_that_no_collector_reads_is_refused(
    site: Site, tmp_path: Path, command: tuple[str, ...]
) -> None:
    environ = {"ENVFERRY_ENVS_DIR": str(site.envs)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    said = cli.run(*command, "--textfile", tmp_path / "metrics.txt", expect=2)
    assert "does not end in .prom" in said.stderr
    assert not (tmp_path / "metrics.txt").exists()


@pytest.fixture
def units(tmp_path: Path) -> Callable[[str], Path]:
    def write(command: str) -> Path:
        folder = tmp_path / "units"
        write_units(folder, command)
        return folder

    return write


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(units: Callable[[str], Path]) -> None:
    folder = units("/bin/true")
    names = []
    for path in list(folder.iterdir()):
        named = folder / path.name.replace("@", "@demo@stable")
        path.rename(named)
        names.append(named)
    finished = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def test_the_units_start_this_envferry(tmp_path: Path) -> None:
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    said = cli.run("follow", "demo@stable", "--write-units", tmp_path / "units").stdout
    *_, start = said.splitlines()
    assert start.endswith("systemctl enable --now envferry-follow@demo@stable.timer")
    assert "OPTIONS" not in said
    text = (tmp_path / "units/envferry-follow@.service").read_text()
    (started,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    program, *words = started.split()
    assert Path(program).is_file()
    assert words == ["follow", "--keep", "2", "$OPTIONS", "%i"]
    assert sorted(path.name for path in (tmp_path / "units").iterdir()) == [
        "envferry-follow@.service",
        "envferry-follow@.timer",
    ]


def test_what_was_asked_for_reaches_the_units(tmp_path: Path) -> None:
    """The units are templates: options of one tag stand in a file of its own."""
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    words = ("--registry", "disk", "--envs-dir", "my envs", "--when-unused", "--link", "copy",
             "--window", "Sat,Sun 22:00-04:00", "--window", "02:00-05:00", "--keep", "3",
             "--kernel", "--write-units", tmp_path / "units")  # fmt: skip
    said = json.loads(cli.run("follow", "demo@stable", *words, "--json").stdout)
    *_, told, start = cli.run("follow", "demo@stable", *words).stdout.splitlines()
    expected = [
        *("--window=Sat,Sun 22:00-04:00", "--window=02:00-05:00", "--when-unused", "--keep=3"),
        *("--link=copy", "--kernel=", f"--registry={tmp_path}/disk"),
        f"--envs-dir={tmp_path}/my envs",
    ]
    assert start.startswith("systemctl daemon-reload")
    assert told.endswith(" > /etc/envferry/follow-demo@stable.env")
    assert said["options"] in shlex.split(told)
    name, _, value = said["options"].partition("=")
    (text,) = shlex.split(value)
    assert name == "OPTIONS"
    assert sorted(shlex.split(text)) == sorted(expected)


def test_options_of_services_are_quoted_twice() -> None:
    assert options_line([]) == ""
    assert options_line(["--keep=3"]) == 'OPTIONS="--keep=3"'
    odd = ["--envs-dir=/a b/$c \"d\" 'e' \\f"]
    (value,) = shlex.split(options_line(odd).partition("=")[2])
    assert shlex.split(value) == odd
