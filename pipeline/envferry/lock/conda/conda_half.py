"""The conda half of a lock: solved by rattler, or by a conda of the user's through conda-lock."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from envferry.config import child_environ
from envferry.errors import ToolFailed
from envferry.lock.conda.command_line_credentials import write_netrc
from envferry.lock.conda.conda_messages import CondaAnswer, CondaLockRequest
from envferry.lock.conda.locked_records import locked_record
from envferry.lock.conda.repodata import extract
from envferry.lock.conda.solving import SolveRequest, solve
from envferry.lock.conda.spec_lines import RequestedPackage, requested_package
from envferry.lock.conda.virtual_packages import virtual_packages
from envferry.worker_process import Worker

if TYPE_CHECKING:
    from envferry.lock.conda.conda_messages import CondaRequest, SpecAsWritten
    from envferry.lock.conda.repodata import ChannelIndexes

log = logging.getLogger(__name__)


def gather(
    request: CondaRequest, platform: str, indexes: ChannelIndexes, folder: Path
) -> SolveRequest:
    """Take out of the channels' indexes what a solution for a platform can be made of.

    It is written below `folder`. Raises StoreError when a channel cannot be reached.
    """
    wanted = [requested_package(line, request.channels) for line in request.conda[platform]]
    # conda, too, adds pip by itself where a spec has a pip section and does not ask for it.
    if request.has_pip and not any(item.name == "pip" for item in wanted):
        wanted.append(RequestedPackage(line="pip", spec="pip", name="pip"))
    # As conda does: a line may name a channel that the list does not have.
    own = {item.channel for item in wanted if item.channel} - {*request.channels}
    names = [item.name for item in wanted if item.name]
    # Sorted, as the order decides which channel wins, and that of a set changes from run to run.
    channels = (*request.channels, *sorted(own))
    folder.mkdir()
    return SolveRequest(
        wanted=tuple(wanted),
        tiers=extract(indexes, channels, platform, names, folder),
        virtual_packages=virtual_packages(request.written.system, platform),
        kept=tuple(item.url for item in request.kept if item.platform == platform),
        updated=request.updated,
        exclude_newer=request.exclude_newer,
        priority=request.priority,
    )


def solve_platform(gathered: SolveRequest, platform: str) -> CondaAnswer:
    """Have rattler solve what was gathered for a platform."""
    answer = solve(gathered)
    return CondaAnswer(
        packages=tuple(locked_record(record, platform) for record in answer.records),
        error=answer.error,
        platform=platform,
        bad_line=answer.bad_line,
        elsewhere=answer.elsewhere,
    )


def content_hashes(written: SpecAsWritten, platforms: tuple[str, ...]) -> dict[str, str]:
    """Return conda-lock's hash of the spec by platform; one of ours where it cannot read it.

    Nothing is decided by it: it is what `conda-lock lock --check-input-hash` compares.
    """
    try:
        return ask_conda_lock(CondaLockRequest(written=written, platforms=platforms)).content_hashes
    # Nothing is decided by this hash: conda-lock's limits must not be limits of a spec.
    except ToolFailed as error:
        log.info("conda-lock cannot read %s: %s", written.path, error)
        text = Path(written.path).read_bytes()
        return {platform: blake3(text + platform.encode()).hexdigest() for platform in platforms}


def ask_conda_lock(request: CondaLockRequest) -> CondaAnswer:
    """Let conda-lock hash a spec and, where the request has a solver, solve it with that.

    Raises ToolFailed when it can do neither.
    """
    with tempfile.TemporaryDirectory(prefix="envferry-conda-") as directory:
        scratch = Path(directory)
        # conda-lock removes its temporary folders at exit, which a worker skips (`os._exit`): they
        # go with this one.
        environ = child_environ(TMPDIR=directory)
        if request.solve:
            if request.solve.offline:  # conda and mamba, micromamba
                environ |= {"CONDA_OFFLINE": "true", "MAMBA_OFFLINE": "true"}
            # A file and not the URLs of channels: conda-lock puts these on command lines.
            environ["NETRC"] = str(write_netrc(scratch / "netrc", request.solve.channels))
        worker = Worker(
            module="envferry.lock.conda.conda_lock_worker", scratch=scratch, environ=environ
        )
        return worker.ask(request, CondaAnswer)
