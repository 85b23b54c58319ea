"""No key of any table is lost in silence: it is obeyed, named as not obeyed, or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.lost_words import WORD, check, outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Document = dict[str, Any]
MANIFEST: Document = {
    "workspace": {
        "channels": ["c", {"channel": "d", "priority": 1}],
        "platforms": ["linux-64", {"platform": "linux-aarch64", "glibc": "2.31"}],
        "dependencies": {"shared": {"version": "1.*"}},
        "pypi-options": {"index-url": "https://i.example/simple"},
    },
    "dependencies": {
        "python": "3.11.*",
        "own": {"path": "."},
        "shared": {"workspace": True},
        "numpy": {"version": ">=1", "channel": "d"},
    },
    "host-dependencies": {"cmake": "*"},
    "pypi-dependencies": {
        "flask": "*",
        "bee": {"git": "https://g.example/bee", "rev": "abc"},
        "cee": {"version": ">=1", "extras": ["x"], "index": "https://j.example/simple"},
        "dee": {"path": "dee", "editable": True},
    },
    "pypi-options": {
        "extra-index-urls": ["https://k.example/simple"],
        "find-links": [{"path": "wheels"}, {"url": "https://l.example/wheels"}],
        "no-build": ["eff"],
        "no-binary": ["gee"],
        "prerelease-mode": "allow",
    },
    "system-requirements": {"cuda": "12", "libc": {"family": "glibc", "version": "2.34"}},
    "target": {"linux": {"dependencies": {"mkl": "*"}}, "win-64": {"dependencies": {"w": "*"}}},
    "feature": {
        "f": {
            "channels": ["e"],
            "platforms": ["linux-64"],
            "dependencies": {"scipy": "*"},
            "target": {"linux-64": {"pypi-dependencies": {"gee": "*"}}},
        },
        "g": {"dependencies": {"ruff": {"version": "*"}}},
    },
    "environments": {"default": {"features": ["f"]}, "lint": {"features": ["g"]}},
    "activation": {"env": {"A": "1"}},
    "tasks": {"go": "make"},
}
PROJECT: Document = {
    "project": {
        "name": "x",
        "requires-python": ">=3.10",
        "dependencies": ["rich", "bee", "cee", "dee", "eff"],
        "optional-dependencies": {"docs": ["mkdocs"]},
    },
    "dependency-groups": {"dev": ["pytest", {"include-group": "docs"}]},
    "tool": {
        "uv": {
            "index": [
                {"name": "i", "url": "https://i.example/simple"},
                {"name": "j", "url": "https://j.example/simple", "explicit": True},
            ],
            "sources": {
                "bee": {"git": "https://g.example/bee", "tag": "v1"},
                "cee": {"url": "https://h.example/cee.zip"},
                "dee": {"path": "dee"},
                "eee": {"index": "i"},
                "eff": {"index": "j"},
            },
            "constraint-dependencies": ["old<1"],
        },
        "poetry": {"group": {"dev": {"dependencies": {"linter": "^1"}}}},
        "hatch": {"envs": {"test": {"dependencies": ["tester"]}}},
    },
}
PIXI_PROJECT: Document = {
    "project": {
        "name": "x",
        "requires-python": ">=3.10",
        "dependencies": ["rich"],
        "optional-dependencies": {"docs": ["mkdocs"]},
    },
    "dependency-groups": {"dev": ["pytest"]},
    "tool": {
        "pixi": {
            "workspace": {"channels": ["c"], "platforms": ["linux-64"]},
            "dependencies": {"numpy": "*"},
        }
    },
}
POETRY: Document = {
    "tool": {
        "poetry": {
            "name": "x",
            "dependencies": {
                "python": "^3.10",
                "numpy": "^1.26",
                "bee": {"git": "https://g.example/bee", "branch": "main", "extras": ["fast"]},
                "cee": {"path": "cee", "develop": True},
                "dee": {"url": "https://h.example/dee-1.0-py3-none-any.whl"},
                "eff": {"version": "*", "source": "own", "markers": "os_name == 'posix'"},
                "gee": [{"version": "~1.0", "python": "<3.12"}, {"version": "2.*"}],
                "aitch": {"version": "1.0", "optional": True},
            },
            "group": {"dev": {"dependencies": {"linter": "^1"}}},
            "extras": {"more": ["aitch"]},
            "source": [{"name": "own", "url": "https://i.example/simple", "priority": "explicit"}],
        }
    },
}
ENVIRONMENT: Document = {
    "name": "n",
    "channels": ["c"],
    "dependencies": ["python", "pip", {"pip": ["rich"]}],
    "variables": {"A": "1"},
    "envferry": {
        "system": {"glibc": "2.36"},
        "checks": {"imports": ["rich"], "commands": ["python -V"]},
    },
}


def leaves(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all texts of a document."""
    if isinstance(value, str):
        yield at
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*at, key))


