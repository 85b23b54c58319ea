"""Source distributions, commits and folders become wheels, made once and always the same."""

from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from envferry.install.host.host_check import glibc_version
from envferry.process import run
from envferry.specs.locks import read_lock
from tests.support.cli_runner import CliRunner
from tests.support.git_sources import GIT, SETUP, commit, one_source, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.image_engine import ImageEngine

pytestmark = pytest.mark.container

PROJECT = """\
[build-system]
requires = ["{requires}"]
build-backend = "{backend}"
[project]
name = "{name}"
version = "1.5"
"""
WANTS_NETWORK = """\
import socket
try:
    socket.create_connection(("192.0.2.1", 80))
except OSError as error:
    raise SystemExit("no licence server") from error
"""
GREEDY = """\
def get_requires_for_build_wheel(settings=None):
    return ["setuptools", "not-pinned>=2"]
def build_wheel(directory, settings=None, metadata=None):
    raise SystemExit("not-pinned is not here")
"""
EXTENSION = """\
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "compiled", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_compiled(void) { return PyModule_Create(&module); }
"""
EXTENSION_SETUP = """\
from setuptools import Extension, setup
setup(ext_modules=[Extension("compiled", ["compiled.c"])])
"""
SPEC = """\
channels: [{channel}]
dependencies:
  - python
  - pip
  - pip:
    - --find-links {links}
    - compiled
    - {folder}
    - gitted @ git+{repository}@main#subdirectory=inner
envferry: {{system: {{glibc: '{glibc}'}}, checks: {{imports: [compiled, foldered, gitted]}}}}
"""


