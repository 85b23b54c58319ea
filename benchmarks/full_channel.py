"""A channel as large as conda-forge's: 1,160,000 records in the format of real ones.

Made of nothing but numbers, so equal calls give equal bytes: repodata.json with its `.zst`, and the
shards of CEP 16. There are no packages behind it: what it measures is locking.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDS = {"linux-64": 700_000, "noarch": 460_000}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RECORDS_OF_A_NAME = 40
ASKED = ("python=3.11", *(f"linux-64-p{number:05}" for number in range(400, 17_000, 1_200)))
"""What an environment asks for: hundreds of names in the end, as real ones do."""
HUBS = 400
"""So many packages of a subdir are needed by others."""
SHARED_LIBRARIES = (
    "__glibc >=2.17,<3.0.a0",
    "libgcc >=13",
    "libstdcxx >=13",
    "libzlib >=1.3.1,<2.0a0",
)


@dataclass(frozen=True, slots=True)
class Subdir:
    """The names and records of one subdir."""

    name: str
    records: int

    @property
    def names(self) -> int:
        """How many packages have records."""
        return self.records // RECORDS_OF_A_NAME

    def package(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the records of one package, by file name."""
        chance = random.Random(f"{self.name}{number}")
        name = f"{self.name}-p{number:05}"
        needs = self._needs(number, chance)
        found: dict[str, dict[str, Any]] = {}
        for place in range(RECORDS_OF_A_NAME):
            major, rest = divmod(place, len(PYTHONS))
            found |= self._record(name, f"{1 + major // 4}.{major % 4}.0", PYTHONS[rest], needs)
        return found

    def _needs(self, number: int, chance: random.Random) -> list[str]:
        """Return what a package needs: most need of the same few hundred."""
        before = {chance.randrange(min(number, HUBS)) for _ in range(3)} if number else set()
        own = [f"{self.name}-p{other:05} >=1.0.0,<4.0a0" for other in sorted(before)]
        if self.name != "noarch" and number % 3 == 0:
            own.append(f"noarch-p{number % HUBS:05} >=1.0.0")
        return own

    def _record(
        self, name: str, version: str, python: str, needs: list[str]
    ) -> dict[str, dict[str, Any]]:
        upper = f"{python[:2]}{int(python[2:]) + 1}.0a0"
        is_noarch = self.name == "noarch"
        number = PYTHONS.index(python)
        digest = hashlib.sha256(f"{name}{version}{python}".encode()).hexdigest()
        build = (
            f"pyh{digest[:7]}_{number}"
            if is_noarch
            else f"py{python[0]}{python[2:]}h{digest[:7]}_0"
        )
        depends = (
            ["python >=3.9"] if is_noarch else [f"python >={python},<{upper}", *SHARED_LIBRARIES]
        )
        abi = [] if is_noarch else [f"python_abi {python}.* *_cp{python[0]}{python[2:]}"]
        record = {
            "build": build,
            "build_number": number if is_noarch else 0,
            "constrains": [f"{name}-base <0a0"],
            "depends": [*depends, *abi, *needs],
            "license": "BSD-3-Clause",
            "license_family": "BSD",
            "md5": digest[:32],
            "name": name,
            **({"noarch": "python"} if is_noarch else {}),
            "sha256": digest,
            "size": int(digest[:6], 16),
            "subdir": self.name,
            "timestamp": 1_700_000_000_000 + int(digest[:8], 16),
            "version": version,
        }
        return {f"{name}-{version}-{build}.conda": record}

    def packages(self) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """Yield each name with its records."""
        if self.name != "noarch":
            yield from foundations()
        for number in range(self.names):
            yield f"{self.name}-p{number:05}", self.package(number)


def foundations() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield the pythons, and what all native packages need."""
    pythons: list[tuple[str, str, str, list[str]]]
    pythons = [
        ("python", f"{minor}.9", "h0_0_cpython", [f"python_abi {minor}.*"]) for minor in PYTHONS
    ]
    tags = [f"cp{minor[0]}{minor[2:]}" for minor in PYTHONS]
    abis: list[tuple[str, str, str, list[str]]]
    abis = [("python_abi", minor, f"5_{tag}", []) for minor, tag in zip(PYTHONS, tags, strict=True)]
    libraries = [("libgcc", "14.2.0"), ("libstdcxx", "14.2.0"), ("libzlib", "1.3.1")]
    others: list[tuple[str, str, str, list[str]]]
    others = [(name, version, "h0_0", []) for name, version in libraries]
    for group in (pythons, abis, *([item] for item in others)):
        records = {}
        for name, version, build, depends in group:
            digest = hashlib.sha256(f"{name}{version}".encode()).hexdigest()
            records[f"{name}-{version}-{build}.conda"] = {
                "build": build,
                "build_number": 0,
                "depends": depends,
                "license": "MIT",
                "md5": digest[:32],
                "name": name,
                "sha256": digest,
                "size": 1000,
                "subdir": "linux-64",
                "timestamp": 1_700_000_000_000,
                "version": version,
            }
        yield group[0][0], records


def make_full_channel(directory: Path, *, sharded: bool = True) -> None:
    """Write the channel; takes a minute or two, and over 1 GB of disk."""
    for name, records in RECORDS.items():
        target = directory / name
        target.mkdir(parents=True)
        write_subdir(Subdir(name, records), target, sharded=sharded)


def write_subdir(subdir: Subdir, target: Path, *, sharded: bool) -> None:
    """Write one subdir in its three forms."""
    shards = {}
    compressor = zstandard.ZstdCompressor(level=1)
    encoder = msgspec.json.Encoder()
    with (target / "repodata.json").open("wb") as stream:
        head = {"info": {"subdir": subdir.name}, "packages": {}, "removed": []}
        stream.write(json.dumps(head)[:-1].encode() + b', "packages.conda": {')
        comma = b""
        for name, records in subdir.packages():
            stream.write(comma + encoder.encode(records)[1:-1])
            comma = b",\n"
            if sharded:
                shards[name] = write_shard(records, target, compressor)
        stream.write(b'}, "repodata_version": 1}')
    with (
        (target / "repodata.json").open("rb") as source,
        (target / "repodata.json.zst").open("wb") as packed,
    ):
        zstandard.ZstdCompressor(level=3, threads=-1).copy_stream(source, packed)
    if sharded:
        info = {"base_url": "", "shards_base_url": "", "subdir": subdir.name}
        index = {"version": 1, "info": info, "shards": shards}
        (target / "repodata_shards.msgpack.zst").write_bytes(
            compressor.compress(msgspec.msgpack.encode(index))
        )


def write_shard(
    records: dict[str, dict[str, Any]], target: Path, compressor: zstandard.ZstdCompressor
) -> bytes:
    """Write the shard of one name; return its digest, which is its file name."""
    packed = {
        file: {
            **record,
            "md5": bytes.fromhex(record["md5"]),
            "sha256": bytes.fromhex(record["sha256"]),
        }
        for file, record in records.items()
    }
    shard = {"packages": {}, "packages.conda": packed, "removed": []}
    content = compressor.compress(msgspec.msgpack.encode(shard))
    digest = hashlib.sha256(content)
    (target / f"{digest.hexdigest()}.msgpack.zst").write_bytes(content)
    return digest.digest()


if __name__ == "__main__":
    make_full_channel(Path(sys.argv[1]))
