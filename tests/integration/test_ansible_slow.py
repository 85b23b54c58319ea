"""What takes minutes of the Ansible collection: twenty hosts, the real tool, ansible-test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from envferry.process import find_program
from tests.conftest import require
from tests.integration.test_ansible import TOOL, make_site, publish, rollout
from tests.integration.test_tool_file import followed, run_file
from tests.support.ansible_hosts import COLLECTIONS, PLAYBOOK, AnsibleSite

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["followed", "make_site", "run_file"]

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.network]
COLLECTION = COLLECTIONS / "ansible_collections/envferry/hosts"
GET_PIP = """\
import sys
sys.path.insert(0, {wheel!r})
from pip._internal.cli.main import main
unknown = ("--no-setuptools", "--no-wheel")
words = [word for word in sys.argv[1:] if word not in unknown]
sys.exit(main(["install", "--find-links", {folder!r}, *words]))
"""
"""Stands for get-pip.py, which ansible-test would download from Ansible's own server."""
NEEDS_MORE = {
    "import": "needs every Python that Ansible knows",
    "pslint": "needs PowerShell",
    "shellcheck": "needs shellcheck of the system; there is no script here",
}
"""Sanity tests that are not run, and why."""


def test_twenty_hosts(tmp_path: Path) -> None:
    require("ansible", PLAYBOOK.exists())
    require("bwrap", find_program("bwrap"))
    (tmp_path / "registry").mkdir()
    site = AnsibleSite.make(tmp_path, 20)
    first = publish(site, b"one")
    rollout(site)
    assert {host.current() for host in site.hosts} == {first}
    second = publish(site, b"two")
    # One and two of the twenty are the canary and the tenth; four of the other 17 are too many.
    for host in site.hosts[5:9]:
        (host.folder / "etc/faulty").write_text("two")
    rollout(site, expect=2)
    assert [host.current() for host in site.hosts] == [*[second] * 3, *[first] * 17]
    (site.hosts[5].folder / "etc/faulty").unlink()
    for host in site.hosts[6:9]:
        (host.folder / "etc/faulty").write_text("three")
    rollout(site)
    assert {host.current() for host in site.hosts} == {second}


def test_the_real_tool_is_put_on_a_host(make_site: Any, run_file: Path) -> None:
    site = make_site(1)
    id_ = publish(site, b"one")
    wishes: dict[str, Any] = {
        "envferry_tool_path": TOOL,
        "envferry_tool_src": str(run_file),
        "envferry_settings": {"registry": str(site.folder / "registry")},
        "envferry_environments_wanted": [{"name": "demo", "ref": "demo@stable"}],
    }
    site.run("envferry.hosts.prepare", **wishes)
    assert site.hosts[0].current() == id_
    assert site.run("envferry.hosts.prepare", **wishes).counts("gpu01")["changed"] == 0


def pip_for_ansible_test(home: Path) -> None:
    """Put the pip that ansible-test wants where it looks before it downloads anything."""
    (package,) = (PLAYBOOK.parents[1] / "lib").glob("python3.*/site-packages/ansible_test")
    text = (package / "_internal/python_requirements.py").read_text()
    found = re.search(r"pip='([\d.]+)'", text)
    assert found
    wheels = home / "wheels"
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"pip=={found[1]}"]
    subprocess.run([*argv, "-d", str(wheels)], check=True)
    (wheel,) = wheels.glob("pip-*.whl")
    cache = home / ".ansible/test/cache"
    cache.mkdir(parents=True)
    script = GET_PIP.format(wheel=str(wheel), folder=str(wheels))
    (cache / f"get_pip_{found[1].replace('.', '_')}.py").write_text(script)


def test_ansible_test_finds_nothing(tmp_path: Path) -> None:
    require("ansible", PLAYBOOK.exists())
    place = tmp_path / "ansible_collections/envferry/hosts"
    shutil.copytree(COLLECTION, place, ignore=shutil.ignore_patterns("__pycache__", "output"))
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    subprocess.run(["git", "add", "."], cwd=place, check=True)
    pip_for_ansible_test(tmp_path)
    path = f"{PLAYBOOK.parent}:{os.environ['PATH']}"
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": path, "LC_ALL": "C.UTF-8"}
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    argv = ["ansible-test", "sanity", "--color", "no", "--python", version]
    for name in NEEDS_MORE:
        argv += ["--skip-test", name]
    finished = subprocess.run(
        argv, cwd=place, env=environ, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "validate-modules" in finished.stdout + finished.stderr
