"""What git says when uv cannot have a repository: it is not there, closed, or lacks the branch."""

from __future__ import annotations

import re

from envferry.errors import PipelineError, SpecError, StoreError
from envferry.lock.solver_output import proxies_hint
from envferry.redaction import without_login

FAILED = re.compile(r"Git operation failed|git operation failed")
COMMAND = re.compile(r"git (?:fetch|clone|ls-remote)[^\n]*? '(?P<url>[^'\s]+://[^']+|/[^']+)'")
QUOTED_URL = re.compile(r"'(?P<url>[a-z+]+://[^']+)'")
# In the words of git, of uv, and of a server that lacks the commit.
NO_REVISION = re.compile(
    r"couldn't find remote ref (?:refs/(?:tags|heads)/)?(?P<name>\S+)"
    r"|failed to find (?:branch|tag|commit|rev|revision)[^`]*`(?P<other>[^`]+)`"
    r"|not our ref (?P<commit>[0-9a-f]{7,40})"
)
REASON = re.compile(r"^\s*(?:fatal|ERROR|error|remote|ssh): .*$|^.*(?:denied|Could not).*$", re.M)
# Hosts answer `not found` for a private repository, too.
LOGIN = re.compile(
    r"could not read (?:Username|Password)|Authentication failed|Permission denied|error: 40[13]"
    r"|Repository not found|not found|error: 404|Host key verification failed"
)


def git_failure(text: str) -> PipelineError | None:
    """Return the error for what git said to uv; None when it was not git that failed.

    A revision that is not there is a fault of the spec. All else is one of the repository, whose
    host answers alike for one that does not exist and for one that a login would show.
    """
    if not FAILED.search(text) and "fatal: unable to access" not in text:
        return None
    found = COMMAND.search(text) or QUOTED_URL.search(text)
    url = without_login(found["url"]) if found else "of the spec"
    if missing := NO_REVISION.search(text):
        name = next(filter(None, missing.groups()))
        message = f"the git repository {url} has no branch, tag or commit `{name}`"
        return SpecError(message, hint="correct what stands after the `@` of its URL in the spec")
    reasons = [_plain(item) for item in REASON.findall(text) if "without a" not in item]
    reason = "; ".join(dict.fromkeys(reasons[:2])) or text.splitlines()[-1].strip()
    hint = "check the network, and the URL in the spec, then try again"
    if LOGIN.search(text):
        hint = "check the URL in the spec; a login for its host belongs into ~/.netrc"
    message = f"the git repository {url} cannot be read: {reason}"
    return StoreError(message, hint=hint + proxies_hint())


def _plain(line: str) -> str:
    """Return what git says without who says it."""
    text = re.sub(r"^\s*(?:fatal|ERROR|error|remote): ", "", line).strip()
    text = re.sub(r"^unable to access '[^']+': ", "", text)
    return re.sub(r"'(?P<url>[a-z+]+://[^']+)'", lambda at: without_login(at["url"]), text)
