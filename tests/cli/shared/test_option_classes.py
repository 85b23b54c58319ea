"""Classes of options: click gives a value for each field, and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import pytest

import envferry.cli
from envferry.cli.shared.command import CommandOptions, declared_fields, option

if TYPE_CHECKING:
    from collections.abc import Iterator


class Options(CommandOptions):
    """Two fields."""

    name: str = option("--name")
    dry_run: bool = option("--dry-run", is_flag=True)


def test_a_value_for_each_field() -> None:
    made = Options(name="demo", dry_run=False)
    assert (made.name, made.dry_run) == ("demo", False)
    with pytest.raises(TypeError, match="Options: missing or unknown: dry_run"):
        Options(name="demo")
    with pytest.raises(TypeError, match="Options: missing or unknown: title"):
        Options(name="demo", dry_run=False, title="demo")


def classes(base: type[CommandOptions]) -> Iterator[type[CommandOptions]]:
    """Yield all classes of options, once they are loaded."""
    for one in base.__subclasses__():
        yield one
        yield from classes(one)


def test_every_field_is_an_option_or_an_argument() -> None:
    for module in pkgutil.iter_modules(envferry.cli.__path__):
        importlib.import_module(f"envferry.cli.{module.name}")
    found = set(classes(CommandOptions))
    assert len(found) > 40
    for one in found:
        annotated = {name for base in one.__mro__ for name in vars(base).get("__annotations__", {})}
        assert annotated == set(declared_fields(one)), one