def make_sources(home: Path) -> dict[str, Path]:
    """Make a source distribution with an extension, a folder and a repository."""
    setuptools = {"requires": "setuptools>=70.1", "backend": "setuptools.build_meta"}
    compiled = {
        "pyproject.toml": PROJECT.format(name="compiled", **setuptools),
        "PKG-INFO": "Metadata-Version: 2.2\nName: compiled\nVersion: 1.5\n",
        "setup.py": EXTENSION_SETUP,
        "compiled.c": EXTENSION,
    }
    links = home / "links"
    links.mkdir(parents=True)
    tree = write(home / "compiled-1.5", compiled)
    with tarfile.open(links / "compiled-1.5.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name)
    hatchling = {"requires": "hatchling", "backend": "hatchling.build"}
    foldered = {
        "pyproject.toml": PROJECT.format(name="foldered", **hatchling),
        "foldered/__init__.py": "VALUE = 1\n",
        "foldered/build/__init__.py": "",
    }
    folder = write(home / "foldered", foldered)
    repository = write(home / "repository", {"inner/setup.py": SETUP, "inner/gitted.py": ""})
    commit(repository)
    return {"links": links, "folder": folder, "repository": repository}


@pytest.fixture(scope="module")
def runner(demo_runner: CliRunner, tmp_path_factory: pytest.TempPathFactory) -> CliRunner:
    """A folder with a spec of three sources, locked."""
    home = tmp_path_factory.mktemp("sources")
    sources = make_sources(home)
    runner = CliRunner(home=home, cache=home / "cache")
    words = {**sources, "repository": sources["repository"].as_uri()}
    runner.write_spec(
        "sourced", SPEC.format(channel=demo_runner.home / "channel", glibc=glibc_version(), **words)
    )
    runner.run("lock", "sourced")
    return runner


def made_wheels(cache: Path) -> dict[str, str]:
    """Return the hash of each wheel in a cache that was made there, by file name."""
    return {
        path.name: path.parent.name
        for name in ("compiled", "foldered", "gitted")
        for path in cache.glob(f"downloads/sha256/??/*/{name}-*.whl")
    }


def test_sources_become_wheels(runner: CliRunner) -> None:
    lock = read_lock(runner.home / "specs/sourced.conda-lock.yml")
    kinds = {item.name: item.kind for item in lock.packages if item.manager == "pip"}
    assert kinds == {"compiled": "sdist", "foldered": "directory", "gitted": "git"}
    pinned = {item.name: {wheel.name for wheel in item.wheels} for item in lock.build_requirements}
    assert pinned["compiled"] == pinned["gitted"] == {"setuptools"}
    assert "hatchling" in pinned["foldered"]

    runner.run("build", "sourced")
    first = made_wheels(runner.cache)
    assert {name.split("-")[0]: name.split("-")[1] for name in first} == {
        "compiled": "1.5", "foldered": "1.5", "gitted": "2.5",
    }  # fmt: skip
    tree = runner.cache / "builds/sourced-linux-64/envs/sourced"
    assert list(tree.glob("lib/python*/site-packages/compiled.*.so"))
    assert list(tree.glob("lib/python*/site-packages/foldered/build/__init__.py"))
    assert not list(tree.glob("lib/python*/site-packages/*/direct_url.json"))
    sbom = (runner.cache / "builds/sourced-linux-64/sbom.cdx.json").read_text()
    assert "pkg:pypi/gitted@2.5" in sbom

    # What was made once is in the cache: nothing is made, nothing asked, the same environment.
    moved = runner.home / "repository.away"
    (runner.home / "repository").rename(moved)
    assert "make a wheel" not in runner.run("build", "sourced", "--offline").stderr
    moved.rename(runner.home / "repository")

    # And in another cache, on another day, the same bytes.
    other = CliRunner(home=runner.home, cache=runner.home / "other", environ={"TZ": "Asia/Kolkata"})
    assert "make a wheel" in other.run("build", "sourced").stderr
    assert made_wheels(other.cache) == first


def test_a_folder_that_changed_is_not_built(runner: CliRunner, tmp_path: Path) -> None:
    (runner.home / "foldered/foldered/__init__.py").write_text("VALUE = 2\n")
    other = CliRunner(home=runner.home, cache=tmp_path / "cache")
    shutil.copytree(runner.cache / "downloads", other.cache / "downloads")
    shutil.rmtree(other.cache / "downloads/made")
    failed = other.run("build", "sourced", "--no-check", expect=8)
    assert "changed since it was locked" in failed.stderr
    assert not list((other.cache / "builds").glob("*.partial"))


def test_wheels_are_made_again_for_a_second_build(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    project = PROJECT.format(name="noisy", requires="setuptools", backend="setuptools.build_meta")
    setup = "import os\nopen('noisy.py', 'w').write('SEED = ' + SEED)\n"
    setup += "from setuptools import setup\nsetup(py_modules=['noisy'])\n"
    for seed, code in (("'1'", 0), ("os.environ['PYTHONHASHSEED']", 8)):
        files = {"pyproject.toml": project, "setup.py": setup.replace("+ SEED", f"+ {seed}")}
        folder = write(tmp_path / f"noisy{code}", files)
        runner.write_spec("noisy", one_source(demo_runner, str(folder)))
        runner.run("lock", "noisy")
        finished = runner.run("build", "noisy", "--twice", expect=code)
        assert finished.stderr.count("make a wheel of noisy") == 2
    assert "two builds of noisy differ" in finished.stderr
    assert "noisy.py" in finished.stderr


def test_a_source_that_cannot_be_built(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    project = PROJECT.format(name="broken", requires="setuptools", backend="setuptools.build_meta")
    folder = write(tmp_path / "broken", {"pyproject.toml": project, "setup.py": WANTS_NETWORK})
    runner.write_spec("broken", one_source(demo_runner, str(folder)))
    runner.run("lock", "broken")
    failed = runner.run("build", "broken", expect=4).stderr
    assert "no licence server" in failed
    assert "it tried to use the network" in failed
    assert "it was built with setuptools " in failed
    assert not list((runner.cache / "builds").glob("broken*.partial"))


def test_a_backend_that_leaves_a_server_behind(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    """Compiler caches and build tools do. It holds the output; a build that waited would hang."""
    project = PROJECT.format(name="served", requires="setuptools", backend="setuptools.build_meta")
    setup = "import subprocess\nsubprocess.Popen(['sleep', 'infinity'], start_new_session=True)\n"
    setup += "from setuptools import setup\nsetup(py_modules=['served'])\n"
    files = {"pyproject.toml": project, "setup.py": setup, "served.py": ""}
    folder = write(tmp_path / "served", files)
    runner.write_spec("served", one_source(demo_runner, str(folder)))
    runner.run("lock", "served")
    runner.run("build", "served")


def test_what_a_backend_asks_for_only_while_it_runs(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    project = PROJECT.format(name="greedy", requires="setuptools", backend="greedy_build")
    files = {
        "pyproject.toml": project.replace("[project]", 'backend-path = ["tools"]\n[project]'),
        "tools/greedy_build.py": GREEDY,
    }
    folder = write(tmp_path / "greedy", files)
    runner.write_spec("greedy", one_source(demo_runner, str(folder)))
    runner.run("lock", "greedy")
    failed = runner.run("build", "greedy", expect=4).stderr
    assert "not-pinned is not here" in failed
    assert "its build requires not-pinned>=2, not pinned in the lock" in failed
    assert 'add "not-pinned>=2" to `requires` of [build-system]' in failed


def test_a_source_that_hides_that_it_tried_the_network(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    project = PROJECT.format(name="curious", requires="setuptools", backend="setuptools.build_meta")
    setup = WANTS_NETWORK.replace('raise SystemExit("no licence server") from error', "pass")
    setup += "from setuptools import setup\nsetup(py_modules=[])\n"
    folder = write(tmp_path / "curious", {"pyproject.toml": project, "setup.py": setup})
    runner.write_spec("curious", one_source(demo_runner, str(folder)))
    runner.run("lock", "curious")
    failed = runner.run("build", "curious", expect=4).stderr
    assert "making a wheel of curious tried to use the network" in failed


def test_sources_become_wheels_in_an_image(
    demo_runner: CliRunner, image_engine: ImageEngine, tmp_path: Path
) -> None:
    """A folder and a commit: the project's image has no compiler."""
    sources = make_sources(tmp_path / "sources")
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=dict(image_engine.environ))
    gitted = f"gitted @ git+{sources['repository'].as_uri()}@main#subdirectory=inner"
    lines = f'{sources["folder"]}", "{gitted}'
    runner.write_spec("podded", one_source(demo_runner, lines))
    runner.run("lock", "podded")
    runner.run("build", "podded", "--sandbox", image_engine.name)
    made = made_wheels(runner.cache)
    assert {name.split("-")[0] for name in made} == {"foldered", "gitted"}
    tree = runner.cache / "builds/podded-linux-64/envs/podded"
    assert list(tree.glob("lib/python*/site-packages/gitted-2.5.dist-info"))


def test_submodules_are_not_left_out(
    runner: CliRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    part = write(tmp_path / "part", {"part.txt": ""})
    commit(part)
    whole = write(tmp_path / "whole", {"setup.py": SETUP, "gitted.py": ""})
    commit(whole)
    run([*GIT, "-C", whole, "submodule", "--quiet", "add", part.as_uri(), "vendor/part"])
    commit(whole)
    runner.write_spec("whole", one_source(demo_runner, f"gitted @ git+{whole.as_uri()}@main"))
    environ = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "protocol.file.allow",
        "GIT_CONFIG_VALUE_0": "always",
    }
    other = CliRunner(home=runner.home, cache=runner.cache, environ=environ)
    assert (
        "submodules, which cannot be built: vendor/part"
        in other.run("lock", "whole", expect=3).stderr
    )
