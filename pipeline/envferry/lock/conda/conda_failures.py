"""Turn what a solver says about the conda half into an error with a hint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from envferry.errors import SpecError, ToolFailed
from envferry.lock.conda.spec_lines import PACKAGE_URL
from envferry.lock.solver_output import (
    NOT_CACHED,
    UNREACHABLE,
    not_cached,
    tidy,
    unreachable_channel,
)
from envferry.redaction import without_credentials

if TYPE_CHECKING:
    from envferry.errors import PipelineError
    from envferry.lock.conda.conda_messages import CondaAnswer, CondaRequest

NO_CHANNEL = re.compile(r"is not a supported scheme|could not parse url|[Ii]nvalid channel")
NAMED_OF_HOSTS = re.compile(r"__(glibc|cuda_arch|cuda|archspec) \D*([\w.]+)")
NEEDED_OF_HOSTS = re.compile(r"__(glibc|cuda_arch|cuda) \S*?(?<!!)=([\w.]+)")
"""What a package requires: the words may name what is offered before."""
NO_PACKAGE = re.compile(r"No candidates were found for ([\w.-]+)")
LOOSE_FILE = re.compile(r'url="(file:[^"]+)"')
NO_JSON = re.compile(r"Failed to parse json")
NO_LINE = re.compile(r"Failed to turn `(.*)` into a MatchSpec \((?:Invalid spec '.*?': )?(.*)\)")
NO_NAME = re.compile(r"invalid package name '(.*?)': (.*)")


def explain(answer: CondaAnswer, request: CondaRequest) -> PipelineError:
    """Turn the solver's words into an error."""
    words = tidy(answer.error).removeprefix("Cannot solve the request because of: ")
    channels = without_credentials(", ".join(request.channels))
    # First, as its patterns include those of a channel that cannot be reached.
    if request.solver and request.offline and NOT_CACHED.search(words):
        return not_cached(words)
    if UNREACHABLE.search(words):
        return unreachable_channel(words, request.channels)
    if NO_CHANNEL.search(words):
        message = f"one of the channels is not valid ({channels}): {words}"
        return SpecError(
            message, hint="a channel is a name, an https:// or file:// URL, or a folder"
        )
    if request.solver and NO_JSON.search(words):
        message = f"{request.solver} does not answer as conda does: {words}"
        return ToolFailed(message, hint="leave out `--solver`: envferry has its own solver")
    if answer.bad_line:
        message = (
            f"{request.written.path}: `{answer.bad_line}` is not a valid conda package: {words}"
        )
        return SpecError(message, hint="write it as `name >=1.2,<2` or `name=1.2=build`")
    if line := NO_LINE.search(words) or NO_NAME.search(words):
        message = f"{request.written.path}: `{line[1]}` is not a valid conda package: {line[2]}"
        return SpecError(message, hint="write it as `name >=1.2,<2` or `name=1.2=build`")
    return _unsolvable(answer, request, words)


def _unsolvable(answer: CondaAnswer, request: CondaRequest, words: str) -> SpecError:
    """Return the error for a request without a solution, with what would give one."""
    channels = without_credentials(", ".join(request.channels))
    if request.updated:
        message = (
            f"{', '.join(request.updated)} cannot be updated alone on {answer.platform}: {words}"
        )
        return SpecError(
            message, hint="name the packages to update with it, or run `envferry lock --upgrade`"
        )
    message = f"the conda half has no solution for {answer.platform} from {channels}: {words}"
    hint = "change the pins that it names, or let `--relax build` drop build strings"
    if answer.elsewhere:
        others = ", ".join(answer.elsewhere)
        message = f"{message}\nthere is one with {others}, but an earlier channel has the name too"
        hint = (
            f"ask for it by its channel (`{answer.elsewhere[0]}`), or let every package come from "
            "there: `envferry: {channel_priority: flexible}`"
        )
        return SpecError(message, hint=hint)
    if (unknown := NO_PACKAGE.search(words)) and unknown[1] != canonicalize_name(unknown[1]):
        hint = f"channels made of wheels call it `{canonicalize_name(unknown[1])}`"
    if (loose := LOOSE_FILE.search(words)) and not PACKAGE_URL.fullmatch(loose[1]):
        hint = (
            "the file is in no channel: put it into the folder of its platform in one of your own, "
            "run `conda index` on that, and name it in `channels:`"
        )
    lacking = NEEDED_OF_HOSTS.search(words) or NAMED_OF_HOSTS.search(words)
    if lacking:
        # The solver never looks at this machine, the lock is for others.
        offer = f"{lacking[1]}: '{lacking[2].rstrip('.')}'"
        hint = f"if the hosts offer it, declare it: `envferry: {{system: {{{offer}}}}}`"
    return SpecError(message, hint=hint)
