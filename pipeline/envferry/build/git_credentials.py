"""Logins of git servers, passed to git in its environment: every user can read command lines."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from envferry.base.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GIT_LOGIN = re.compile(r"git\+(?P<scheme>https?)://(?P<login>[^/@\s]+)@(?P<place>[^@#;\s]+)")
COUNT = "GIT_CONFIG_COUNT"


def git_logins(lines: Iterable[str]) -> dict[str, Secret]:
    """Return the logins in requirement lines, `user:password` as URLs have it, by git's URL."""
    found = (match for line in lines if (match := GIT_LOGIN.search(line)))
    return {f"{match['scheme']}://{match['place']}": Secret(match["login"]) for match in found}


def without_git_login(line: str) -> str:
    """Take the login out of a git requirement line."""
    return GIT_LOGIN.sub(r"git+\g<scheme>://\g<place>", line)


def git_environ(environ: Mapping[str, str], logins: Mapping[str, Secret]) -> dict[str, str]:
    """Return an environment in which git, 2.31 or newer, knows these logins and asks for none.

    https://git-scm.com/docs/git-config: `http.<url>.extraHeader`, and GIT_CONFIG_COUNT.
    """
    # Settings that the caller passes the same way keep their numbers.
    first = int(environ.get(COUNT) or 0)
    more = {"GIT_TERMINAL_PROMPT": "0", COUNT: str(first + len(logins))}
    for number, (url, login) in enumerate(logins.items(), start=first):
        user, _, password = login.reveal().partition(":")
        words = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        # Not url.insteadOf: that URL would be on the command line of `git remote-https`.
        more[f"GIT_CONFIG_KEY_{number}"] = f"http.{url}.extraHeader"
        more[f"GIT_CONFIG_VALUE_{number}"] = f"Authorization: Basic {words}"
    return {**environ, **more}
