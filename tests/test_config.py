"""What programs that envferry starts are told by the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.base.authorities import system_authorities
from envferry.base.secret import Secret
from envferry.build.git_credentials import git_environ, git_logins, without_git_login
from envferry.config import NetworkSettings, Settings, uv_environ

LINE = "a @ git+https://me:p%40ss@git.example.org/a.git@main#subdirectory=b"


@pytest.mark.parametrize("name", ["UV_SYSTEM_CERTS", "UV_NATIVE_TLS"])
def test_uv_trusts_what_the_system_trusts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"):
        monkeypatch.delenv(known, raising=False)
    assert uv_environ().get("UV_SYSTEM_CERTS") == ("1" if system_authorities() else None)
    monkeypatch.setenv(name, "0")
    assert uv_environ()[name] == "0"
    assert uv_environ().get("UV_SYSTEM_CERTS", "0") == "0"


def test_git_is_told_logins_in_its_environment() -> None:
    logins = git_logins([LINE, "b @ git+ssh://git@git.example.org/b.git", "numpy"])
    assert logins == {"https://git.example.org/a.git": Secret("me:p%40ss")}
    plain = without_git_login(LINE)
    assert plain == "a @ git+https://git.example.org/a.git@main#subdirectory=b"
    own = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "a.b", "GIT_CONFIG_VALUE_0": "c"}
    environ = git_environ(own, logins)
    assert environ["GIT_CONFIG_COUNT"] == "2"
    assert environ["GIT_CONFIG_KEY_0"] == "a.b"
    assert environ["GIT_CONFIG_KEY_1"] == "http.https://git.example.org/a.git.extraHeader"
    assert environ["GIT_CONFIG_VALUE_1"] == "Authorization: Basic bWU6cEBzcw=="


def test_places_hold_in_every_directory() -> None:
    told = Settings.from_environ({"ENVFERRY_CACHE": "cache", "ENVFERRY_ENVS_DIR": "envs"})
    assert (told.cache_dir, told.envs_dir) == (Path.cwd() / "cache", Path.cwd() / "envs")


def test_an_empty_variable_says_nothing() -> None:
    names = ("CACHE", "ENVS_DIR", "REGISTRY", "SIGN_KEY", "TRUSTED_DIR")
    empty = {f"ENVFERRY_{name}": "" for name in names} | {"SOURCE_DATE_EPOCH": ""}
    assert Settings.from_environ({"HOME": "/h", **empty}) == Settings.from_environ({"HOME": "/h"})


BECOME = (
    *("setpriv", "--reuid=1000770000", "--regid=0", "--clear-groups"),
    # The interpreter of these tests may be in somebody's home.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes a user without an entry"
)
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("doctor",), 11, "no place for the cache"),
        (("verify", "demo", "--envs-dir", "nowhere"), 7, "demo is not installed"),
        (("install", "nowhere/demo.tar.zst"), 7, "does not exist"),
        (("cache", "ls"), 3, "no place for the cache: HOME is not set, and user 1000770000"),
        (("ls", "--registry", "~/registry"), 2, "that home directory is not known"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_user_without_a_home(words: tuple[str, ...], status: int, said: str) -> None:
    """As container platforms start programs: only what needs a home asks for one."""
    argv = [*BECOME, sys.executable, "-m", "envferry", *words]
    environ = {"PATH": os.environ["PATH"]}
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, env=environ)
    assert finished.returncode == status, finished.stderr
    assert said in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_certificates_that_errors_name_come_first() -> None:
    environ = {"PIP_CERT": "/pip.pem", "SSL_CERT_FILE": "/site.pem"}
    assert NetworkSettings.from_environ(environ).certificates == Path("/site.pem")
    del environ["SSL_CERT_FILE"]
    assert NetworkSettings.from_environ(environ).certificates == Path("/pip.pem")
