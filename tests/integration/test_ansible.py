"""The Ansible collection on real hosts: namespaces of this machine, and ansible-core itself.

A play takes seconds, most of them Ansible's own: a test asks much of few plays.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from envferry.models import Checks
from envferry.names import current_platform
from envferry.process import find_program
from envferry.progress import Silent
from envferry.registry import Registry
from tests.conftest import require
from tests.support.ansible_hosts import PLAYBOOK, ROOT, AnsibleSite
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.ansible_hosts import PlayResult

    MakeSite = Callable[[int], AnsibleSite]

pytestmark = pytest.mark.container
TOOL = "/opt/envferry/bin/envferry"


@pytest.fixture
def make_site(tmp_path: Path) -> MakeSite:
    """Return what makes a site of so many hosts, with the registry in its folder `registry`."""
    require("ansible", PLAYBOOK.exists())
    require("bwrap", find_program("bwrap"))
    (tmp_path / "registry").mkdir()
    # What the site has on its disk: here it starts the envferry that is tested.
    (tmp_path / "envferry.run").write_text(f'#!/bin/sh\nexec {ENVFERRY} "$@"\n')
    return lambda count: AnsibleSite.make(tmp_path, count)


def publish(site: AnsibleSite, version: bytes, **fields: Any) -> str:
    """Publish a version as demo@stable and demo@VERSION; return its id.

    Its command fails on hosts whose /etc/faulty names the version.
    """
    script = b'#!/bin/sh\ntest "$(cat /etc/faulty 2>/dev/null)" != %b && echo %b\n'
    contents = {"bin/tool": script % (version, version), "lib/data": version * 1000}
    artifact = installable_artifact(
        site.folder / "dist", contents, version=version.decode(), **fields
    )
    registry = Registry.open(str(site.folder / "registry"))
    registry.publish(artifact, progress=Silent())
    for tag in ("stable", version.decode()):
        registry.move_tag("demo", current_platform(), tag, artifact.manifest.id)
    return artifact.manifest.id


class Steps:
    """Tasks that call the module one after the other, and what each returned."""

    def __init__(self, site: AnsibleSite) -> None:
        self.site = site
        self.tasks: list[dict[str, Any]] = []
        self.names: list[str] = []

    def add(self, name: str, *, check: bool = False, **options: Any) -> None:
        """Add a call of the module."""
        common = {"name": "demo", "executable": str(ENVFERRY)}
        call = {"envferry.hosts.envferry_env": {**common, **options}}
        keywords = {"check_mode": check, "diff": True, "ignore_errors": True, "register": name}
        self.tasks.append({**call, **keywords})
        self.names.append(name)

    def add_info(self, name: str) -> None:
        """Gather facts, and keep these instead of the answer."""
        call = {"envferry.hosts.envferry_info": {"executable": str(ENVFERRY)}}
        self.tasks += [call, {"ansible.builtin.set_fact": {name: "{{ envferry_environments }}"}}]
        self.names.append(name)

    def shell(self, line: str) -> None:
        """Add a command of the host's shell."""
        self.tasks.append({"ansible.builtin.shell": line})

    def run(self) -> dict[str, dict[str, Any]]:
        """Run them on the first host; return the results by name."""
        answers = self.site.folder / "answers"
        answers.mkdir()
        for name in self.names:
            copied = {"content": f"{{{{ {name} | to_json }}}}", "dest": str(answers / name)}
            self.tasks.append({"ansible.builtin.copy": copied, "diff": False})
        self.site.run(self.tasks)
        return {name: json.loads((answers / name).read_text()) for name in self.names}


