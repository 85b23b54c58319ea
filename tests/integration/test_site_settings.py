"""A site's settings for pip and uv: its indexes are asked and written down, nothing else counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envferry.specs.locks import read_lock
from tests.support.cli_runner import CliRunner
from tests.support.guarded_server import OFFER, PASSWORD, guarding, make_index

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.container, pytest.mark.network]
LOGIN = f"me:{PASSWORD}"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """The place of two indexes with different versions of one package, behind a login."""
    for name, version in (("one", "1.0"), ("two", "2.0")):
        make_index(tmp_path / name, f"zig-{version}-py3-none-any")
    with guarding(tmp_path, dict.fromkeys(("one", "two"), LOGIN)) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def runner(tmp_path: Path, demo_runner: CliRunner) -> CliRunner:
    """A demo_runner of a user with a home of their own, without settings."""
    home = tmp_path / "home"
    environ = {
        "HOME": str(home),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "PIP_CONFIG_FILE": "",
        "PIP_INDEX_URL": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_DEFAULT_INDEX": "",
        "UV_INDEX": "",
    }
    folder = home / "project"
    folder.mkdir(parents=True)
    made = CliRunner(home=folder, cache=home / "envferry", environ=environ)
    channel = (demo_runner.home / "channel").resolve().as_uri()
    asked = "dependencies: [python, pip, {pip: [zig]}]"
    made.write_spec("tiny", f"name: tiny\nchannels: ['{channel}']\n{asked}\n{OFFER}")
    return made


def locked(runner: CliRunner) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the versions that a lock has, and the indexes that it names."""
    lock = read_lock(runner.home / "specs/tiny.conda-lock.yml")
    assert PASSWORD not in lock.path.read_text()
    return {item.name: item.version for item in lock.packages}, lock.indexes


@pytest.mark.parametrize("source", ["PIP_INDEX_URL", "pip.conf", "uv.toml"])
def test_the_index_of_a_site_is_asked_and_named(runner: CliRunner, base: str, source: str) -> None:
    url = f"http://{LOGIN}@{base}/one"
    own, files = runner, runner.home.parent / ".config"
    if source == "PIP_INDEX_URL":
        own = replace(runner, environ={**runner.environ, "PIP_INDEX_URL": url})
    elif source == "pip.conf":
        (files / "pip").mkdir(parents=True)
        (files / "pip/pip.conf").write_text(f"[global]\nindex-url = {url}\n")
    else:
        (files / "uv").mkdir(parents=True)
        (files / "uv/uv.toml").write_text(f'index-url = "{url}"\n')
    said = own.run("lock", "tiny")
    assert f"warning: using the package index http://{base}/one, named by " in said.stderr
    assert source in said.stderr
    assert PASSWORD not in said.stderr
    versions, indexes = locked(runner)
    assert versions["zig"] == "1.0"
    assert indexes == (f"http://{base}/one",)
    own.run("build", "tiny")


def test_an_extra_index_of_a_site_is_asked_as_pip_does(runner: CliRunner, base: str) -> None:
    """The best version of all indexes; the spec's own main index is stronger than the site's."""
    urls = {
        "PIP_INDEX_URL": f"http://{LOGIN}@{base}/one",
        "PIP_EXTRA_INDEX_URL": f"http://{LOGIN}@{base}/two",
    }
    own = replace(runner, environ={**runner.environ, **urls})
    spec = runner.home / "specs/tiny.yml"
    spec.write_text(spec.read_text().replace("[zig]", "['zig>1']"))
    own.run("lock", "tiny")
    versions, indexes = locked(runner)
    assert versions["zig"] == "2.0"
    assert set(indexes) == {f"http://{base}/one", f"http://{base}/two"}


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_the_index_of_the_spec_is_stronger(runner: CliRunner, base: str, name: str) -> None:
    spec = runner.home / "specs/tiny.yml"
    spec.write_text(spec.read_text().replace("[zig]", f"[--index-url http://{base}/one, zig]"))
    own = replace(runner, environ={**runner.environ, name: f"http://{LOGIN}@{base}/two"})
    own.run("lock", "tiny")
    assert locked(runner) == ({**locked(runner)[0], "zig": "1.0"}, ())


def test_nothing_else_of_uvs_settings_changes_a_lock(runner: CliRunner, base: str) -> None:
    """Not what a folder above, the home or a variable says: the same spec gives the same lock."""
    url = f"http://{LOGIN}@{base}/two"
    own = replace(runner, environ={**runner.environ, "PIP_INDEX_URL": url})
    own.run("lock", "tiny")
    path = runner.home / "specs/tiny.conda-lock.yml"
    plain = path.read_bytes()
    path.unlink()
    above = '[project]\nname = "x"\nversion = "1"\n[tool.uv]\noverride-dependencies = ["zig<2"]\n'
    (runner.home.parent / "pyproject.toml").write_text(above)
    (runner.home.parent / ".config/uv").mkdir(parents=True)
    (runner.home.parent / ".config/uv/uv.toml").write_text("[pip]\nno-deps = true\n")
    overrides = runner.home.parent / "overrides.txt"
    overrides.write_text("zig<2\n")
    own = replace(own, environ={**own.environ, "UV_OVERRIDE": str(overrides)})
    said = own.run("lock", "tiny").stderr
    assert path.read_bytes() == plain
    assert "pip.no-deps" in said
    assert "UV_OVERRIDE" in said


def test_a_sites_index_that_is_not_there_is_an_error(runner: CliRunner) -> None:
    own = replace(runner, environ={**runner.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"})
    said = own.run("lock", "tiny", expect=9).stderr
    assert (
        "warning: using the package index http://127.0.0.1:9/simple, named by PIP_INDEX_URL" in said
    )
