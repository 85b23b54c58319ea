"""Which environment variables uv is told: none that changes its answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envferry.base.authorities import system_authorities

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX_VARIABLES = (
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
)
HOW_UV_WORKS = (
    "UV_CACHE_DIR",
    "UV_CONCURRENT_",
    "UV_HTTP_",
    "UV_INSECURE_HOST",
    "UV_KEYRING_PROVIDER",
    "UV_LINK_MODE",
    "UV_LOCK_TIMEOUT",
    "UV_LOG_",
    "UV_NATIVE_TLS",
    "UV_NO_CACHE",
    "UV_NO_PROGRESS",
    "UV_OFFLINE",
    "UV_PYTHON",
    "UV_REQUEST_TIMEOUT",
    "UV_SSL_",
    "UV_SYSTEM_CERTS",
    "UV_TOOL_",
)
"""The beginnings of uv's variables that do not change what it answers."""


def environ_for_uv(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for uv, which by itself does not trust a site's own authorities.

    Where the system has a list of authorities, uv is told to go by that, as our own downloads do.
    What decides which packages uv takes is left out: that is for the spec to say. So is `COLUMNS`,
    at which uv would break the lines of its messages, which become part of ours.
    """
    told = {
        name: text for name, text in environ.items() if name != "COLUMNS" and not _decides(name)
    }
    is_told = any(name in told for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"))
    if not is_told and system_authorities():
        told["UV_SYSTEM_CERTS"] = "1"
    return told


def deciding_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that would decide for uv, and are kept from it."""
    return tuple(sorted(name for name in environ if _decides(name) and environ[name]))


def _decides(name: str) -> bool:
    """Whether a variable is uv's, and may change its answer."""
    # A site decides where its packages come from, and the lock notes it (`envferry_indexes`).
    is_index = name in INDEX_VARIABLES or re.fullmatch(r"UV_INDEX_\w+_(USERNAME|PASSWORD)", name)
    return name.startswith("UV_") and not is_index and not name.startswith(HOW_UV_WORKS)
