"""Environment variables in the URL of a channel: `https://$USER:${TOKEN}@HOST/CHANNEL`.

conda replaces them wherever they stand, conda-lock where a login or a token does. Here it is the
latter: what else is in a URL is written into locks, and a value of a variable must not be.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from envferry.config import environment_variable
from envferry.errors import SpecError
from envferry.redaction import fit_to_show, without_credentials

# What `os.path.expandvars` takes for one, as conda does.
VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z0-9_]+)|\{(?P<braced>[^}]+)\})")
LOGIN = re.compile(r"(?<=://)[^/@]+(?=@)")
TOKEN = re.compile(r"(?<=/t/)[^/:]+")
KEPT = "!&*+=~"
"""What a login may have as it is (RFC 3986, 3.2.1) and does not end a URL in a text."""


def with_variables(channel: str) -> str:
    """Return a channel with the values of the variables in the login or the token of its URL.

    Raises SpecError for one that is not set or that stands elsewhere.
    """
    if "://" not in channel or not VARIABLE.search(channel):
        return channel
    shown = fit_to_show(channel)
    if VARIABLE.search(TOKEN.sub("", LOGIN.sub("", channel))):
        message = f"the channel {shown} has an environment variable outside of its login"
        raise SpecError(message, hint="write that part out: locks name the channel")
    found = TOKEN.sub(lambda part: _filled(part[0], shown), channel)
    for token in TOKEN.findall(found):
        # Else it is not known for one any more, and ends up in locks.
        if f"/t/{token}" in without_credentials(found):
            message = f"the channel {shown} has its token where tokens cannot be told from folders"
            raise SpecError(message, hint="write https://HOST/t/$TOKEN/CHANNEL")
    return LOGIN.sub(lambda part: _filled(part[0], shown), found)


def _filled(text: str, channel: str) -> str:
    return VARIABLE.sub(lambda found: _value(found["plain"] or found["braced"], channel), text)


def _value(name: str, channel: str) -> str:
    value = environment_variable(name)
    if not value:
        message = f"the channel {channel} wants the environment variable {name}, which is not set"
        hint = f"set {name}, or leave it out and put the login into ~/.netrc"
        raise SpecError(message, hint=hint)
    # One that is encoded already, as conda wants it to be, stays as it is.
    return re.sub(r"%25(?=[0-9A-Fa-f]{2})", "%", quote(value, safe=KEPT))
