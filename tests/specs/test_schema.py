"""The published schema is that of the code, and agrees with the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from envferry.errors import SpecError
from envferry.specs.reading import parse_spec
from envferry.specs.schema import spec_schema

ROOT = Path(__file__).parents[2]
PUBLISHED: dict[str, Any] = json.loads((ROOT / "docs/spec.schema.json").read_text())
FULL = """\
name: n
channels: [conda-forge]
dependencies: [python=3.11, pip, {pip: [rich, "--extra-index-url https://x.example.org"]}]
envferry:
  version: 1.10
  platforms: [linux-64, linux-aarch64]
  system: {glibc: 2.35, cuda: "12.8", archspec: x86_64_v3}
  checks: {imports: [rich], commands: []}
  exclude: ["share/doc/**"]
  channels: {conda-forge: https://mirror.example.org/cf}
"""


def test_the_published_schema_is_the_codes() -> None:
    assert spec_schema() == PUBLISHED, "run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "specs").glob("*.yml")), ids=lambda path: path.name)
def test_our_own_specs_agree(path: Path) -> None:
    if not path.name.endswith(".conda-lock.yml"):
        Draft202012Validator(PUBLISHED).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("dependencies:", "requirements:"),
        ("[python=3.11, pip,", "[[python], pip,"),
        ("{pip:", "{pipp:"),
        ("name: n", "name: a b"),
        ("exclude:", "excluded:"),
        ("imports:", "import:"),
        ("cuda:", "kuda:"),
        ("linux-aarch64", "linux-arm"),
        ('["share/doc/**"]', "share"),
        ("{conda-forge: https", "[conda-forge: https"),
    ],
)
def test_schema_and_reader_say_the_same(old: str, new: str) -> None:
    text = FULL.replace(old, new, 1) if old else FULL
    text = text.replace("example.org/cf}", "example.org/cf]") if new.startswith("[conda") else text
    errors = list(Draft202012Validator(PUBLISHED).iter_errors(yaml.safe_load(text)))
    if not old:
        assert not errors
        assert parse_spec(text, Path("n.yml")).options.exclude == ("share/doc/**",)
        return
    assert errors
    with pytest.raises(SpecError):
        parse_spec(text, Path("n.yml"))
