"""Nothing that a lock of another tool names is lost: neither in the spec nor in our lock."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envferry.names import current_platform
from envferry.specs.importing.conversion import ImportOptions, import_spec
from tests.support.lost_words import GIVEN_OFTEN, WORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.specs.importing.conversion import Imported

pytestmark = pytest.mark.skipif(current_platform() != "linux-64", reason="the locks are for it")
PLATFORMS = ("linux-64", "osx-arm64", "win-64")
KINDS = ("conda", "wheel", "source", "git", "url", "folder")


class Words:
    """Words of one lock, by where they must come out."""

    def __init__(self) -> None:
        self.spec: list[str] = []
        self.lock: list[str] = []

    def new(self, *wanted: str) -> str:
        """Return a word that must come out of `spec` or `lock`, or both."""
        word = WORD.format(len({*self.spec, *self.lock}))
        self.spec += [word] if "spec" in wanted else []
        self.lock += [word] if "lock" in wanted else []
        return word


def digest(words: Words) -> str:
    """Return a SHA-256 that is looked for in the lock."""
    found = f"{len(words.lock) + 1:064x}"
    words.lock.append(found)
    return found


def in_yaml(document: dict[str, Any]) -> str:
    """Write a document whose keys stand on lines of their own, as tools write it."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items())


def conda_lock(kinds: list[tuple[str, str]], words: Words) -> str:
    packages = []
    for number, (kind, platform) in enumerate(kinds):
        name = words.new("spec", "lock") if platform != "win-64" else "w"
        version = f"1.{number}"
        if kind == "conda":
            build = words.new("spec", "lock") if platform != "win-64" else "b"
            url = f"https://h.example/c/{platform}/{name}-{version}-{build}.conda"
        else:
            url = f"https://{words.new('lock')}.example/{name}-{version}-py3-none-any.whl"
        if platform == "win-64":
            words.lock = [word for word in words.lock if word not in url]
        packages.append(
            {
                "name": name,
                "version": version,
                "manager": "conda" if kind == "conda" else "pip",
                "platform": platform,
                "dependencies": {},
                "url": url,
                "hash": {"sha256": digest(words) if platform != "win-64" else "00"},
            }
        )
    channel = words.new("spec")
    metadata = {"channels": [{"url": f"https://{channel}.example/c", "used_env_vars": []}]}
    return in_yaml({"version": 1, "metadata": metadata, "package": packages})


def pixi_lock(kinds: list[tuple[str, str]], words: Words) -> str:
    places: dict[str, list[Any]] = {}
    packages = []
    for number, (kind, platform) in enumerate(kinds):
        where = ("spec", "lock") if platform != "win-64" else ()
        name, version = words.new(*where), f"1.{number}"
        if kind == "conda":
            url = f"https://h.example/c/{platform}/{name}-{version}-{words.new(*where)}.conda"
            place = {"conda": url}
        elif kind == "git":
            url = f"git+https://{words.new(*where)}.example/x?rev=main#{number:040x}"
            place = {"pypi": url}
        else:
            url = f"https://{words.new(*where[1:])}.example/{name}-{version}-py3-none-any.whl"
            place = {"pypi": url}
        places.setdefault(platform, []).append(place)
        about = {"sha256": digest(words)} if kind != "git" and where else {}
        packages.append({**place, "name": name, "version": version, **about})
    other = words.new("spec")
    channel, index = words.new("spec"), words.new("spec")
    needs_index = any(kind != "conda" and platform != "win-64" for kind, platform in kinds)
    words.spec = [word for word in words.spec if word != index or needs_index]
    environment = {
        "channels": [{"url": f"https://{channel}.example/c"}],
        "indexes": [f"https://{index}.example/simple"],
        "packages": places,
    }
    environments = {"default": environment, other: {"channels": [], "packages": {}}}
    return in_yaml({"version": 6, "environments": environments, "packages": packages})


def explicit(kinds: list[tuple[str, str]], words: Words) -> str:
    lines = ["# platform: linux-64", "@EXPLICIT"]
    for number, (kind, _) in enumerate(kinds):
        name, build = words.new("spec", "lock"), words.new("spec", "lock")
        file = f"{name}-1.{number}-{build}.conda"
        if kind == "conda":
            channel = words.new("spec", "lock")
            lines.append(f"https://{channel}.example/c/linux-64/{file}#sha256:{digest(words)}")
        elif kind == "folder":
            lines.append(f"file:///srv/{words.new('lock')}/{file}")
        else:
            words.spec, words.lock = words.spec[:-1], words.lock[:-1]  # wheels have no build
            url = f"https://{words.new('spec', 'lock')}.example/{name}-1.{number}-py3-none-any.whl"
            lines.append(f"# pip {name} @ {url} --hash=sha256:{digest(words)}")
    return "\n".join([*lines, ""])


