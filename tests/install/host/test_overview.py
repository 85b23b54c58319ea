"""What a host says of its installations: list, history, du, status, checks."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.base.files import exclusive_lock, write_bytes
from envferry.base.json import to_json
from envferry.errors import HostError, NotFound, ToolFailed, UsageError
from envferry.install.activation import roll_back
from envferry.install.host.disk_usage import measure_directory
from envferry.install.host.host_overview import list_installed, read_history
from envferry.install.host.status import HostStatus, StatusOptions, metrics_of, read_status
from envferry.install.later_checks import check_installed
from envferry.install.records.env_home import HISTORY, EnvHome
from envferry.install.records.events import MOST_EVENTS, Actor, note_event, read_events
from envferry.install.records.installation import Installation, Origin
from envferry.install.records.installed import chosen_id
from envferry.install.records.last_results import read_state
from envferry.install.remove import remove_named, remove_whole
from envferry.install.tree.link_mode import Link
from envferry.install.verify import verify_installation
from envferry.models import Checks
from envferry.progress import Silent
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner
from tests.support.installing import install, manifest_of
from tests.support.packed import random_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIME = "2026-11-28T23:10:00Z"
ACTOR = Actor(time=TIME, user="alice as root")


def origin(tag: str = "stable", **fields: Any) -> Origin:
    return Origin(
        time=TIME,
        user="alice as root",
        source="s3://envs/prod",
        ref=f"demo@{tag}",
        tag=tag,
        **fields,
    )


@pytest.fixture
def add(tmp_path: Path, envs: Path) -> Callable[..., Installation]:
    """Return what installs a version of `demo`."""

    def add(version: bytes, checks: Checks | None = None, **options: Any) -> Installation:
        path = tmp_path / f"{version.decode()}.tar.zst"
        made = manifest_of(path, version, checks=checks or Checks())
        manifest = msgspec.structs.replace(made, version=version.decode())
        options.setdefault("origin", origin())
        return install(path, envs, manifest, **options)

    return add


def look(envs: Path, *names: str, keys: tuple[str, ...] = (), min_free: int = 0) -> HostStatus:
    options = StatusOptions(
        envs_dir=envs, names=names, trusted_keys=keys, min_free=min_free, time=TIME
    )
    return read_status(options)


def faults(status: HostStatus) -> list[str]:
    return [finding.fault for _, finding in status.all_findings]


def test_a_list_says_who_installed_what_when_and_from_where(
    add: Callable[..., Installation], envs: Path
) -> None:
    old, new = add(b"one"), add(b"two", origin=origin("latest", signed_by=("ab" * 8,)))
    first, second = list_installed(envs)
    assert [first.id, second.id] == [new.id, old.id]
    assert (first.is_current, first.steps_back, first.version) == (True, 0, "two")
    assert (second.is_current, second.steps_back, second.version) == (False, 1, "one")
    assert first.origin == origin("latest", signed_by=("ab" * 8,))
    assert first.prefix == str(envs / "demo")
    assert first.own_bytes >= 100_000
    assert (first.users, first.state.verified) == ({}, None)


def test_a_list_says_which_processes_use_it(
    add: Callable[..., Installation],
    envs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(b"one")
    monkeypatch.chdir(envs / "demo/lib")
    (facts,) = list_installed(envs, "demo")
    assert os.getpid() in facts.users
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    (shown,) = json.loads(cli.run("list", "--envs-dir", envs, "--json").stdout)
    assert str(os.getpid()) in shown["users"]


def test_records_of_older_versions_are_read_and_shown(
    add: Callable[..., Installation], envs: Path
) -> None:
    old = add(b"one", origin=None)
    home = EnvHome.of(envs, "demo")
    text = json.loads(home.record(old.id).read_bytes())
    for key in ("version", "origin", "sharing"):
        del text[key]
    write_bytes(home.record(old.id), json.dumps(text).encode())
    (facts,) = list_installed(envs)
    assert (facts.id, facts.origin, facts.version) == (old.id, None, None)
    assert read_history(home).events == ()
    assert look(envs).exit_code == 0
    assert look(envs, keys=("a",)).environments[0].signature == "unknown"


def test_a_damaged_record_is_listed_as_such(add: Callable[..., Installation], envs: Path) -> None:
    installed = add(b"one")
    EnvHome.of(envs, "demo").record(installed.id).write_text("{")
    (facts,) = list_installed(envs)
    assert "is damaged" in facts.problem
    assert faults(look(envs)) == ["drift"]


def test_a_name_that_is_not_installed(envs: Path, add: Callable[..., Installation]) -> None:
    assert list_installed(envs) == []
    add(b"one")
    with pytest.raises(NotFound, match=r"other is not installed in .*, only demo"):
        list_installed(envs, "other")


def test_an_environment_of_which_nothing_is_current(
    envs: Path, add: Callable[..., Installation]
) -> None:
    """As after a first installation whose checks failed."""
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")
    home.point_at(None)
    with pytest.raises(
        NotFound, match=rf"no installation of demo is current in .*; installed: {installed.id}$"
    ) as error:
        chosen_id(home, None)
    assert f"`envferry rollback demo {installed.id}`" in str(error.value.hint)


def test_the_same_artifact_by_another_tag_follows_that_tag(
    add: Callable[..., Installation], envs: Path, tmp_path: Path
) -> None:
    first = add(b"one")
    home = EnvHome.of(envs, "demo")
    later = msgspec.structs.replace(origin("latest"), time="2026-12-01T00:00:00Z", user="bob")
    install(tmp_path / "one.tar.zst", envs, None, origin=later)
    record = home.installation(first.id).origin
    assert record is not None
    assert (record.tag, record.ref) == ("latest", "demo@latest")
    assert (record.time, record.user) == (TIME, "alice as root"), "it was installed then"


def test_verifications_are_remembered(add: Callable[..., Installation], envs: Path) -> None:
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")
    (envs / "demo/lib/data").unlink()
    (envs / "demo/lib/added").write_text("")
    verify_installation(home, None, quick=True, progress=Silent(), time=TIME)
    last = read_state(home, installed.id).verified
    assert last is not None
    assert (last.time, last.quick, last.changed, last.missing, last.extra) == (TIME, True, 0, 1, 1)
    home.state(installed.id).write_text("{")
    assert read_state(home, installed.id).verified is None, "a damaged note stops nothing"


def test_a_repair_of_a_tree_forgets_what_was_found_before(
    add: Callable[..., Installation], envs: Path, tmp_path: Path
) -> None:
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")
    (envs / "demo/lib/data").unlink()
    verify_installation(home, None, quick=False, progress=Silent(), time=TIME)
    install(tmp_path / "one.tar.zst", envs)
    assert read_state(home, installed.id).verified is None


def test_history_counts_back(add: Callable[..., Installation], envs: Path) -> None:
    ids = [add(version).id for version in (b"one", b"two", b"three")]
    home = EnvHome.of(envs, "demo")
    assert [one.steps_back for one in read_history(home).installations] == [0, 1, 2]
    assert home.positions() == ids[::-1]
    assert roll_back(home, "2", actor=ACTOR).id == ids[0]
    assert home.positions() == [ids[0], ids[2], ids[1]]
    assert roll_back(home, "1").id == ids[2]
    assert roll_back(home, ids[1][:4]).id == ids[1]
    assert roll_back(home, None).id == ids[2]
    assert roll_back(home, "0").id == ids[2]


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ("3", NotFound, "has no installation that many steps back: 3"),
        ("abc", UsageError, "'abc' is not an id"),
        ("stable", UsageError, "'stable' is not an id"),
        ("0000000", NotFound, "has no installation 0000000"),
        ("../x", UsageError, "is not an id"),
    ],
)
def test_a_wish_that_means_nothing(
    add: Callable[..., Installation], envs: Path, wish: str, error: type[Exception], message: str
) -> None:
    ids = [add(version).id for version in (b"one", b"two")]
    home = EnvHome.of(envs, "demo")
    with pytest.raises(error, match=message):
        roll_back(home, wish)
    assert home.current_id() == ids[1]


def test_a_beginning_of_several_ids(add: Callable[..., Installation], envs: Path) -> None:
    record = add(b"one")
    home = EnvHome.of(envs, "demo")
    for id_ in ("abcd00000000", "abcd11111111"):
        write_bytes(home.record(id_), to_json(msgspec.structs.replace(record, id=id_)))
    with pytest.raises(UsageError, match="several ids: abcd00000000, abcd11111111"):
        home.find_id("abcd")
    assert home.find_id("abcd1") == "abcd11111111"


def test_events(add: Callable[..., Installation], envs: Path) -> None:
    old, new = add(b"one"), add(b"two")
    home = EnvHome.of(envs, "demo")
    roll_back(home, None, actor=ACTOR)
    remove_named(home, new.id, assume_unused=True, actor=ACTOR)
    kinds = [(event.kind, event.id) for event in read_history(home).events]
    assert kinds == [
        ("installed", old.id),
        ("current", old.id),
        ("installed", new.id),
        ("current", new.id),
        ("current", old.id),
        ("removed", new.id),
    ]
    assert {(event.time, event.user) for event in read_events(home)} == {(TIME, "alice as root")}
    remove_whole(home, assume_unused=True)
    with pytest.raises(NotFound):
        read_history(home)


def test_events_that_a_crash_tore_and_too_many_of_them(
    add: Callable[..., Installation], envs: Path
) -> None:
    add(b"one")
    home = EnvHome.of(envs, "demo")
    line = home.events.read_text().splitlines()[0]
    home.events.write_text(f"{line}\n" * (MOST_EVENTS + 5) + '{"time": "20')
    note_event(home, ACTOR, "current", "0" * 12)
    found = read_events(home)
    assert len(found) == MOST_EVENTS
    assert found[-1].id == "0" * 12


def test_shared_files_are_counted_once(
    add: Callable[..., Installation], envs: Path, tmp_path: Path
) -> None:
    add(b"one", link=Link.HARDLINK)
    install(tmp_path / "one.tar.zst", envs, name="twin", link=Link.HARDLINK)
    large = (envs / "demo/lib/data").stat().st_blocks * 512
    usage = measure_directory(envs)
    assert [one.name for one in usage.installations] == ["demo", "twin"]
    assert all(one.shared >= large for one in usage.installations)
    assert all(one.own < large for one in usage.installations)
    apart = sum(one.own + one.shared for one in usage.installations)
    assert usage.total == apart - usage.installations[0].shared
    partial = EnvHome.of(envs, "demo").partial("0" * 12)
    partial.mkdir()
    (partial / "file").write_bytes(bytes(50_000))
    assert measure_directory(envs).unfinished >= 50_000


def test_an_image_and_notes_count_as_what_they_belong_to(
    add: Callable[..., Installation], envs: Path
) -> None:
    """Where an image is mounted its file counts, which is not in the tree."""
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")
    before = measure_directory(envs)
    (notes,) = [one.own for one in before.installations]
    assert notes >= sum(path.stat().st_size for path in home.directory.glob("*.*"))
    home.image(installed.id).write_bytes(random_bytes(1, 300_000))
    home.image("0" * 12).write_bytes(random_bytes(1, 100_000))
    home.partial("1" * 12).with_suffix(".squashfs").write_bytes(random_bytes(1, 100_000))
    usage = measure_directory(envs)
    (one,) = usage.installations
    assert notes + 300_000 <= one.own < notes + 310_000
    assert 200_000 <= usage.unfinished - before.unfinished < 210_000
    assert usage.total - before.total == one.own - notes + usage.unfinished - before.unfinished
    (listed,) = list_installed(envs)
    assert listed.own_bytes == one.own


def test_what_changes_nothing_writes_nothing(add: Callable[..., Installation], envs: Path) -> None:
    """An install of what is there works on a full disk."""
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")

    def states() -> list[tuple[int, int]]:
        found = [home.link.lstat(), (home.directory / HISTORY).stat()]
        return [(status.st_ino, status.st_mtime_ns) for status in found]

    before = states()
    home.make_current(installed.id)
    assert states() == before
    home.write_history([installed.id, "0" * 12])
    home.make_current(installed.id)
    assert home.history() == ["0" * 12, installed.id]


def test_all_is_well(add: Callable[..., Installation], envs: Path) -> None:
    installed = add(b"one", Checks(commands=("true",)))
    status = look(envs)
    (one,) = status.environments
    assert (one.id, one.version, one.tag, one.installed) == (installed.id, "one", "stable", TIME)
    assert (one.checks, one.drift, one.signature) == ("passed", 0, "no keys")
    assert (status.exit_code, faults(status)) == (0, [])


def test_monitoring_takes_no_lock_and_leaves_no_note(
    add: Callable[..., Installation], envs: Path
) -> None:
    installed = add(b"one")
    home = EnvHome.of(envs, "demo")
    verify_installation(home, None, quick=False, progress=Silent(), time=TIME)
    before = read_state(home, installed.id)
    with exclusive_lock(home.lock_path, "the environment demo"):
        assert look(envs).exit_code == 0
    assert read_state(home, installed.id) == before


def test_what_is_not_well(add: Callable[..., Installation], envs: Path) -> None:
    assert (faults(look(envs)), look(envs).exit_code) == (["current"], 7)
    add(b"one", origin=origin(signed_by=("aa",)))
    assert faults(look(envs, keys=("aa", "bb"))) == []
    assert (faults(look(envs, keys=("bb",))), look(envs, keys=("bb",)).exit_code) == (
        ["signature"],
        8,
    )
    assert look(envs, min_free=1 << 60).exit_code == 11
    assert look(envs, "demo", "gone").exit_code == 7
    (envs / "demo/bin/tool").write_text("")
    status = look(envs, min_free=1 << 60)
    assert (faults(status), status.exit_code) == (["drift", "disk"], 8)
    (envs / "demo").unlink()
    assert (faults(look(envs)), look(envs).exit_code) == (["current"], 7)


def test_checks_run_later(add: Callable[..., Installation], envs: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.touch()
    installed = add(b"one", Checks(commands=(f"test -e {allowed}",)))
    home = EnvHome.of(envs, "demo")
    assert check_installed(home, None, time=TIME, progress=Silent()) == installed
    allowed.unlink()
    with pytest.raises(ToolFailed, match=f"the check `test -e {allowed}` failed on this host:"):
        check_installed(home, installed.id, time=TIME, progress=Silent())
    last = read_state(home, installed.id).checked
    assert last is not None
    assert (last.passed, last.failed) == (False, f"test -e {allowed}")
    status = look(envs)
    assert (faults(status), status.exit_code) == (["checks"], 4)
    assert home.current_id() == installed.id


def test_checks_that_fail_at_an_install_are_an_event(
    add: Callable[..., Installation], envs: Path
) -> None:
    add(b"one")
    with pytest.raises(ToolFailed):
        add(b"two", Checks(commands=("false",)))
    home = EnvHome.of(envs, "demo")
    event = read_events(home)[-1]
    assert (event.kind, event.detail) == ("checks failed", "false")
    assert [one.steps_back for one in read_history(home).installations] == [0, None]


def test_an_install_for_another_path_says_that_checks_did_not_run(
    add: Callable[..., Installation], envs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = tmp_path / "inside"
    check = Checks(commands=(f"test $(readlink -f {inside}/demo) = $(readlink -f {envs}/demo)",))
    installed = add(b"one", check, prefix=f"{inside}/demo")
    assert f"is installed for {inside}/demo; run `envferry checks demo`" in caplog.text
    assert look(envs).environments[0].checks == "not run"
    with pytest.raises(HostError, match=f"is installed for {inside}/demo, which is not"):
        check_installed(EnvHome.of(envs, "demo"), None, time=TIME, progress=Silent())
    inside.symlink_to(envs)  # as a container mounts the volume
    check_installed(EnvHome.of(inside, "demo"), None, time=TIME, progress=Silent())
    assert read_state(EnvHome.of(envs, "demo"), installed.id).checked is not None
    assert look(envs).environments[0].checks == "passed"


def test_metrics(add: Callable[..., Installation], envs: Path) -> None:
    add(b"one", origin=origin('odd "tag"\\'))
    metrics = {metric.name: metric.samples for metric in metrics_of(look(envs))}
    (labels, value), *_ = metrics["envferry_environment_info"]
    assert (labels["tag"], value) == ('odd "tag"\\', 1)
    assert metrics["envferry_environment_installed_timestamp_seconds"][0][1] == 1795907400
    assert metrics["envferry_environment_checks_passed"] == ()
    assert metrics["envferry_environment_drift_paths"][0][1] == 0


def test_the_commands(add: Callable[..., Installation], envs: Path, tmp_path: Path) -> None:
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    place = ("--envs-dir", envs)
    assert "nothing is installed in" in cli.run("list", *place).stdout
    old, new = add(b"one"), add(b"two")
    header, first, second = cli.run("list", *place).stdout.splitlines()
    assert header.split()[:5] == ["NAME", "ID", "VERSION", "TAG", "OWN"]
    assert first.split()[:5] == ["*", "demo", new.id, "two", "stable"]
    assert second.split()[:4] == ["demo", old.id, "one", "stable"]
    block = cli.run("list", "demo", *place).stdout
    assert "installed  2026-11-28 23:10 by alice as root" in block
    assert "from       s3://envs/prod" in block
    facts = json.loads(cli.run("list", *place, "--json").stdout)
    assert [one["id"] for one in facts] == [new.id, old.id]
    cli.run("verify", "demo", *place)
    cli.run("rollback", "demo", "1", *place)
    shown = cli.run("history", "demo", *place).stdout
    assert [line.split()[:2] for line in shown.splitlines()[1:3]] == [["0", old.id], ["1", new.id]]
    assert "rollback" in shown
    assert "shared files counted once" in cli.run("du", *place).stdout
    assert json.loads(cli.run("du", *place, "--json").stdout)["total"] > 100_000


def test_status_on_the_command_line(
    add: Callable[..., Installation], envs: Path, tmp_path: Path
) -> None:
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    installed = add(b"one", Checks(commands=("true",)))
    textfile = tmp_path / "metrics/envferry.prom"
    place = ("--envs-dir", envs, "--min-free", "1M")
    shown = cli.run("status", *place, "--textfile", textfile).stdout
    assert shown == f"demo@{installed.id}: ok, checks: passed, signature: no keys\n"
    assert f'name="demo",id="{installed.id}",version="one",tag="stable"}} 1\n' in (
        textfile.read_text()
    )
    assert stat.S_IMODE(textfile.stat().st_mode) == 0o644
    (envs / "demo/lib/data").unlink()
    finished = cli.run("status", *place, "--textfile", textfile, "--json", expect=8)
    assert json.loads(finished.stdout)["environments"][0]["drift"] == 1
    assert f"hint: `envferry verify demo --envs-dir {envs}` says which files" in finished.stderr
    assert 'envferry_environment_drift_paths{name="demo"} 1\n' in textfile.read_text()
    assert [path.name for path in textfile.parent.iterdir()] == ["envferry.prom"]
    cli.run("status", *place, "--min-free", "9999T", expect=8)
    cli.run("status", "--envs-dir", tmp_path / "nowhere", "--min-free", "0", expect=7)
    cli.run("status", *place, "--min-free", "much", expect=2)
    assert cli.run("checks", "demo", *place[:2]).stdout == f"demo@{installed.id}: 1 check passed\n"


def test_who_signed_it_is_kept_and_judged_by_the_keys_of_now(tmp_path: Path, envs: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    environ = {"ENVFERRY_ENVS_DIR": str(envs), "ENVFERRY_REGISTRY": str(registry)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    ids = {
        name: json.loads(cli.run("keygen", name, "--json").stdout)["id"] for name in ("ours", "new")
    }
    artifact = installable_artifact(tmp_path / "dist", {"bin/tool": b"#!/bin/sh\n"})
    signed = ("--sign-key", "ours.key", "--trusted-key", "ours.pub", "--tag", "stable")
    cli.run("push", artifact.archive_path, *signed)
    cli.run("install", "demo@stable", "--trusted-key", "ours.pub")
    (facts,) = json.loads(cli.run("list", "--json").stdout)
    assert facts["origin"]["signed_by"] == [ids["ours"]]
    assert (facts["origin"]["tag"], facts["origin"]["source"]) == ("stable", str(registry))
    least = ("--min-free", "0")
    assert "signature: trusted" in cli.run("status", *least, "--trusted-key", "ours.pub").stdout
    cli.run("status", *least, "--trusted-key", "new.pub", "--trusted-key", "ours.pub")
    revoked = cli.run("status", *least, "--trusted-key", "new.pub", expect=8)
    assert "error: demo: no key that this host trusts now signed it" in revoked.stderr


def test_a_host_that_gets_its_keys_later_knows_who_signed(tmp_path: Path, envs: Path) -> None:
    """What its hint says, installing what a trusted key signed, is what helps."""
    registry = tmp_path / "registry"
    registry.mkdir()
    environ = {"ENVFERRY_ENVS_DIR": str(envs), "ENVFERRY_REGISTRY": str(registry)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    cli.run("keygen", "ours")
    artifact = installable_artifact(tmp_path / "dist", {"bin/tool": b"#!/bin/sh\n"})
    cli.run("push", artifact.archive_path, "--sign-key", "ours.key", "--tag", "stable")
    cli.run("install", "demo@stable")
    status = ("status", "--min-free", "0", "--trusted-key", "ours.pub")
    assert "no key that this host trusts now signed it" in cli.run(*status, expect=8).stderr
    cli.run("install", "demo@stable", "--trusted-key", "ours.pub")
    assert "signature: trusted" in cli.run(*status).stdout
    cli.run("install", "demo@stable")
    assert "signature: trusted" in cli.run(*status).stdout, "what was known is not forgotten"
