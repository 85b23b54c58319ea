"""Chinese pages keep in step with the English ones: headings, commands, files and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ZH = ROOT / "docs/zh"
PAIRS = [
    ("README.md", "README.zh.md"),
    *(
        (f"docs/{path.relative_to(ZH)}", f"docs/zh/{path.relative_to(ZH)}")
        for path in sorted(ZH.rglob("*.md"))
        if path.name != "index.md"
    ),
]
COMMENT = re.compile(r"(^|\s+)# .*$", re.MULTILINE)
HAN = re.compile(r"[一-鿿]")


def headings(text: str) -> list[str]:
    """Return the level of each heading, with its number if it has one."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(#+ (?:\d+\.)?)", plain, re.MULTILINE)


def blocks(text: str) -> list[str]:
    """Return what stands in fences, without the comments, which are translated."""
    found = re.findall(r"^```(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [COMMENT.sub("", block).strip() for block in found]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_headings_and_commands_are_the_same(english: str, chinese: str) -> None:
    one, other = ((ROOT / name).read_text() for name in (english, chinese))
    assert headings(one) == headings(other)
    assert blocks(one) == blocks(other)
    rows = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in (one, other)]
    assert rows[0] == rows[1], "a row of a table is missing in one of them"


@pytest.mark.parametrize("chinese", [chinese for _, chinese in PAIRS])
def test_headings_and_comments_are_translated(chinese: str) -> None:
    text = (ROOT / chinese).read_text()
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^## .*$", plain, re.MULTILINE):
        assert HAN.search(line), line
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for comment in re.findall(r"\s# (.*)$", block, re.MULTILINE):
            assert HAN.search(comment), comment


def test_the_words_are_those_of_the_platform() -> None:
    text = (ZH / "tutorials/two-machines.md").read_text()
    for word in (
        "机器A",
        "机器B",
        "训练方法",
        "`conda_env`",
        "deepE-training-prod",
        "./conda/envs",
    ):
        assert word in text


def test_the_tutorials_and_the_guides_of_the_four_roles_exist_in_chinese() -> None:
    names = {str(path.relative_to(ZH)) for path in ZH.rglob("*.md")}
    tutorials = {f"tutorials/{path.name}" for path in (ROOT / "docs/tutorials").glob("*.md")}
    roles = ("ci", "operator", "registry-reader", "security-officer")
    assert tutorials | {f"how-to/{role}.md" for role in roles} <= names