def pip_entry(kind: str, number: int, words: Words) -> dict[str, Any]:
    """Return a package of a pylock.toml."""
    name, version = words.new("spec", "lock"), f"1.{number}"
    entry: dict[str, Any] = {"name": name, "version": version}
    if kind == "git":
        url = f"https://{words.new('spec', 'lock')}.example/x"
        return entry | {"vcs": {"type": "git", "url": url, "commit-id": f"{number:040x}"}}
    if kind == "folder":
        return entry | {"directory": {"path": words.new("spec", "lock")}}
    if kind == "url":
        url = f"https://{words.new('spec', 'lock')}.example/{name}-{version}.zip"
        return entry | {"archive": {"url": url, "hashes": {"sha256": digest(words)}}}
    entry["index"] = f"https://{words.new('spec')}.example/simple"
    base = f"https://{words.new('lock')}.example/{name}-{version}"
    if kind == "source":
        return entry | {"sdist": {"url": f"{base}.tar.gz", "hashes": {"sha256": digest(words)}}}
    wheels = [{"url": f"{base}-py3-none-any.whl", "hashes": {"sha256": digest(words)}}]
    return entry | {"wheels": wheels}


def in_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {in_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    return json.dumps(value)


def pylock(kinds: list[tuple[str, str]], words: Words) -> str:
    entries = [pip_entry(kind, number, words) for number, (kind, _) in enumerate(kinds)]
    extra, group = words.new("spec"), words.new("spec")
    document = {
        "lock-version": "1.0",
        "created-by": "x",
        "extras": [extra],
        "dependency-groups": [group],
        "packages": entries,
    }
    return "".join(f"{key} = {in_toml(value)}\n" for key, value in document.items())


def uv_lock(kinds: list[tuple[str, str]], words: Words) -> str:
    packages = [uv_package(pip_entry(kind, n, words)) for n, (kind, _) in enumerate(kinds)]
    # In a row: each is needed by the one before.
    for package, needed in pairwise(packages):
        package["dependencies"] = [{"name": needed["name"]}]
    docs, dev, inner = words.new("spec"), words.new("spec"), words.new("spec")
    root = {
        "name": "app",
        "version": "0",
        "source": {"editable": words.new("spec")},
        "dependencies": [{"name": packages[0]["name"]}],
        "optional-dependencies": {docs: [{"name": inner}]},
        "dev-dependencies": {dev: [{"name": inner}]},
    }
    head = 'version = 1\nrequires-python = ">=3.10"\n'
    return f"{head}package = {in_toml([root, *packages])}\n"


def uv_script_lock(kinds: list[tuple[str, str]], words: Words) -> str:
    """Return the lock of a script (PEP 723), which has no package of its own."""
    packages = [uv_package(pip_entry(kind, n, words)) for n, (kind, _) in enumerate(kinds)]
    needs = [{"name": package["name"]} for package in packages]
    groups = {words.new("spec"): [{"name": words.new("spec")}]}
    constraints = [{"name": words.new("spec"), "specifier": "<1"}]
    manifest = {
        "requirements": needs,
        "dependency-groups": groups,
        "build-constraints": constraints,
    }
    document = {"manifest": manifest, "package": packages}
    head = 'version = 1\nrequires-python = ">=3.10"\n'
    return head + "".join(f"{key} = {in_toml(value)}\n" for key, value in document.items())


def uv_package(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a pylock.toml as uv.lock has it."""
    package = {"name": entry["name"], "version": entry["version"]}
    if "vcs" in entry:
        vcs = entry["vcs"]
        return package | {"source": {"git": f"{vcs['url']}?rev=main#{vcs['commit-id']}"}}
    if "directory" in entry:
        return package | {"source": {"directory": entry["directory"]["path"]}}
    if "archive" in entry:
        file = entry["archive"]
        hashed = {"hash": f"sha256:{file['hashes']['sha256']}"}
        return package | {"source": {"url": file["url"]}, "sdist": hashed}
    package |= {"source": {"registry": entry["index"]}}
    for key in ("sdist", "wheels"):
        for file in [entry[key]] if key == "sdist" and key in entry else entry.get(key, []):
            ours = {"url": file["url"], "hash": f"sha256:{file['hashes']['sha256']}"}
            package |= {key: ours if key == "sdist" else [ours]}
    return package


def said(found: Imported) -> str:
    return "\n".join([found.text, *found.notes])


def locked(found: Imported) -> str:
    assert found.lock is not None
    return f"{found.lock.packages!r}\n{json.dumps(found.lock.candidates)}"


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("explicit.txt", explicit),
        ("conda-lock.yml", conda_lock),
        ("pixi.lock", pixi_lock),
        ("pylock.toml", pylock),
        ("uv.lock", uv_lock),
        ("uv.lock", uv_script_lock),
    ],
)
def test_locks(
    tmp_path: Path, file: str, write: Callable[[list[tuple[str, str]], Words], str]
) -> None:
    @GIVEN_OFTEN
    @given(
        st.lists(
            st.tuples(st.sampled_from(KINDS), st.sampled_from(PLATFORMS)), min_size=1, max_size=6
        )
    )
    def each(kinds: list[tuple[str, str]]) -> None:
        words = Words()
        text = write([*kinds, ("conda", "linux-64")], words)
        (tmp_path / file).write_text(text)
        found = import_spec(tmp_path / file, tmp_path, ImportOptions(name="n"))
        assert [word for word in words.spec if word not in said(found)] == [], text
        assert [word for word in words.lock if word not in locked(found)] == [], text
        dropped = sum(platform == "win-64" for _, platform in kinds)
        if write in (conda_lock, pixi_lock) and dropped:
            assert f"{dropped} packages for win-64" in said(found)

    each()
