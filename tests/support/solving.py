"""Solutions of one platform, without a spec around them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.lock.conda.conda_half import gather, solve_platform

if TYPE_CHECKING:
    from envferry.lock.conda.conda_messages import CondaAnswer, CondaRequest
    from envferry.lock.conda.repodata import ChannelIndexes


def solution(request: CondaRequest, platform: str, indexes: ChannelIndexes) -> CondaAnswer:
    """Gather what a platform can need, and solve."""
    with tempfile.TemporaryDirectory() as directory:
        return solve_platform(
            gather(request, platform, indexes, Path(directory, "index")), platform
        )
