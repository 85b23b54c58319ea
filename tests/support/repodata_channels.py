"""Channels that are nothing but an index: in each form that servers have, with what a test says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard
from cryptography.hazmat.primitives import hashes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LINUX = "linux-64"


def record(name: str, version: str, build: str = "0", **fields: Any) -> dict[str, Any]:
    """Return a record as an index has it; `ending` says which kind of file it is of."""
    digest = sha256(f"{name}{version}{build}".encode())
    ending = fields.pop("ending", ".conda")
    return {
        "build": build,
        "build_number": 0,
        "depends": [],
        "md5": digest[:32],
        "name": name,
        "sha256": digest,
        "size": 1,
        "subdir": LINUX,
        "version": version,
        "fn": f"{name}-{version}-{build}{ending}",
        **fields,
    }


def repodata(records: Iterable[dict[str, Any]], subdir: str = LINUX, **more: Any) -> dict[str, Any]:
    """Return the content of a `repodata.json`."""
    sections: dict[str, dict[str, Any]] = {"packages": {}, "packages.conda": {}}
    for item in records:
        fields = {key: value for key, value in item.items() if key != "fn"}
        key = "packages" if item["fn"].endswith(".tar.bz2") else "packages.conda"
        sections[key][item["fn"]] = fields
    info = {"subdir": subdir, **more.pop("info", {})}
    return {"info": info, **sections, "removed": [], "repodata_version": 1, **more}


def write_channel(
    folder: Path, *records: dict[str, Any], form: str = "repodata.json", **more: Any
) -> Path:
    """Write the index of a channel, `noarch` too."""
    by_subdir: dict[str, list[dict[str, Any]]] = {LINUX: [], "noarch": []}
    for item in records:
        by_subdir.setdefault(item.get("subdir") or LINUX, []).append(item)
    for subdir, items in by_subdir.items():
        target = folder / subdir
        target.mkdir(parents=True, exist_ok=True)
        content = repodata(items, subdir, **dict(more))
        if form == "shards":
            write_shards(target, content)
        elif form.endswith(".zst"):
            packed = zstandard.compress(json.dumps(content).encode())
            (target / form).write_bytes(packed)
        else:
            (target / form).write_text(json.dumps(content))
    return folder


def write_shards(target: Path, content: dict[str, Any]) -> None:
    """Write an index as CEP 16 has it: a file for each name, called by its SHA-256."""
    shards: dict[str, dict[str, Any]] = {}
    for section in ("packages", "packages.conda"):
        for file, fields in content[section].items():
            packed = {
                key: bytes.fromhex(value) if key in ("md5", "sha256") else value
                for key, value in fields.items()
            }
            empty: dict[str, Any] = {"packages": {}, "packages.conda": {}, "removed": []}
            shards.setdefault(fields["name"], empty)[section][file] = packed
    digests = {}
    for name, shard in shards.items():
        data = zstandard.compress(msgspec.msgpack.encode(shard))
        digests[name] = bytes.fromhex(sha256(data))
        (target / f"{sha256(data)}.msgpack.zst").write_bytes(data)
    info = {"base_url": "", "shards_base_url": "", **content["info"]}
    index = {"version": 1, "info": info, "shards": digests}
    listed = zstandard.compress(msgspec.msgpack.encode(index))
    (target / "repodata_shards.msgpack.zst").write_bytes(listed)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex()
