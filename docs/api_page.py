"""The page of the Python interface, out of its signatures and docstrings."""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry import api
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = ("lock", "read_lock", "build", "pack", "push", "fetch", "install", "verify")
QUERIES = ("open_registry", "ls", "find", "show", "verify_signature")
HEADER = """# Python API

Written by `make docs` from `envferry.api`. [Call envferry from Python](how-to/python.md) shows it
at work.

"""


def api_page() -> str:
    """Return the page of everything that `envferry.api` exports."""
    about = inspect.getdoc(api) or ""
    parts = [HEADER + _with_code(about.partition("\n\n")[2])]
    for title, names in (("Stages", STAGES), ("Registries", QUERIES)):
        parts.append(f"## {title}")
        parts += [_function(name) for name in names]
    exported = [getattr(api, name) for name in api.__all__]
    classes = [one for one in exported if isinstance(one, type)]
    options = [one for one in classes if one.__name__.endswith("Options") or one is api.Filter]
    errors = [one for one in classes if issubclass(one, PipelineError)]
    values = [one for one in classes if one not in options and one not in errors]
    parts.append("## Options")
    parts += [_class(one) for one in options]
    parts.append("## Values")
    parts += [_class(one) for one in values]
    parts.append("## Errors\n\n| class | exit code | |\n|---|---|---|")
    rows = [
        f"| `{one.__name__}` | {'' if one is PipelineError else one.exit_code} | "
        f"{(one.__doc__ or '').splitlines()[0]} |"
        for one in errors
    ]
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


def _with_code(text: str) -> str:
    """Return reStructuredText's indented example as a fenced one."""
    code, _, rest = text.partition("\n\nWhat is named")
    lines = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    return f"```python\n{lines}\n```\n\nWhat is named{rest}"


def _function(name: str) -> str:
    """Return the signature of a function as its source has it, and what it says of itself."""
    function = getattr(api, name)
    signature = inspect.getsource(function).partition('    """')[0].rstrip().removesuffix(":")
    return f"### {name}\n\n```python\n{signature}\n```\n\n{inspect.getdoc(function)}"


def _class(kind: type) -> str:
    about = (inspect.getdoc(kind) or "").strip()
    rows = [f"| `{name}` | {_cell(text)} |" for name, text in _fields(kind)]
    table = "\n\n| field | |\n|---|---|\n" + "\n".join(rows) if rows else ""
    return f"### {kind.__name__}\n\n{about}{table}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the public fields of a class, its base's first, each with type, default, docstring."""
    if kind is api.Registry or not (is_dataclass(kind) or issubclass(kind, msgspec.Struct | Enum)):
        return
    for base in kind.__bases__:
        if base.__module__.startswith("envferry."):
            yield from _fields(base)
    tree = ast.parse(Path(inspect.getsourcefile(kind) or "").read_text())
    body = next(
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        about = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            about = " ".join(inspect.cleandoc(str(after.value.value)).split())
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, f"`{ast.unparse(node.annotation)}` {about}".strip()
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, f"`{ast.unparse(node.value)}` {about}".strip()
