"""What people may see of URLs: logins and tokens are taken out of messages, records and locks."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

URL_LOGIN = re.compile(
    r"(?P<scheme>[\w+.-]*)://(?P<login>[^/\s'\":@]+:[^/\s\",;]+|[^/\s'\"]+)@(?=[\w\[])"
)
"""A password may hold `'` (RFC 3986), which elsewhere ends a URL that is quoted."""
SUBDIR = r"(?:noarch|(?:linux|osx|win|freebsd|emscripten|wasi|zos)-\w+)"
END = r"(?=/|::|[\s'\",;)]|$)"
CHANNEL_TOKEN = re.compile(
    rf"(?P<place>\b(?i:https?)://[^/\s'\"]+)/t/(?!{SUBDIR}{END})[^/\s'\"]+?{END}"
)
"""Conda's form of a login, `https://HOST/t/TOKEN/CHANNEL…`: in no other place is `/t/` one.

A channel at the host's root has no name: a subdir or nothing follows its token (conda, too, takes
that for one: `split_anaconda_token`). Right before a subdir, `t` is a channel's name."""
ANACONDA_TOKEN = re.compile(
    r"(?P<place>\b(?i:https?)://[^\s'\"]+?)/t/[a-z]{2}-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
)
"""What Anaconda's servers issue, `tk-UUID`: below `https://HOST/conda/t/` as well, as no folder is
called like that."""
SECRET_PARAMETER = re.compile(
    r"(?P<before>[?&])(?P<name>(?:[\w.-]*(?:token|signature|passw(?:or)?d|secret|credential|api[_-]?key)"
    r"|sig|auth|jwt|AWSAccessKeyId|GoogleAccessId))=(?P<secret>[^&#\s'\"<>]+)",
    re.IGNORECASE,
)
"""What gives access in a URL's query: tokens of forges and indexes, presigned URLs of S3, Google
(`X-Amz-…`, `X-Goog-…`) and Azure (`sig`)."""


def without_login(text: str) -> str:
    """Remove `user:password@` from every URL in a text.

    The user `git` stays, and every other that ssh is told without a password: it is how ssh
    reaches a repository, and no secret.
    """

    def strip(found: re.Match[str]) -> str:
        login = found["login"]
        # `git+ssh` is ssh, too.
        is_ssh_user = found["scheme"].rpartition("+")[2] == "ssh" and ":" not in login
        return found[0] if login == "git" or is_ssh_user else f"{found['scheme']}://"

    return URL_LOGIN.sub(strip, text)


def without_credentials(text: str) -> str:
    """Remove logins, and the `/t/TOKEN/` of conda channels, from every URL in a text.

    For channels and their packages. What pip names has no tokens: `without_login`.
    """
    without = ANACONDA_TOKEN.sub(r"\g<place>", without_login(text))
    return CHANNEL_TOKEN.sub(r"\g<place>", without)


def has_credentials(text: str) -> bool:
    """Whether a text has a URL of a channel or a package with a login or a token."""
    return without_credentials(text) != text


def fit_to_show(text: str) -> str:
    """Remove logins from every URL in a message, and show that there is what may be a secret.

    The purpose of a URL is unknown here, so what stands where conda's tokens do is masked.
    """
    masked = ANACONDA_TOKEN.sub(r"\g<place>/t/…", without_login(text))
    masked = CHANNEL_TOKEN.sub(r"\g<place>/t/…", masked)
    return SECRET_PARAMETER.sub(r"\g<before>\g<name>=…", masked)


def secret_parameters(url: str) -> tuple[str, ...]:
    """Return the names of the parameters of a URL that give access: they are no part of its login.

    A file cannot be had without them, so a lock keeps them.
    """
    return tuple(found["name"] for found in SECRET_PARAMETER.finditer(url))


def without_secret_parameters(url: str) -> str:
    """Return a URL without the parameters that give access: it says what a file is all the same."""
    place, mark, query = url.partition("?")
    query, hash_mark, fragment = query.partition("#")
    # The pattern begins with the `?` or `&` that stands before a parameter.
    kept = [part for part in query.split("&") if not SECRET_PARAMETER.fullmatch(f"&{part}")]
    return f"{place}{mark if kept else ''}{'&'.join(kept)}{hash_mark}{fragment}"


def redact(url: str) -> str:
    """Return a URL fit for messages: without user, password, token or query."""
    parts = urlsplit(bare_url(url))
    return fit_to_show(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")))


def bare_url(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    # The last `@`: a password may contain one that is not percent-encoded.
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
