"""Byte code of stored wheels: what the store lacks is compiled by an interpreter of its own."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envferry.base.sha256 import sha256_hex
from envferry.build.container_job import downloads_mount, path_of_stored
from envferry.build.inside import compile_bytecode
from envferry.build.inside.incremental import modules_of
from envferry.build.wheel_store import FILES, CompiledWheel, WheelsNotStored, keep_bytecode
from envferry.engines.port import Job, Mount

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envferry.build.interpreters import CompilingPythons
    from envferry.build.wheel_store import StoredWheel
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

PLACE = "/envferry/bytecode"
"""Where the container sees the folder that byte code is written to."""
USUAL_SITE_PACKAGES = re.compile(r"lib/python3\.\d+t?/site-packages")


class BytecodeCompiler(msgspec.Struct, frozen=True, kw_only=True):
    """Compiles the wheels of one build.

    Nothing of the environment takes part in that, for other environments get the same files.
    """

    interpreters: CompilingPythons
    packages: tuple[LockedPackage, ...]
    """Those of the environment."""
    made: Path
    """A folder to work in; removed by whoever links the wheels."""
    prefix: PurePosixPath

    def compile(
        self, wheels: Mapping[str, StoredWheel], site_packages: str
    ) -> dict[str, CompiledWheel]:
        """Return the byte code of wheels, by name; what the store lacks is compiled.

        Raises WheelsNotStored where wheels go to an unusual place.
        """
        if not USUAL_SITE_PACKAGES.fullmatch(site_packages):
            message = f"wheels go to {site_packages}"
            raise WheelsNotStored(message)
        key = self._key(site_packages)
        found = {name: wheel.bytecode(key) for name, wheel in wheels.items()}
        missing = {
            name: wheel
            for name, wheel in wheels.items()
            if not ((stored := found[name]) and stored.is_intact())
        }
        modules = [(wheel, wheel.modules()) for wheel in missing.values()]
        # A module with such a path may hold the prefix, of this environment or of another one.
        self._compile("shared", modules, f"{self.prefix.parent}/", site_packages)
        for name, wheel in missing.items():
            found[name] = keep_bytecode(wheel, key, self.made / "shared" / wheel.home.name)
        compiled = {
            name: CompiledWheel(
                wheel=wheels[name], bytecode=code, own=self.made / "own" / wheels[name].home.name
            )
            for name, code in found.items()
            if code
        }
        left = [
            (one.wheel, names) for one in compiled.values() if (names := modules_without_code(one))
        ]
        # Those that hold the prefix get none; the others cannot be compiled.
        for line in self._compile("own", left, str(self.prefix), site_packages):
            log.info("%s", line)
        return compiled

    def _key(self, site_packages: str) -> str:
        """Return what tells byte code from that of other interpreters, and for other places."""
        made_by = {
            "interpreter": self.interpreters.key(self.packages),
            "compiler": sha256_hex(Path(compile_bytecode.__file__).read_bytes()),
            "above": str(self.prefix.parent),
            "site_packages": site_packages,
        }
        return sha256_hex(msgspec.json.encode(made_by, order="deterministic"))[:32]

    def _compile(
        self,
        folder: str,
        modules: Sequence[tuple[StoredWheel, Sequence[str]]],
        home: str,
        site_packages: str,
    ) -> list[str]:
        """Compile modules of wheels that do not hold the path `home`; return the complaints."""
        if not modules:
            return []
        interpreter = self.interpreters.find_or_make(self.packages, self.made / "interpreter")
        cache_root, options = self.interpreters.cache.root, self.interpreters.options
        words = []
        for wheel, names in modules:
            source = path_of_stored(wheel.home / FILES, cache_root, options)
            target = f"{PLACE}/{folder}/{wheel.home.name}/{FILES}"
            for name in names:
                words += [f"{source}/{name}", f"{site_packages}/{name}", f"{target}/{name}"]
        self.made.mkdir(exist_ok=True)
        listed = self.made / f"{folder}.list"
        listed.write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))
        script = Path(compile_bytecode.__file__)
        shutil.copyfile(script, self.made / script.name)
        job = Job(
            argv=(
                *(interpreter.python, "-I", "-B", "-S", "-W", "ignore"),
                *(f"{PLACE}/{script.name}", "--modules", f"{PLACE}/{listed.name}", home),
            ),
            mounts=(
                interpreter.mount,
                downloads_mount(cache_root, options),
                Mount(source=self.made, target=PLACE, writable=True),
            ),
        )
        return self.interpreters.sandbox.run(job).stderr.splitlines()


def modules_without_code(compiled: CompiledWheel) -> list[str]:
    """Return the modules of a wheel that have no byte code in the store."""
    has = set(modules_of(map(PurePosixPath, compiled.bytecode.files)))
    return [module for module in compiled.wheel.modules() if module not in has]