def replaced(document: Document, at: tuple[Any, ...], value: str) -> Document:
    """Return a copy of a document with another text at one place."""
    changed: Document = json.loads(json.dumps(document))
    table = changed
    for key in at[:-1]:
        table = table[key]
    table[at[-1]] = value
    return changed


def in_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {in_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    return json.dumps(value)


def toml_document(document: Document) -> str:
    return "".join(f"{key} = {in_toml(value)}\n" for key, value in document.items())


def yaml_document(document: Document) -> str:
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items())


DOCUMENTS: dict[str, tuple[Document, Callable[[Document], str]]] = {
    "pixi.toml": (MANIFEST, toml_document),
    "pyproject.toml": (PROJECT, toml_document),
    "project.toml": (PIXI_PROJECT, toml_document),
    "poetry.toml": (POETRY, toml_document),
    "environment.yml": (ENVIRONMENT, yaml_document),
}
TABLES_OF_TOOLS = (("tool",), ("tool", "hatch"), ("tool", "poetry"))
"""Any key may stand there."""


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all tables of a document, its own first."""
    if isinstance(value, dict):
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, item in items:
        if isinstance(item, (dict, list)):
            yield from places(item, (*at, key))


def with_key(document: Document, at: tuple[Any, ...], value: object) -> Document:
    """Return a copy of a document with one more key in one of its tables."""
    changed: Document = json.loads(json.dumps(document))
    table = changed
    for key in at:
        table = table[key]
    table[WORD.format("key")] = value
    return changed


VALUES = [WORD.format("value"), [WORD.format("value")], {"version": WORD.format("value")}, True, 1]
INSERTED = [
    (file, at)
    for file, (document, _) in DOCUMENTS.items()
    for at in places(document)
    if at not in TABLES_OF_TOOLS
]


@pytest.mark.parametrize(("file", "at"), INSERTED)
def test_a_key_that_nobody_knows(tmp_path: Path, file: str, at: tuple[Any, ...]) -> None:
    """Wherever it stands: a misspelt key, or one of a newer version of the tool."""
    document, write = DOCUMENTS[file]
    for value in VALUES:
        changed = with_key(document, at, value)
        check(tmp_path / file, write(changed), [WORD.format("key")])


DECIDES_NOTHING = (
    ("environments",),
    ("name",),
    ("project", "name"),
    ("tool", "poetry", "name"),
    ("tool", "uv", "index", 0, "name"),
    ("tool", "uv", "index", 1, "name"),
)
"""Names: of features, of what is named otherwise here, of an index that nothing chooses."""
SAID = [
    (file, at)
    for file, (document, _) in DOCUMENTS.items()
    for at in leaves(document)
    if not any(at[: len(known)] == known for known in DECIDES_NOTHING)
]


@pytest.mark.parametrize(("file", "at"), SAID)
def test_each_value_comes_out(tmp_path: Path, file: str, at: tuple[Any, ...]) -> None:
    document, write = DOCUMENTS[file]
    check(tmp_path / file, write(replaced(document, at, WORD.format("value"))), ["zqvaluew"])


def test_what_has_no_text_comes_out_too(tmp_path: Path) -> None:
    (tmp_path / "pixi.toml").write_text(toml_document(MANIFEST))
    found = [*outcomes(tmp_path / "pixi.toml")]
    assert not any("inherits" in line for line in found)
    assert any("editable = true" in line for line in found)
    assert "--pre" in found
    (tmp_path / "pyproject.toml").write_text(toml_document(PROJECT))
    assert any("explicit = true" in line for line in outcomes(tmp_path / "pyproject.toml"))


@pytest.mark.parametrize("file", DOCUMENTS)
def test_the_documents_themselves_are_read(tmp_path: Path, file: str) -> None:
    document, write = DOCUMENTS[file]
    (tmp_path / file).write_text(write(document))
    assert [*outcomes(tmp_path / file)]
