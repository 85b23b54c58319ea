"""Channels and indexes that demand a login, from the lock to the archive: it is seen nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.cli_runner import CliRunner
from tests.support.guarded_server import OFFER, PASSWORD, guarding, make_index
from tests.support.where_secrets_are import spied_home, unpacked

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = [pytest.mark.container, pytest.mark.network]

NETRC_PASSWORD = "pa55-of-netrc"


@pytest.fixture
def served(tmp_path: Path, demo_runner: CliRunner) -> Path:
    """A folder with a real channel and two indexes."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "channel").symlink_to(demo_runner.home / "channel")
    make_index(folder / "one", "private-1.0-py3-none-any", metadata="Requires-Dist: hidden\n")
    make_index(folder / "two", "hidden-2.0-py3-none-any")
    return folder


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    """A demo_runner of another user, with a home of their own, and a spy in every python."""
    home = tmp_path / "home"
    environ = {
        **spied_home(tmp_path),
        "XDG_CACHE_HOME": str(home / "cache"),
        "RATTLER_CACHE_DIR": str(home / "rattler"),
        "UV_CACHE_DIR": str(home / "uv"),
    }
    return CliRunner(home=home, cache=home / "envferry", environ=environ)


def write_netrc(runner: CliRunner, text: str) -> None:
    path = runner.home / ".netrc"
    path.write_text(text)
    path.chmod(0o600)


def test_passwords_are_seen_nowhere(runner: CliRunner, served: Path, tmp_path: Path) -> None:
    """Of a channel and an index in URLs, of another index in netrc."""
    url_login, netrc_login = f"me:{PASSWORD}", f"you:{NETRC_PASSWORD}"
    logins = {"channel": url_login, "one": url_login, "two": netrc_login}
    printed = []
    with guarding(served, logins) as port:
        base = f"http://{url_login}@127.0.0.1:{port}"
        runner.write_spec(
            "tiny",
            f"name: tiny\nchannels: ['{base}/channel']\ndependencies:\n  - python\n  - pip\n"
            f"  - pip:\n    - --index-url {base}/one\n"
            f"    - --extra-index-url http://localhost:{port}/two\n    - private\n{OFFER}",
        )
        printed.append(runner.run("lock", "tiny", "-vv", expect=9))
        assert "requires a login" in printed[-1].stderr
        netrc = f"machine localhost login you password {NETRC_PASSWORD}\n"
        write_netrc(runner, netrc)
        printed.append(runner.run("lock", "tiny", "-vv", "--json"))
        solver = runner.home / "mamba"
        solver.write_text(
            f'#!/bin/sh\nexec {sys.executable} -m envferry.lock.conda.conda_solver "$@"\n'
        )
        solver.chmod(0o755)
        printed.append(runner.run("lock", "tiny", "-vv", "--upgrade", "--solver", solver))
        lock = (runner.home / "specs/tiny.conda-lock.yml").read_text()
        assert f"http://127.0.0.1:{port}/one/private/private-1.0-py3-none-any.whl" in lock
        assert f"http://localhost:{port}/two/hidden/hidden-2.0-py3-none-any.whl" in lock
        # The lock has no login: who builds must have one.
        printed.append(runner.run("build", "tiny", "-vv", expect=9))
        assert ".netrc" in printed[-1].stderr
        write_netrc(runner, f"{netrc}machine 127.0.0.1 login me password {PASSWORD}\n")
        printed.append(runner.run("build", "tiny", "-vv"))
        printed.append(runner.run("pack", "tiny", "-vv"))
        archive = runner.home / printed[-1].stdout.strip()
        spec = runner.home / "specs/tiny.yml"
        spec.write_text(spec.read_text().replace("- private", "- private>=7"))
        printed.append(runner.run("lock", "tiny", "-vv", expect=3))
        spec.write_text(spec.read_text().replace("- private>=7", f"- -e git+{base}/x.git"))
        printed.append(runner.run("lock", "tiny", "-vv", expect=9))
        spec.write_text(spec.read_text().replace("- python\n", "- python=9\n"))
        printed.append(runner.run("lock", "tiny", "-vv", expect=3))
    commands = (tmp_path / "spied").read_text()
    assert "pip', 'compile'" in commands
    assert f"'--channel', 'http://127.0.0.1:{port}/channel'" in commands
    told = "".join(item.stdout + item.stderr for item in printed)
    assert "+ " in told
    texts = {"output": told, "commands": commands, "lock": lock, "archive": ""}
    beside = [path for path in archive.parent.iterdir() if path.is_file()]
    assert {path.suffix for path in beside} >= {".json", ".zst", ".yml"}
    contents = {path.name: path.read_bytes() for path in beside}
    contents |= {name: text.encode() for name, text in texts.items()}
    contents["archive"] = unpacked(archive)
    assert b"conda-meta/" in contents["archive"]
    for password in (PASSWORD, NETRC_PASSWORD):
        for name, content in contents.items():
            assert password.encode() not in content, name


def test_a_lock_with_a_login_in_the_environment_builds_elsewhere(
    runner: CliRunner, served: Path, tmp_path: Path
) -> None:
    """The URLs that uv is told have the login; what is downloaded from their hosts uses it too."""
    login = f"me:{PASSWORD}"
    channel = (served / "channel").resolve().as_uri()
    asked = "dependencies: [python, pip, {pip: [private]}]"
    runner.write_spec("tiny", f"name: tiny\nchannels: ['{channel}']\n{asked}\n{OFFER}")
    with guarding(served, dict.fromkeys(("one", "two"), login)) as port:
        base = f"127.0.0.1:{port}"
        urls = {
            "UV_INDEX_URL": f"http://{login}@{base}/one",
            "UV_INDEX": f"more=http://{login}@{base}/two",
        }
        stranger = replace(runner, environ={**runner.environ, "UV_INDEX_URL": f"http://{base}/one"})
        assert "requires a login" in stranger.run("lock", "tiny", expect=9).stderr
        mine = replace(runner, environ={**runner.environ, **urls})
        mine.run("lock", "tiny")
        assert PASSWORD not in (runner.home / "specs/tiny.conda-lock.yml").read_text()
        # Another machine has the spec and its lock, but nothing else of the first one.
        home = tmp_path / "another"
        shutil.copytree(runner.home / "specs", home / "specs")
        shutil.rmtree(runner.home)
        own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "USER": "another"}
        other = replace(runner, home=home, cache=home / "cache", environ={**runner.environ, **own})
        assert "401" in other.run("build", "tiny", expect=9).stderr
        other = replace(other, environ={**other.environ, **urls})
        other.run("build", "tiny")
        archive = home / other.run("pack", "tiny").stdout.strip()
    envs = home / "envs"
    other.run("install", archive, "--envs-dir", envs)
    script = "import private, hidden; private.main(); hidden.main()"
    argv = [str(envs / "tiny/bin/python"), "-c", script]
    finished = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert finished.stdout == "hello from private\nhello from hidden\n"
