"""Lint of lines that envferry ignores: S113."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envferry.names import ENVS_DIR
from envferry.specs.drafts import LEFT_OUT_MARK
from envferry.specs.reading import HOLDER, KNOWN_KEYS
from envferry.specs.spec_options import OTHER_PLATFORM
from envferry.specs.syntax.conda_lines import without_extras
from envferry.specs.syntax.pip_lines import ignored_options, option_of
from envferry.specs.syntax.selectors import doubtful_comments
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = "S113"
BASE_PREFIX = re.compile(r"/opt/conda/?|.*/((mini|ana)conda|mambaforge|miniforge|micromamba)\d?/?")
OTHERS_KEYS = {
    "allow-pypi-requests": "indexes are those of the pip section",
    "category": "everything is of one category",
}
_Found = tuple[str, object, str]


def ignored_lines(root: Mapping, text: str, pip_lines: list[Text]) -> Iterator[_Found]:
    """Yield each line of a spec that decides nothing, with the reason."""
    yield from _keys(root)
    prefix = root.get("prefix", "")
    if isinstance(prefix, Text) and prefix and not _is_elsewhere_named(prefix):
        yield CODE, prefix, f"`prefix: {prefix}` is ignored (it installs into {ENVS_DIR})"
    yield from _platforms(root)
    yield from _extras(root)
    for line in pip_lines:
        for option, reason in ignored_options(line.strip()):
            yield CODE, line, f"`{option}` is ignored ({reason})"
    if pip_lines and all(_only_decides_where(line.strip()) for line in pip_lines):
        what = "the options under `pip:` are not used (it requires no package)"
        yield CODE, pip_lines[0], what
    for number, selector in doubtful_comments(text):
        what = f"`# [{selector}]` is ignored (it names no platform, the line applies to all)"
        yield CODE, Text.at(selector, number), what
    # Comments are not in the tree, so the text is searched.
    for number, row in enumerate(text.splitlines(), start=1):
        if row.startswith(LEFT_OUT_MARK):
            item = row.removeprefix(LEFT_OUT_MARK)
            yield CODE, Text.at(item, number), f"`{item}` was not carried over from its source"


def _keys(root: Mapping) -> Iterator[_Found]:
    for key in root:
        # A key without a value asks for nothing.
        if key in OTHERS_KEYS and root[key] != "":
            value = root[key]
            shown = ", ".join(value) if isinstance(value, Mapping) else str(value)
            yield CODE, key, f"`{key}: {shown}` is ignored ({OTHERS_KEYS[key]})"
        elif key not in KNOWN_KEYS and not HOLDER.fullmatch(key):
            yield CODE, key, f"`{key}` is ignored (not a key of a spec)"


def _extras(root: Mapping) -> Iterator[_Found]:
    items = root.get("dependencies")
    for item in items if isinstance(items, Sequence) else ():
        extras = without_extras(item)[1] if isinstance(item, Text) else ""
        if extras:
            yield CODE, item, f"`{extras}` of `{item}` is ignored (conda has no extras)"


def _platforms(root: Mapping) -> Iterator[_Found]:
    options = root.get("envferry")
    lists = [
        root.get("platforms"),
        options.get("platforms") if isinstance(options, Mapping) else (),
    ]
    for items in lists:
        for item in items if isinstance(items, Sequence) else ():
            if isinstance(item, Text) and OTHER_PLATFORM.fullmatch(item):
                yield (
                    CODE,
                    item,
                    f"the platform {item} is kept aside (envferry does not lock for it)",
                )


def _is_elsewhere_named(prefix: str) -> bool:
    """Whether it is where we install, or the base environment, which S111 is about."""
    return bool(re.fullmatch(rf"{ENVS_DIR}/[^/]+/?", prefix) or BASE_PREFIX.fullmatch(prefix))


def _only_decides_where(line: str) -> bool:
    name, _ = option_of(line)
    return bool(name) and name not in ("--requirement", "--requirements", "--editable")
