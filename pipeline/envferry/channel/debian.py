"""Undo what Debian and its children changed in CPython's layout.

Their Python installs into `dist-packages` and `/usr/local`, and takes its prefix for `/usr` all
over the build settings. In an environment it must use `lib/pythonX.Y/site-packages` like any other.
"""

from __future__ import annotations

import ast
import pprint
import re
from typing import TYPE_CHECKING

from envferry.channel.conda_package import PLACEHOLDER

if TYPE_CHECKING:
    from pathlib import Path

SCHEME_FILES = ("sysconfig.py", "sysconfig/__init__.py", "distutils/command/install.py")
"""Where install schemes stand, in one version of Python or another."""

SCHEME_CHANGES = (
    (r"/python3/dist-packages", "/python{py_version_short}/site-packages"),
    (r"dist-packages", "site-packages"),
    (r"(\{(?:plat)?base\})/local(?=[/'\"])", r"\1"),
    (r"(prefix_scheme = |return )(['\"])(?:posix_local|deb_system)\2", r"\1\2posix_prefix\2"),
)
DISTUTILS_CHANGE = (r'prefix, "lib", "python3", "dist-packages"', 'libpython, "site-packages"')

BUILD_PATHS = (
    *("BINDIR", "BINLIBDEST", "CONFINCLUDEDIR", "CONFINCLUDEPY", "DESTDIRS", "DESTLIB"),
    *("DESTSHARED", "INCLDIRSTOMAKE", "INCLUDEDIR", "INCLUDEPY", "LIBDEST", "LIBDIR", "LIBPC"),
    *("LIBPL", "MACHDESTLIB", "MANDIR", "SCRIPTDIR", "datarootdir", "exec_prefix", "prefix"),
    "srcdir",
)
"""The build settings that are paths below the prefix; others name the host's own programs."""

# `site` is frozen into the executable since 3.11, so its text cannot be changed; this module is the
# first thing that it imports, in environments and in virtual environments on top of them alike.
SITE_CUSTOMIZE = '''\
"""Make Debian's `site`, frozen into the interpreter, use site-packages."""

import os
import site
import sys


def getsitepackages(prefixes=None):
    """Return the site-packages directories below each prefix."""
    name = "python%d.%d" % sys.version_info[:2]
    found = []
    for prefix in site.PREFIXES if prefixes is None else prefixes:
        path = os.path.join(prefix, "lib", name, "site-packages")
        if path not in found:
            found.append(path)
    return found


site.getsitepackages = getsitepackages
for path in getsitepackages():
    if path not in sys.path and os.path.isdir(path):
        site.addsitedir(path)
del path
'''


def is_debian_layout(tree: Path, minor: str) -> bool:
    """Whether a staged interpreter would install into `dist-packages`."""
    library = tree / "lib" / f"python{minor}"
    texts = (library / name for name in ("sysconfig.py", "sysconfig/__init__.py", "site.py"))
    return any(path.is_file() and "dist-packages" in path.read_text("utf-8") for path in texts)


def undo_debian_layout(tree: Path, minor: str, multiarch: str) -> None:
    """Change a staged interpreter so that it lives in its environment alone."""
    library = tree / "lib" / f"python{minor}"
    for name in SCHEME_FILES:
        _edit(library / name, SCHEME_CHANGES)
    _edit(library / "distutils/sysconfig.py", (DISTUTILS_CHANGE,))
    (library / "sitecustomize.py").write_text(SITE_CUSTOMIZE, "utf-8")
    # setuptools imports this module of Debian's to get its install schemes, which would undo the
    # edits.
    (library / "_distutils_system_mod.py").unlink(missing_ok=True)
    for path in library.glob("_sysconfigdata*.py"):
        if not path.is_symlink():
            _rewrite_build_settings(path, multiarch)
    multiarch_change = (rf"/lib/{re.escape(multiarch)}(?![\w-])", "/lib")
    prefix_change = (r"(?m)^(prefix\s*=\s*)/usr\s*$", rf"\g<1>{PLACEHOLDER}")
    for pattern in ("lib/pkgconfig/*.pc", "lib/python*/config-*/Makefile"):
        for path in tree.glob(pattern):
            _edit(path, (prefix_change, multiarch_change))


def copy_real_pyconfig(headers: Path, target: Path, multiarch: str) -> None:
    """Replace the copied header that includes `<MULTIARCH/pythonX.Y/pyconfig.h>` by that one."""
    real = headers.parent / multiarch / headers.name / "pyconfig.h"
    # The header in the common folder only includes the one of the machine, by a path of the host.
    if multiarch and real.is_file():
        (target / "pyconfig.h").write_bytes(real.read_bytes())


def _edit(path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    if not path.is_file() or path.is_symlink():
        return
    text = path.read_text("utf-8")
    for pattern, replacement in changes:
        text = re.sub(pattern, replacement, text)
    path.write_text(text, "utf-8")


def _rewrite_build_settings(path: Path, multiarch: str) -> None:
    """Put the placeholder for `/usr` where a build setting means the prefix."""
    [assignment] = [
        node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Assign)
    ]
    settings: dict[str, object] = ast.literal_eval(assignment.value)
    for name in BUILD_PATHS:
        value = settings.get(name)
        if isinstance(value, str):
            # Only at the start of a word: a `/usr` in the midst of a path is not the prefix.
            value = re.sub(r"(?<!\S)/usr(?=/|\s|$)", PLACEHOLDER, value)
            settings[name] = value.replace(f"/lib/{multiarch}", "/lib")
    settings.pop("WHEEL_PKG_DIR", None)  # ensurepip would look for wheels on the host
    path.write_text(f"build_time_vars = {pprint.pformat(settings)}\n", "utf-8")
