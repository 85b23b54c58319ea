"""The Python interface, as its page shows it: every example of the page is run."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.tiny_specs import make_tiny_channel

PAGE = Path(__file__).parents[2] / "docs/how-to/python.md"

pytestmark = pytest.mark.container


def test_every_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("container", shutil.which("bwrap"))
    make_tiny_channel(tmp_path / "channel", ["tiny"])
    text = PAGE.read_text()
    spec = re.search(r"^```yaml\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert spec
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/tiny.yml").write_text(spec[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 20
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST)
    assert runner.run(examples, out=said.append).failed == 0, "".join(said)
