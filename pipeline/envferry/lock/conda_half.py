"""The conda half of a lock: solved by rattler, or by a conda of the user's through conda-lock."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.base.workers import Workers
from envferry.config import child_environ
from envferry.errors import ToolFailed
from envferry.lock.command_line_credentials import write_netrc
from envferry.lock.conda_failures import explain
from envferry.lock.conda_messages import CondaAnswer, CondaRequest
from envferry.lock.locked_records import locked_record
from envferry.lock.repodata import extract
from envferry.lock.solving import SolveRequest, solve
from envferry.lock.spec_lines import Wanted, wanted_line
from envferry.lock.virtual_packages import virtual_packages
from envferry.worker_process import Worker

if TYPE_CHECKING:
    from envferry.lock.repodata import ChannelIndexes
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)


def solve_conda_half(request: CondaRequest, indexes: ChannelIndexes) -> CondaAnswer:
    """Solve the conda half of a spec.

    Raises SpecError when it has no solution, StoreError when a channel cannot be reached.
    """
    if request.solver:
        answer = _ask_conda_lock(request)
        if answer.error:
            raise explain(answer, request)
        return answer
    with Workers(1, "hash") as thread:
        hashes = thread.submit(_content_hashes, request)
        packages: list[LockedPackage] = []
        for platform in request.platforms:
            answer = solve_platform(request, platform, indexes)
            if answer.error:
                raise explain(answer, request)
            packages += answer.packages
        return CondaAnswer(packages=tuple(packages), content_hashes=hashes.result())


def solve_platform(request: CondaRequest, platform: str, indexes: ChannelIndexes) -> CondaAnswer:
    """Have rattler solve what the channels have for one platform."""
    lines = [*request.conda[platform]]
    wanted = [wanted_line(line, request.channels) for line in lines]
    if request.has_pip and not any(item.name == "pip" for item in wanted):
        wanted.append(Wanted(line="pip", spec="pip", name="pip"))
    # As conda does: a line may name a channel that the list does not have.
    own = {item.channel for item in wanted if item.channel} - {*request.channels}
    with tempfile.TemporaryDirectory(prefix="envferry-index-") as directory:
        names = [item.name for item in wanted if item.name]
        channels = (*request.channels, *sorted(own))
        answer = solve(
            SolveRequest(
                wanted=tuple(wanted),
                tiers=extract(indexes, channels, platform, names, Path(directory)),
                virtual_packages=virtual_packages(request.system, platform),
                kept=tuple(item.url for item in request.kept if item.platform == platform),
                updated=request.updated,
                exclude_newer=request.exclude_newer,
                priority=request.priority,
            )
        )
    packages = tuple(locked_record(record, platform) for record in answer.records)
    return CondaAnswer(
        packages=packages,
        error=answer.error,
        platform=platform,
        bad_line=answer.bad_line,
        elsewhere=answer.elsewhere,
    )


def _content_hashes(request: CondaRequest) -> dict[str, str]:
    """Return conda-lock's hash of the spec by platform; one of ours where it cannot read it.

    Nothing is decided by it: it is what `conda-lock lock --check-input-hash` compares.
    """
    if not {*request.platforms} - request.known_hashes.keys():
        return {platform: request.known_hashes[platform] for platform in request.platforms}
    try:
        return _ask_conda_lock(request).content_hashes
    except ToolFailed as error:
        log.info("conda-lock cannot read %s: %s", request.spec_path, error)
        text = Path(request.spec_path).read_bytes()
        return {
            platform: blake3(text + platform.encode()).hexdigest() for platform in request.platforms
        }


def _ask_conda_lock(request: CondaRequest) -> CondaAnswer:
    """Run the worker."""
    with tempfile.TemporaryDirectory(prefix="envferry-conda-") as directory:
        scratch = Path(directory)
        environ = child_environ(TMPDIR=directory)
        if request.solver:
            if request.offline:  # conda and mamba, micromamba
                environ |= {"CONDA_OFFLINE": "true", "MAMBA_OFFLINE": "true"}
            environ["NETRC"] = str(write_netrc(scratch / "netrc", request.channels))
        worker = Worker(module="envferry.lock.conda_lock_worker", scratch=scratch, environ=environ)
        return worker.ask(request, CondaAnswer)
