"""The wheels of one build that are linked from the store, and not installed again.

extract  what the store lacks, in a container of its own
compile  byte code that it lacks (stored_bytecode.py)
link     all of it into the tree, when nothing of the build runs any more (tree_links.py)
"""

from __future__ import annotations

import logging
import shutil
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.base.json import decode_json
from envferry.build.container_job import downloads_mount, path_inside, path_of_stored
from envferry.build.extraction_request import ExtractionAnswer, ExtractionRequest, WheelArchive
from envferry.build.inside.incremental import AT_START
from envferry.build.inside.network_attempts import COUNTED, split_counted
from envferry.build.interpreters import CompilingPythons
from envferry.build.stored_bytecode import BytecodeCompiler
from envferry.build.tree_links import TreeLinks
from envferry.engines.port import Job, Mount
from envferry.errors import HostError, ToolFailed
from envferry.process import our_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from envferry.build.build_dir import BuildDir
    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.build.request import BuildAnswer
    from envferry.build.wheel_store import CompiledWheel, StoredParts, StoredWheel, WheelStore
    from envferry.engines.port import Sandbox
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

PLACE = "/envferry/wheels"
"""Where the containers see what they make."""


class StoredWheels(msgspec.Struct, frozen=True, kw_only=True):
    """What makes, and finds, the stored wheels of one build."""

    store: WheelStore | None
    """None where all wheels are installed whole."""
    work: BuildDir
    sandbox: Sandbox
    options: BuildOptions
    cache: DownloadCache
    """The downloads; the store lies among them."""
    packages: tuple[LockedPackage, ...]
    """Those of the environment."""

    @property
    def made(self) -> Path:
        """What the containers write to."""
        return self.work.home / "wheels"

    def extract(
        self, packages: Sequence[LockedPackage], downloads: Mapping[str, Path]
    ) -> dict[str, StoredWheel]:
        """Return these wheels, by name, those that can be taken apart; extract what is missing.

        Raises HostError when the disk is full.
        """
        if self.store is None:
            return {}
        wheels = {item.name: item for item in packages if item.manager == "pip"}
        found = {name: self.store.find(item.sha256 or "") for name, item in wheels.items()}
        missing = tuple(
            WheelArchive(
                path=path_inside(downloads[wheels[name].url], self.options),
                sha256=wheels[name].sha256 or "",
            )
            for name in wheels
            if found[name] is None
        )
        if missing:
            log.info("extracting %d of %d wheels", len(missing), len(wheels))
            kept = self._extract(self.store, missing)
            for name, item in wheels.items():
                found[name] = found[name] or kept[item.sha256 or ""]
        for name, wheel in found.items():
            if wheel and wheel.about.why_whole:
                log.info("%s is installed as one: %s", name, wheel.about.why_whole)
        return {name: one for name, one in found.items() if one and not one.about.why_whole}

    def _extract(
        self, store: WheelStore, wheels: tuple[WheelArchive, ...]
    ) -> dict[str, StoredWheel]:
        target = self.made / "extracted"
        target.mkdir(parents=True)
        request = ExtractionRequest(wheels=wheels, target=f"{PLACE}/extracted")
        (self.made / "request.json").write_bytes(msgspec.json.encode(request))
        program = our_module("envferry.build.inside.extract_wheels", python=self.sandbox.python)
        job = Job(
            argv=(*program, f"{PLACE}/request.json"),
            mounts=(
                downloads_mount(self.cache.root, self.options),
                Mount(source=self.made, target=PLACE, writable=True),
            ),
            needs_tool=True,
        )
        finished = self.sandbox.run(job)
        answer = decode_json(finished.stdout, ExtractionAnswer)
        if answer.error:
            msg = f"the wheels cannot be extracted: {answer.error}"
            raise HostError(
                msg,
                hint="free some space, or put the cache elsewhere with ENVFERRY_CACHE",
            )
        return {
            sha256: store.keep(sha256, target / sha256, about)
            for sha256, about in answer.wheels.items()
        }

    def parts(self, wheels: Mapping[str, StoredWheel]) -> dict[str, tuple[str, str]]:
        """Return, by name, what the builder installs of stored wheels: its path and SHA-256."""
        return {
            name: (
                path_of_stored(wheel.small_wheel, self.cache.root, self.options),
                wheel.about.sha256,
            )
            for name, wheel in wheels.items()
        }

    def _compiler(self, store: WheelStore) -> BytecodeCompiler:
        interpreters = CompilingPythons(
            root=store.root / "interpreters",
            sandbox=self.sandbox,
            cache=self.cache,
            options=self.options,
        )
        return BytecodeCompiler(
            interpreters=interpreters,
            packages=self.packages,
            made=self.made,
            prefix=self.work.prefix,
        )

    def finish(
        self,
        wheels: Mapping[str, StoredWheel],
        answer: BuildAnswer,
        link_earlier: Callable[[], None] | None,
    ) -> tuple[BuildAnswer, dict[str, StoredParts]]:
        """Link stored wheels into a tree that the builder made of all the rest.

        `link_earlier` does that for the wheels of a build from which the tree was started. Returns
        what is to be said of the tree, and where in the store its wheels are.
        """
        compiled: dict[str, CompiledWheel] = {}
        if self.store and wheels:
            compiled = self._compiler(self.store).compile(wheels, answer.site_packages)
        links = TreeLinks(self.work.tree, answer.site_packages, is_started=link_earlier is not None)
        if link_earlier:
            link_earlier()
            if links.fills_empty_folder(compiled):
                reason = "a wheel has a file in a folder that was empty"
                answer = replace(answer, why_not_reusable=answer.why_not_reusable or reason)
        links.add(compiled)
        shutil.rmtree(self.made, ignore_errors=True)
        if compiled or link_earlier:
            self.require_quiet_start(chain.from_iterable(answer.wheel_files.values()))
        return answer, {name: one.parts for name, one in compiled.items()}

    def require_quiet_start(self, files: Iterable[str]) -> None:
        """Raise ToolFailed when python, just by being started, wants another machine.

        In a container that can write to nothing: a `.pth` file may run anything. `files` are those
        of all wheels: where none of them is run at the start, nothing has to be tried.
        """
        if not (run := sorted(file for file in files if AT_START.fullmatch(file))):
            return
        python = f"{self.work.prefix}/bin/python"
        job = Job(
            argv=("/bin/sh", "-c", COUNTED, "sh", python, "-I", "-B", "-c", ""),
            mounts=(self.work.mount(writable=False),),
        )
        _, tries = split_counted(self.sandbox.run(job, check=False).stderr)
        if tries:
            names = ", ".join(PurePosixPath(file).name for file in run)
            said = "python tried to use the network when it started, which a build does not have"
            msg = f"{said}: {names}"
            raise ToolFailed(
                msg,
                hint="leave out the package that has that file: python runs it at each start",
            )
