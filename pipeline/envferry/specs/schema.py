"""The JSON Schema of a spec, from the same types that read it: for editors."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from envferry.models import ChannelPriority, Checks, SpecOptions, SystemRequirements
from envferry.names import NAME_PATTERN, PLATFORMS
from envferry.specs.reading import HOLDER
from envferry.specs.spec_options import OTHER_PLATFORM

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STRINGS = {"type": "array", "items": {"type": "string"}}
# YAML reads 2.35 as a number; envferry takes it as written.
VERSION = {"type": ["string", "number"]}
HELP = {
    "name": "What the environment is called; the file's name by default.",
    "channels": "Where conda packages come from, the first has priority.",
    "platforms": "What to lock for; this machine's platform by default.",
    "channel_priority": "Whether channels behind the first that has a package's name count.",
    "dependencies": "Conda packages, and under `pip:` what comes from a Python index.",
    "pip-repositories": "Package indexes besides the default one.",
    "variables": "What activating the environment sets.",
    "envferry": "What other tools do not read.",
}
VARIABLE = {"type": ["string", "number", "boolean", "null"]}
FIELD_HELP = {
    "version": "Of this environment; free text.",
    "platforms": "What to lock for; this machine's platform by default.",
    "system": "What hosts offer: solved for, and checked at install.",
    "checks": "What must work before anything is packed, and again on the host.",
    "exclude": "Globs of files, relative to the prefix, that are not carried.",
    "frozen": "Keep conda and pip from changing the installed environment in place.",
    "channels": "Where a channel is that goes by a name of ours: a URL or a path.",
    "channel_priority": "Whether channels behind the first that has a package's name count.",
    "readme": "What the environment is for, in Markdown; pages of `serve` show it.",
    "data": "Files that come along and belong to no package, each by its SHA-256.",
}
DATA: dict[str, Any] = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "A URL, or a path from the spec's folder."},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "path": {"type": "string", "description": "Where it is put, relative to the prefix."},
            "variables": {
                "type": ["object", "null"],
                "description": "Variables to set, to paths relative to the prefix.",
                "additionalProperties": {"type": "string"},
            },
        },
        "required": ["url", "sha256", "path"],
        "additionalProperties": False,
    },
}


def spec_schema() -> dict[str, Any]:
    """Return the schema of `specs/NAME.yml`."""
    known = {"enum": sorted(PLATFORMS.values())}
    aside = {"pattern": f"^({OTHER_PLATFORM.pattern})$", "description": "Kept aside."}
    platforms = {"type": "array", "items": {"anyOf": [known, aside]}}
    properties: dict[str, Any] = {
        "name": {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"},
        "channels": STRINGS,
        "platforms": platforms,
        "channel_priority": {"enum": list(get_args(ChannelPriority))},
        "dependencies": {"type": "array", "minItems": 1, "items": _dependency()},
        "pip-repositories": STRINGS,
        "variables": {"type": ["object", "null"], "additionalProperties": VARIABLE},
        "envferry": _options(platforms),
    }
    for key, text in HELP.items():
        properties[key] = {"description": text, **properties[key]}
    # As other keys are not allowed, editors would mark these, which files of other tools have.
    for key in ("allow-pypi-requests", "category", "prefix"):
        properties[key] = {"description": "Another tool's; decides nothing here."}
    return {
        "$schema": DIALECT,
        "title": "An environment for envferry",
        "type": "object",
        "properties": properties,
        "patternProperties": {
            f"^({HOLDER.pattern})$": {"description": "Holds what YAML aliases stand for elsewhere."}
        },
        "required": ["dependencies"],
        "additionalProperties": False,
    }


def _dependency() -> dict[str, Any]:
    pip = {
        "type": "object",
        "properties": {"pip": {"type": ["array", "null"], "items": {"type": "string"}}},
        "required": ["pip"],
        "additionalProperties": False,
    }
    return {"oneOf": [{"type": "string", "minLength": 1}, pip]}


def _options(platforms: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the `envferry:` key: its fields are those of the types."""
    special = {"platforms": platforms, "version": VERSION, "data": DATA}
    tables: dict[str, type[msgspec.Struct]] = {"system": SystemRequirements, "checks": Checks}
    properties: dict[str, Any] = {}
    for field in msgspec.structs.fields(SpecOptions):
        name = field.encode_name
        if name not in FIELD_HELP:
            continue  # `variables:` stands beside `envferry:`
        if name in tables:
            value = _table(tables[name])
        elif name in special:
            value = special[name]
        else:
            value = _plain(field.type)
        properties[name] = {"description": FIELD_HELP[name], **value}
    return {
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }


def _table(type_: type[msgspec.Struct]) -> dict[str, Any]:
    versions = type_ is SystemRequirements
    return {
        "type": ["object", "null"],
        "properties": {
            field.encode_name: VERSION if versions else {**STRINGS, "type": ["array", "null"]}
            for field in msgspec.structs.fields(type_)
        },
        "additionalProperties": False,
    }


def _plain(type_: object) -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.schema(type_)
    schema.pop("default", None)
    return schema
