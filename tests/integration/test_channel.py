"""Channels made of real interpreters and wheels, installed by rattler and run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.tags import platform_tags

from envferry.build.downloads import DownloadCache
from envferry.channel.conda_package import PLACEHOLDER
from envferry.channel.creation import ChannelRequest, ChannelSummary, create_channel
from envferry.channel.interpreter import running_interpreter
from envferry.errors import NotFound, SpecError, ToolFailed
from envferry.lock.conda.index_channel import index_channel
from envferry.process import find_program, run
from envferry.progress import Silent
from tests.conftest import require
from tests.support.environments import pack_and_install
from tests.support.pruning import Pruning
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterable

DEBIAN_PYTHON = Path("/usr/bin/python3")

# A process of its own: one that used rattler may crash when it exits.
INSTALL = """
import asyncio, os, sys
from rattler import Channel, MatchSpec, VirtualPackage, install, solve
async def main(channel, prefix, *specs):
    records = await solve(
        [Channel(channel)],
        [MatchSpec(spec) for spec in specs],
        platforms=["linux-64", "noarch"],
        virtual_packages=VirtualPackage.detect(),
    )
    await install(records, target_prefix=prefix, cache_dir=prefix + "-cache", show_progress=False)
    print(*sorted(record.name.normalized for record in records))
    sys.stdout.flush()
    os._exit(0)
asyncio.run(main(*sys.argv[1:]))
"""

LOOK = """
import bz2, ctypes, lzma, os, readline, sqlite3, ssl, sys, sysconfig
prefix = sys.argv[1]
assert sys.prefix == sys.base_prefix == prefix, sys.prefix
for name in ("prefix", "LIBDIR", "INCLUDEPY"):
    assert sysconfig.get_config_var(name).startswith(prefix), sysconfig.get_config_var(name)
