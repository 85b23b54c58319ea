"""What of a site's settings a lock depends on, said aloud and written down."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.base.site_indexes import plain_url
from envferry.config import site_indexes, uv_settings_skipped
from envferry.lock.pip.uv import MAIN_INDEX
from envferry.redaction import without_login

if TYPE_CHECKING:
    from envferry.models import Spec

log = logging.getLogger(__name__)


def named_indexes(spec: Spec) -> tuple[str, ...]:
    """Return the indexes that the machine's settings bring in, without logins; warn of each.

    What else stands in the settings of uv and pip is skipped, and named, too.
    """
    site = site_indexes()
    # The spec's own index is stronger than that of the machine, which then is not asked at all.
    has_own = any(MAIN_INDEX.match(line) for line in spec.pip)
    used = [index for index in (None if has_own else site.main, *site.extra) if index]
    urls = tuple(dict.fromkeys(without_login(plain_url(index.url)) for index in used))
    # Each is named with the file or variable that it comes from: the next machine may have
    # another.
    for index in used:
        url = without_login(plain_url(index.url))
        log.warning("using the package index %s, named by %s", url, index.source)
    passed_over = [*site.passed_over, *uv_settings_skipped()]
    if passed_over:
        log.warning(
            "ignoring settings, as a lock depends only on its spec: %s",
            without_login("; ".join(passed_over)),
        )
    return urls