def test_one_environment(make_site: MakeSite) -> None:
    site = make_site(1)
    first, second = publish(site, b"one"), publish(site, b"two")
    steps = Steps(site)
    registry = str(site.folder / "registry")
    old: dict[str, Any] = {"ref": "demo@one", "registry": registry}
    new: dict[str, Any] = {"ref": "demo@stable", "registry": registry}
    steps.add("looked", check=True, **old)
    steps.add("installed", **old)
    steps.add("again", **old)
    steps.add_info("facts")
    steps.shell("rm /opt/conda/envs/demo/bin/tool")
    steps.add("repaired", **old)
    steps.add("updated", **new)
    back: dict[str, Any] = {"state": "rolled_back", "id": first}
    steps.add("would_go_back", check=True, **back)
    steps.add("went_back", **back)
    steps.add("is_back", **back, keep=1)
    steps.add("absent", state="absent")
    steps.add("still_absent", state="absent")
    steps.add("no_id", state="rolled_back")
    steps.add("no_tool", executable="/opt/none")
    steps.add("none_kept", keep=0)
    steps.add("no_registry", ref="demo@stable", registry=str(site.folder / "none"))
    found = steps.run()
    facts = found.pop("facts")
    assert facts["demo"]["id"] == first
    assert facts["demo"]["prefix"] == "/opt/conda/envs/demo"
    changed = {name: one["changed"] for name, one in found.items() if not one.get("failed")}
    assert changed == {
        "looked": True,
        "installed": True,
        "again": False,
        "repaired": True,
        "updated": True,
        "would_go_back": True,
        "went_back": True,
        "is_back": True,
        "absent": True,
        "still_absent": False,
    }
    installed = found["installed"]
    assert installed["before"]["id"] is None, "the look before it changed nothing"
    assert installed["after"] == {"id": first, "version": "one", "ref": "demo@one"}
    assert found["looked"]["diff"] == {"before": "", "after": f"demo@{first}\nref: demo@one\n"}
    assert found["updated"]["before"]["id"] == first
    assert found["updated"]["after"]["id"] == second
    assert found["went_back"]["before"]["id"] == second
    assert found["is_back"]["removed"] == [second]
    assert "missing: id" in found["no_id"]["msg"]
    assert "/opt/none does not exist" in found["no_tool"]["msg"]
    assert "keep is 0" in found["none_kept"]["msg"]
    assert found["no_registry"]["exit_code"] == 7
    assert found["no_registry"]["hint"]


def test_a_host_is_prepared(make_site: MakeSite) -> None:
    site = make_site(2)
    id_ = publish(site, b"one")
    wishes: dict[str, Any] = {
        "envferry_tool_path": TOOL,
        "envferry_tool_src": str(site.folder / "envferry.run"),
        "envferry_settings": {"registry": str(site.folder / "registry"), "umask": "022"},
        "envferry_environments_wanted": [{"name": "demo", "ref": "demo@stable"}],
        "envferry_follow": [{"ref": "demo@stable", "options": "--window 02:00-05:00"}],
        "envferry_follow_start": False,
        "envferry_units_dir": "/etc",
    }
    assert site.run("envferry.hosts.prepare", **wishes).counts("gpu02")["changed"] > 0
    assert [host.current() for host in site.hosts] == [id_, id_]
    etc = site.hosts[0].folder / "etc"
    assert (etc / "envferry/follow-demo@stable.env").read_text() == "OPTIONS=--window 02:00-05:00\n"
    for unit in (ROOT / "pipeline/envferry/follow/units").iterdir():
        shipped = unit.read_text().replace("/usr/local/bin/envferry", TOOL)
        assert (etc / unit.name).read_text() == shipped
    assert site.run("envferry.hosts.prepare", **wishes).counts("gpu02")["changed"] == 0


def rollout(site: AnsibleSite, expect: int = 0, **variables: Any) -> PlayResult:
    """Roll demo@stable out."""
    return site.run(
        "envferry.hosts.rollout",
        expect=expect,
        envferry_name="demo",
        envferry_ref="demo@stable",
        envferry_registry=str(site.folder / "registry"),
        envferry_executable=str(ENVFERRY),
        **{"envferry_checks": ["tool"], **variables},
    )