site_packages = os.path.join(prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
assert sysconfig.get_path("purelib") == sysconfig.get_path("platlib") == site_packages
assert site_packages in sys.path
assert not [path for path in sys.path if "dist-packages" in path]
assert sysconfig.get_path("scripts") == os.path.join(prefix, "bin")
sqlite3.connect(":memory:").execute("select 1")
ssl.create_default_context()
ctypes.CDLL(None)
print("works")
"""

SAVE_ARRAYS = """
import sys, numpy
paths = sys.argv[1] + "/share/"
array = numpy.array([paths[:-1].encode(), b"x"])
numpy.save(paths + "bytes.npy", array)
numpy.save(paths + "objects.npy", numpy.array([paths[:-1], 7], dtype=object))
numpy.savez(paths + "both.npz", array)
"""
LOAD_ARRAYS = """
import sys, numpy
share = sys.argv[1] + "/share/"
print(numpy.load(share + "bytes.npy")[0].decode())
print(numpy.load(share + "objects.npy", allow_pickle=True)[0])
print(numpy.load(share + "both.npz")["arr_0"][0].decode())
"""


def create(directory: Path, *arguments: str | Path, python: Path | None = None) -> ChannelSummary:
    request = ChannelRequest(
        directory=directory,
        pythons=(str(python),) if python else (),
        arguments=tuple(str(argument) for argument in arguments),
    )
    cache = DownloadCache(directory.parent / "downloads")
    has_downloads = any("." not in str(argument) for argument in arguments)
    progress = Pruning(cache.root) if has_downloads else Silent()
    made = create_channel(request, cache=cache, progress=progress)
    if isinstance(progress, Pruning):
        assert set(progress.tried) == {"Fetching", "Packing"}
    return made


def install(channel: Path, prefix: Path, *specs: str) -> list[str]:
    argv: list[str | Path] = [sys.executable, "-c", INSTALL, channel.as_uri(), prefix, *specs]
    return run(argv).stdout.split()


def python(prefix: Path, *arguments: str | Path) -> str:
    return run([prefix / "bin/python", *arguments]).stdout


def placeholder_holders(prefix: Path) -> list[Path]:
    files = (path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    # conda's own records repeat what `paths.json` said.
    outside = (path for path in files if path.parent.name != "conda-meta")
    return [path for path in outside if PLACEHOLDER.encode() in path.read_bytes()]


def libraries_outside(prefix: Path, binaries: Iterable[Path]) -> set[str]:
    """Return which libraries come from outside the prefix, by what the loader says."""
    lines = run(["ldd", *binaries]).stdout.splitlines()
    found = (re.match(r"\s+(\S+) => (\S+)", line) for line in lines)
    return {match[1] for match in found if match and not match[2].startswith(str(prefix))}


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel of the running interpreter and three wheels, made without a network."""
    work = tmp_path_factory.mktemp("channel")
    files = {
        "{data}/scripts/run-native": "#!python\nimport native\nnative.main()\n",
        "{data}/data/share/native/data.txt": "data",
    }
    platform = next(platform_tags())
    wheels = [
        make_wheel(work, "pure-1.0-py3-none-any", metadata="Requires-Dist: native>=2,<3\n"),
        make_wheel(work, f"native-2.1-py3-none-{platform}", files=files),
        make_wheel(work, "local-1.0+cu128-py3-none-any", metadata="Requires-Dist: local==1.0\n"),
    ]
    summary = create(work / "channel", *wheels)
    assert len(summary.added) == 5
    assert summary.missing == ()
    return summary.directory


@pytest.mark.parametrize("name", ["e", "a-much-longer-name" + "-for-an-environment" * 8])
def test_an_environment_from_the_channel_works(channel: Path, tmp_path: Path, name: str) -> None:
    prefix = tmp_path / name
    installed = install(channel, prefix, "python", "pure", "local")
    assert installed == ["local", "native", "pure", "python", "python_abi"]
    assert python(prefix, "-c", LOOK, prefix) == "works\n"
    assert placeholder_holders(prefix) == []
    assert run([prefix / "bin/say-pure"]).stdout == "hello from pure\n"
    assert run([prefix / "bin/say-native"]).stdout == "hello from native\n"
    assert run([prefix / "bin/run-native"]).stdout == "hello from native\n"
    assert (prefix / "share/native/data.txt").read_text() == "data"


def test_python_brings_the_link_that_conda_forge_ships(channel: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    install(channel, prefix, "python")
    minor = "python{}.{}".format(*sys.version_info)
    assert sys.version_info >= (3, 10)
    assert (prefix / "lib/python3.1").readlink() == Path(minor)
    [record] = (prefix / "conda-meta").glob("python-3*.json")
    entries = json.loads(record.read_text())["paths_data"]["paths"]
    [link] = [entry for entry in entries if entry["_path"] == "lib/python3.1"]
    assert link["path_type"] == "softlink"


def test_nothing_but_glibc_comes_from_the_host(channel: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    install(channel, prefix, "python")
    extensions = prefix.glob("lib/python*/lib-dynload/*.so")
    outside = libraries_outside(prefix, [prefix / "bin/python", *extensions])
    glibc = {"libc", "libm", "libdl", "librt", "libutil", "libpthread", "libresolv"}
    assert {name.partition(".")[0] for name in outside} <= glibc


@pytest.mark.container
def test_the_environment_works_where_there_is_only_glibc(channel: Path, tmp_path: Path) -> None:
    require("bwrap", find_program("bwrap"))
    prefix = tmp_path / "env"
    install(channel, prefix, "python")
    program = (prefix / "bin/python").resolve()
    lines = run(["ldd", program, *prefix.glob("lib/python*/lib-dynload/*.so")]).stdout
    glibc = {Path(path) for path in re.findall(r"(/\S+) \(0x", lines)}
    glibc = {path for path in glibc if prefix not in path.parents}
    binds = [word for path in glibc for word in ("--ro-bind", path.resolve(), path)]
    argv: list[str | Path] = [
        "bwrap",
        "--unshare-all",
        "--ro-bind",
        prefix,
        prefix,
        *binds,
        program,
        "-B",
    ]
    assert run([*argv, "-c", LOOK, prefix]).stdout == "works\n"


def test_metadata_is_what_python_tools_expect(channel: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    install(channel, prefix, "pure", "local")
    look = """
import importlib.metadata as metadata
for name in ("pure", "native", "local"):
    found = metadata.distribution(name)
    assert found.read_text("INSTALLER").strip() == "conda"
    missing = [path for path in found.files if not path.locate().exists()]
    assert not missing, missing
    print(found.metadata["Name"], found.version)
"""
    assert python(prefix, "-c", look).split() == [
        "pure",
        "1.0",
        "native",
        "2.1",
        "local",
        "1.0+cu128",
    ]


def test_doing_it_again_changes_nothing(channel: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in channel.rglob("*.conda")}
    again = create(channel)
    assert again.added == ()
    assert len(again.unchanged) == 2
    assert {path: path.stat().st_mtime_ns for path in channel.rglob("*.conda")} == before
    elsewhere = create(tmp_path / "channel")
    assert elsewhere.added == again.unchanged
    for name in elsewhere.added:
        assert (tmp_path / "channel" / name).read_bytes() == (channel / name).read_bytes()
    assert not [path for path in channel.iterdir() if path.name.startswith(".work")]


def test_all_bad_arguments_are_named_before_anything_is_made(tmp_path: Path) -> None:
    bad = ["gone-1-py3-none-any.whl", "source-1.tar.gz", "not a requirement", "x @ http://a/x.whl"]
    with pytest.raises(SpecError) as caught:
        create(tmp_path / "channel", *bad)
    for name in bad:
        assert name in caught.value.message
    with pytest.raises(NotFound, match=r"gone-1-py3-none-any\.whl"):
        create(tmp_path / "channel", bad[0])
    with pytest.raises(SpecError) as caught:
        create(tmp_path / "channel", make_wheel(tmp_path, "demo-1-cp27-cp27m-win32"))
    assert "cp27-cp27m-win32" in caught.value.message
    assert running_interpreter().abi in caught.value.hint
    assert not (tmp_path / "channel").exists()


def test_what_the_channel_lacks_is_said(tmp_path: Path, channel: Path) -> None:
    wheel = make_wheel(tmp_path, metadata="Requires-Dist: numpy\nRequires-Dist: pure\n")
    assert create(channel, wheel).missing == ("numpy",)


def test_a_damaged_package_stops_the_index(tmp_path: Path) -> None:
    (tmp_path / "noarch").mkdir()
    (tmp_path / "noarch/demo-1-0.conda").write_bytes(b"damaged")
    with pytest.raises(ToolFailed, match="cannot index"):
        index_channel(tmp_path)


@pytest.mark.network
def test_requirements_come_with_what_they_need(channel: Path, tmp_path: Path) -> None:
    summary = create(channel, "numpy", "pygments", "pip", "httpx[socks]")
    assert summary.missing == ()
    prefix = tmp_path / "opt/envs/demo"
    installed = install(channel, prefix, "numpy", "pygments", "pip", "httpx")
    assert {"socksio", "anyio", "certifi", "numpy"} <= set(installed)
    assert python(prefix, "-c", "import numpy; print(int(numpy.ones(3) @ numpy.ones(3)))") == "3\n"
    assert "Pygments" in run([prefix / "bin/pygmentize", "-V"]).stdout
    assert "No broken requirements" in python(prefix, "-m", "pip", "check")
    assert placeholder_holders(prefix) == []
    (prefix / "share").mkdir(exist_ok=True)
    python(prefix, "-c", SAVE_ARRAYS, prefix)
    for envs in (tmp_path / "e", tmp_path / "a-longer-name-than-that-of-the-prefix"):
        envs.mkdir()
        moved = pack_and_install(prefix, envs)
        assert python(moved, "-c", LOAD_ARRAYS, moved) == f"{prefix}/share\n" * 3


@pytest.mark.network
def test_the_systems_python_becomes_an_environments(tmp_path: Path) -> None:
    require("system-python", DEBIAN_PYTHON.exists() and find_program("ldd"))
    summary = create(tmp_path / "channel", "pip", python=DEBIAN_PYTHON)
    prefix = tmp_path / "env"
    install(summary.directory, prefix, "pip")
    assert python(prefix, "-c", LOOK, prefix) == "works\n"
    wheel = make_wheel(tmp_path)
    uv = Path(sys.executable).with_name("uv")
    installers: tuple[list[str | Path], ...] = (
        [prefix / "bin/python", "-m", "pip", "install", "--no-index", "--root-user-action=ignore"],
        [uv, "pip", "install", "--python", prefix / "bin/python", "--no-index", "--reinstall"],
    )
    for installer in installers:
        run([*installer, wheel])
        assert list(prefix.glob("lib/python*/site-packages/demo.py"))
        assert run([prefix / "bin/say-demo"]).stdout == "hello from demo\n"
    run([prefix / "bin/python", "-m", "venv", "--without-pip", tmp_path / "venv"])
    look = "import sys, sysconfig; assert sysconfig.get_path('purelib') in sys.path"
    python(tmp_path / "venv", "-c", look)
