"""Byte code of an environment that others built: used where it is installed, or left to Python."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from py_compile import PycInvalidationMode
from typing import TYPE_CHECKING

from envferry.archive.reader import Archive, FileSource
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.environments import SITE, conda_record, pack, pip_record
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path


LONG_AGO = 1_500_000_000
TAG = sys.implementation.cache_tag


def compile_module(path: Path, mode: PycInvalidationMode = PycInvalidationMode.TIMESTAMP) -> str:
    """Compile a module whose source is of some other day; return the path of its byte code."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    compiled = py_compile.compile(str(path), doraise=True, invalidation_mode=mode)
    assert compiled is not None
    return compiled


def test_byte_code_by_time_goes_by_nothing(tree: Path, envs: Path) -> None:
    modules = ("plain", "stale", "prefixed", "checked", "unchecked")
    files = {f"{name}.py": f"name = {name!r}\n".encode() for name in modules}
    files["prefixed.py"] = f"name = 'prefixed'\nplace = {str(tree)!r}\n".encode()
    caches = {f"__pycache__/{name}.{TAG}.pyc": b"" for name in modules}
    info = pip_record(tree, "modules", {**files, **caches})
    site = tree / SITE
    for name in modules:
        mode = {
            "checked": PycInvalidationMode.CHECKED_HASH,
            "unchecked": PycInvalidationMode.UNCHECKED_HASH,
        }.get(name, PycInvalidationMode.TIMESTAMP)
        compile_module(site / f"{name}.py", mode)
    os.utime(site / "stale.py", (LONG_AGO + 1, LONG_AGO + 1))
    artifact = pack(tree)
    assert pack(tree).manifest == artifact.manifest
    with FileSource(artifact.archive_path) as source:
        paths = {entry.path for entry in Archive(source).index.files}
    carried = {name for name in modules if f"{SITE}/__pycache__/{name}.{TAG}.pyc" in paths}
    assert carried == {"plain", "checked", "unchecked"}
    install(artifact.archive_path, envs, artifact.manifest)
    listed = (envs / "demo" / SITE / info.name / "RECORD").read_text()
    assert f"plain.{TAG}.pyc" in listed
    assert f"stale.{TAG}.pyc" not in listed
    program = f"import {', '.join(modules)}; print(plain.name, stale.name, prefixed.place)"
    told = subprocess.run(
        [sys.executable, "-v", "-c", program],
        env={"PYTHONPATH": str(envs / "demo" / SITE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"plain stale {envs}/demo\n"
    assert "bytecode is stale" not in told.stderr
    written = {path.name for path in (envs / "demo" / SITE / "__pycache__").iterdir()}
    assert {f"stale.{TAG}.pyc", f"prefixed.{TAG}.pyc"} <= written
    found = verify_installation(EnvHome.of(envs, "demo"), None, quick=False, progress=Silent())
    assert found.differences == ()


def test_byte_code_that_python_would_write_anew_is_left_out(tree: Path, envs: Path) -> None:
    """A crash or a full disk cut it off, its source was changed, or holds the prefix."""
    unchecked, checked = PycInvalidationMode.UNCHECKED_HASH, PycInvalidationMode.CHECKED_HASH
    modes = {"empty": unchecked, "cut": unchecked, "zeros": unchecked, "other": unchecked}
    modes |= {"edited": checked, "prefixed": unchecked, "whole": unchecked}
    site = tree / SITE
    caches = {f"__pycache__/{name}.{TAG}.pyc": b"" for name in modes}
    pip_record(tree, "modules", {**{f"{name}.py": b"place = ''\n" for name in modes}, **caches})
    (site / "prefixed.py").write_text(f"place = {str(tree)!r}\n")
    for name, mode in modes.items():
        compile_module(site / f"{name}.py", mode)
    (site / "edited.py").write_text("place = 'new'\n")
    compiled = {name: site / "__pycache__" / f"{name}.{TAG}.pyc" for name in modes}
    compiled["empty"].write_bytes(b"")
    compiled["cut"].write_bytes(compiled["cut"].read_bytes()[:10])
    compiled["zeros"].write_bytes(bytes(4096))
    compiled["other"].write_bytes(b"\xff\xff\xff\xff" + compiled["other"].read_bytes()[4:])
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    carried = {path.name for path in (envs / "demo" / SITE / "__pycache__").iterdir()}
    assert carried == {f"whole.{TAG}.pyc"}
    program = f"import {', '.join(modes)}; print(edited.place, prefixed.place)"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(envs / "demo" / SITE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"new {envs}/demo\n"
    found = verify_installation(EnvHome.of(envs, "demo"), None, quick=False, progress=Silent())
    assert found.differences == ()


def test_condas_records_do_not_claim_the_old_bytes(tree: Path) -> None:
    path = f"{SITE}/__pycache__/module.{TAG}.pyc"
    conda_record(tree, "pkg", {f"{SITE}/module.py": b"x = 1\n", path: b""})
    compile_module(tree / SITE / "module.py")
    record_path = tree / "conda-meta/pkg-1.0-h1_0.json"
    record = json.loads(record_path.read_text())
    for entry in record["paths_data"]["paths"]:
        entry["sha256_in_prefix"] = "0" * 64
    record_path.write_text(json.dumps(record))
    artifact = pack(tree)
    text = subprocess.run(
        ["tar", "--zstd", "-xOf", artifact.archive_path, "conda-meta/pkg-1.0-h1_0.json"],
        capture_output=True,
        check=True,
    ).stdout
    source, cache = sorted(
        json.loads(text)["paths_data"]["paths"], key=lambda entry: entry["_path"]
    )[::-1]
    assert cache == {"_path": path}
    assert source["sha256_in_prefix"] == "0" * 64