def test_a_batch_goes_back_together(make_site: MakeSite) -> None:
    site = make_site(4)
    first = publish(site, b"one")
    rollout(site, envferry_batches=["100%"])
    assert {host.current() for host in site.hosts} == {first}
    second = publish(site, b"two")
    (site.hosts[1].folder / "etc/faulty").write_text("two")
    failed = rollout(site, expect=2, envferry_batches=[1, 2, "100%"])
    assert [host.current() for host in site.hosts] == [second, first, first, first]
    assert failed.is_untouched("gpu04")
    assert "too many hosts of its batch failed, gpu02" in failed.text


@pytest.mark.slow
def test_one_of_two_may_fail(make_site: MakeSite) -> None:
    site = make_site(3)
    first = publish(site, b"one")
    rollout(site, envferry_batches=["100%"])
    second = publish(site, b"two")
    (site.hosts[1].folder / "etc/faulty").write_text("two")
    rollout(site, expect=2, envferry_batches=[1, 2], envferry_max_fail_percentage=50)
    assert [host.current() for host in site.hosts] == [second, first, second]


@pytest.mark.slow
def test_a_host_that_is_lost_counts_as_failed(make_site: MakeSite) -> None:
    site = make_site(3)
    publish(site, b"one")
    hosts = (site.hosts[0], replace(site.hosts[1], is_lost=True), site.hosts[2])
    failed = rollout(replace(site, hosts=hosts), expect=2, envferry_batches=["100%"])
    assert "too many hosts of its batch failed, gpu02" in failed.text
    assert {host.current() for host in site.hosts} == {None}


@pytest.mark.slow
def test_the_canary_is_checked_before_the_rest(make_site: MakeSite) -> None:
    site = make_site(3)
    first = publish(site, b"one")
    rollout(site)
    publish(site, b"two")
    failed = rollout(site, expect=2, envferry_canary_checks=["test -e /etc/never"])
    assert failed.is_untouched("gpu02")
    assert {host.current() for host in site.hosts} == {first}, "and the canary went back"


@pytest.mark.slow
def test_a_first_rollout_that_fails_leaves_nothing(make_site: MakeSite) -> None:
    site = make_site(1)
    publish(site, b"one", checks=Checks(commands=("test -e /etc/never",)))
    rollout(site, expect=2)
    assert site.hosts[0].current() is None


@pytest.mark.slow
def test_only_the_keys_that_are_named_stay(make_site: MakeSite) -> None:
    site = make_site(1)
    trusted = site.hosts[0].folder / "etc/envferry/trusted.d"
    trusted.mkdir(parents=True)
    (trusted / "old.pub").write_text("old\n")
    (site.folder / "new.pub").write_text("new\n")
    wishes: dict[str, Any] = {
        "envferry_trusted_keys": [str(site.folder / "new.pub")],
        "envferry_tool_path": TOOL,
    }
    site.run("envferry.hosts.prepare", **wishes)
    assert sorted(path.name for path in trusted.iterdir()) == ["new.pub", "old.pub"]
    site.run("envferry.hosts.prepare", **wishes, envferry_trusted_keys_exclusive=True)
    assert [path.name for path in trusted.iterdir()] == ["new.pub"]


@pytest.mark.slow
def test_a_download_needs_its_checksum(make_site: MakeSite) -> None:
    site = make_site(1)
    url = (site.folder / "envferry.run").as_uri()
    wishes: dict[str, Any] = {"envferry_tool_path": TOOL, "envferry_tool_url": url}
    said = site.run("envferry.hosts.prepare", expect=2, **wishes)
    assert "needs envferry_tool_sha256" in said.text
    wishes["envferry_tool_sha256"] = "0" * 64
    said = site.run("envferry.hosts.prepare", expect=2, **wishes)
    assert re.search("checksum", said.text)
    assert not (site.hosts[0].folder / "tool/bin/envferry").exists()
