"""Which interpreters are taken, and what Debian's changes become."""

from __future__ import annotations

import json
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

from envferry.channel.conda_package import PLACEHOLDER
from envferry.channel.debian import is_debian_layout, undo_debian_layout
from envferry.channel.elf import glibc_floor, shared_libraries
from envferry.channel.interpreter import find_interpreter, running_interpreter
from envferry.channel.interpreter_probe import facts
from envferry.channel.interpreter_staging import python_abi_package
from envferry.errors import SpecError
from envferry.process import run

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN_SYSCONFIG = """
_INSTALL_SCHEMES = {
    'deb_system': {
        'purelib': '{base}/lib/python3/dist-packages',
        },
    'posix_local': {
        'purelib': '{base}/local/lib/python{py_version_short}/dist-packages',
        'scripts': '{base}/local/bin',
        'data': '{base}/local',
        },
    }
prefix_scheme = 'posix_local'
"""


def answering(path: Path, **changes: object) -> Path:
    """Write a program that answers the probe as another interpreter would."""
    answer = json.dumps({**facts(), "executable": str(path), **changes})
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_the_placeholder_is_as_long_as_conda_wants() -> None:
    assert len(PLACEHOLDER) == 255
    assert PLACEHOLDER.startswith("/")


def test_the_running_interpreter_is_found_behind_its_environment(tmp_path: Path) -> None:
    found = running_interpreter()
    assert found.minor == "{}.{}".format(*sys.version_info)
    assert str(found.executable).startswith(sys.base_prefix)
    assert found.facts.prefix == found.facts.base_prefix
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"])
    assert find_interpreter(tmp_path / "venv/bin/python") == found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"implementation": "PyPy"}, "is PyPy, expected CPython"),
        ({"free_threaded": True}, "free-threaded"),
        ({"debug": True}, "debug build"),
        ({"glibc": False}, "not linked to glibc"),
        ({"bits": 32}, "32-bit"),
        ({"library_directory": "lib64"}, "lib64"),
        ({"version": "3.7.16"}, "is Python 3.7.16, expected 3.8 or newer"),
        ({"version": "3.15.0rc1"}, "pre-release"),
    ],
)
def test_interpreters_that_cannot_be_packed_are_refused(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(SpecError, match=expected) as caught:
        find_interpreter(answering(tmp_path / "python", **changes))
    assert "--python" in caught.value.hint


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the Python interpreter no-such-python does not exist"):
        find_interpreter("no-such-python")
    with pytest.raises(SpecError, match=r"Python interpreter .* does not exist"):
        find_interpreter(tmp_path)
    with pytest.raises(SpecError, match="/bin/true does not answer"):
        find_interpreter("/bin/true")
    with pytest.raises(SpecError, match="/bin/false does not answer"):
        find_interpreter("/bin/false")


def test_python_and_its_abi_package_name_each_other(tmp_path: Path) -> None:
    for version, build in (("3.12.1", "cpython"), ("3.13.0", "cp313")):
        answer = answering(tmp_path / "python", version=version, base_prefix="/nonexistent")
        found = find_interpreter(answer)
        package = python_abi_package(found)
        minor = version[:4]
        assert package.stem == f"python_abi-{minor}-0_cp3{minor[2:]}"
        assert package.constrains == (f"python {minor}.* *_{build}",)


def test_the_loader_says_what_a_program_needs() -> None:
    program = running_interpreter().executable
    needed = shared_libraries([program])[program]
    assert not any(name.startswith(("libc.so", "ld-linux")) for name in needed)
    found = glibc_floor([program])
    assert found
    assert found >= (2, 2)


def test_debian_becomes_like_any_other(tmp_path: Path) -> None:
    library = tmp_path / "lib/python3.11"
    library.mkdir(parents=True)
    (library / "sysconfig.py").write_text(DEBIAN_SYSCONFIG)
    (library / "_distutils_system_mod.py").write_text("")
    settings = {
        "prefix": "/usr",
        "LIBDIR": "/usr/lib/x86_64-linux-gnu",
        "DESTDIRS": "/usr /usr/lib/x86_64-linux-gnu",
        "INSTALL": "/usr/bin/install -c",
        "TZPATH": "/usr/share/zoneinfo",
        "WHEEL_PKG_DIR": "/usr/share/python-wheels/",
        "SIZEOF_INT": 4,
    }
    data = library / "_sysconfigdata__x86_64-linux-gnu.py"
    data.write_text(f"build_time_vars = {settings!r}\n")
    assert is_debian_layout(tmp_path, "3.11")
    undo_debian_layout(tmp_path, "3.11", "x86_64-linux-gnu")
    assert not is_debian_layout(tmp_path, "3.11")
    changed: dict[str, object] = {}
    exec((library / "sysconfig.py").read_text(), changed)
    site_packages = "{base}/lib/python{py_version_short}/site-packages"
    assert changed["prefix_scheme"] == "posix_prefix"
    assert changed["_INSTALL_SCHEMES"] == {
        "deb_system": {"purelib": site_packages},
        "posix_local": {"purelib": site_packages, "scripts": "{base}/bin", "data": "{base}"},
    }
    exec(data.read_text(), changed)
    assert changed["build_time_vars"] == {
        "prefix": PLACEHOLDER,
        "LIBDIR": f"{PLACEHOLDER}/lib",
        "DESTDIRS": f"{PLACEHOLDER} {PLACEHOLDER}/lib",
        "INSTALL": "/usr/bin/install -c",
        "TZPATH": "/usr/share/zoneinfo",
        "SIZEOF_INT": 4,
    }
    assert sysconfig.get_path("purelib").endswith("site-packages")
