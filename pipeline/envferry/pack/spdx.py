"""Licences as SPDX expressions: what packages say, and what that allows.

https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYNONYMS = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause",
    "simplified bsd": "BSD-2-Clause",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "lgplv3": "LGPL-3.0-only",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "psf": "PSF-2.0",
    "psf license": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "public domain": "LicenseRef-Public-Domain",
    "the unlicense (unlicense)": "Unlicense",
    "unlicense": "Unlicense",
    "zlib/libpng": "Zlib",
}
"""What packages write for licences that SPDX has, in lower case; nothing that could be two of them:
`BSD` and `GPL` stay what they are."""
WORDS = re.compile(r"[()]|[^\s()]+")
EXCEPTED = re.compile(r"[^\s()]+ WITH [^\s()]+")


def spdx_expression(text: str) -> str | None:
    """Return a licence as an SPDX expression; None for one that cannot be told."""
    plain = " ".join(text.split())
    # Without a synonym the second candidate is empty, which is not valid either.
    for candidate in (plain, SYNONYMS.get(plain.lower(), "")):
        try:
            return str(canonicalize_license_expression(candidate))
        except InvalidLicenseExpression:
            continue
    return None


def license_names(text: str) -> tuple[str, ...]:
    """Return the licences that a package names, by SPDX's names where they can be told.

    Of `A WITH B`, both and the whole; and what the package says, as it says it.
    """
    expression = spdx_expression(text)
    if expression is None:
        return (text,) if text.strip() else ()
    operators = ("AND", "OR", "WITH", "(", ")")
    words = [word for word in WORDS.findall(expression) if word not in operators]
    return tuple(dict.fromkeys((*words, *EXCEPTED.findall(expression), expression, text)))


def can_be_met(expression: str, accepts: Callable[[str], bool]) -> bool:
    """Whether a choice among an expression's licences meets it, with only those that are accepted.

    `A OR B` leaves a choice, `A AND B` does not; `A WITH B` is one licence: it is accepted as a
    whole, or where A is.
    """
    # Each rule looks one word ahead: the empty one is what it finds at the end.
    words = iter([*WORDS.findall(expression), ""])
    met, _ = _any_of(words, next(words), accepts)
    return met


def _any_of(words: Iterator[str], word: str, accepts: Callable[[str], bool]) -> tuple[bool, str]:
    met, word = _all_of(words, word, accepts)
    while word == "OR":
        more, word = _all_of(words, next(words), accepts)
        met = met or more
    return met, word


def _all_of(words: Iterator[str], word: str, accepts: Callable[[str], bool]) -> tuple[bool, str]:
    met, word = _one_of(words, word, accepts)
    while word == "AND":
        more, word = _one_of(words, next(words), accepts)
        met = met and more
    return met, word


def _one_of(words: Iterator[str], word: str, accepts: Callable[[str], bool]) -> tuple[bool, str]:
    if word == "(":
        met, _ = _any_of(words, next(words), accepts)
        return met, next(words)
    following = next(words)
    if following != "WITH":
        return accepts(word), following
    whole = f"{word} WITH {next(words)}"
    # An exception only adds permissions, so a licence that is accepted without it is enough.
    return accepts(whole) or accepts(word), next(words)
