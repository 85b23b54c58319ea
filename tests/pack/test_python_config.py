"""`python-config` of an installed environment names the path under which it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.environments import conda_record, pack
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
#!/bin/sh
installed_prefix ()
{
    RESULT=$(dirname $(cd $(dirname "$1") && pwd -P))
    if which readlink >/dev/null 2>&1 ; then
        if readlink -f "$RESULT" >/dev/null 2>&1; then
          RESULT=$(readlink -f "$RESULT")
        fi
    fi
    echo $RESULT
}

prefix_real=$(installed_prefix "$0")
prefix="PREFIX"
includedir=$(echo "${prefix}/include" | sed "s#$prefix#$prefix_real#")
echo "$prefix_real $includedir"
"""
"""What matters of CPython's Misc/python-config.sh.in, which is the same from 3.4 to 3.14."""
NAMES = ("python3.12-config", "python3.13t-config", "x86_64-linux-gnu-python3.11-config")


@pytest.mark.parametrize("name", NAMES)
def test_python_config_names_the_link(tree: Path, envs: Path, tmp_path: Path, name: str) -> None:
    """And `conda-unpack` makes the same bytes of it as an install."""
    script = CONFIG.replace("PREFIX", str(tree)).encode()
    conda_record(tree, "python", {f"bin/{name}": script})
    (tree / "bin" / name).chmod(0o755)
    record = tree / "conda-meta/python-1.0-h1_0.json"
    noted = json.loads(record.read_text())
    for entry in noted["paths_data"]["paths"]:
        entry["sha256_in_prefix"] = "0" * 64
    record.write_text(json.dumps(noted))
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    place = envs / "demo"
    said = subprocess.run([place / "bin" / name], capture_output=True, text=True, check=True)
    assert said.stdout == f"{place} {place}/include\n"
    entries = json.loads((place / record.relative_to(tree)).read_text())["paths_data"]["paths"]
    assert [entry.get("sha256_in_prefix") for entry in entries] == [None]
    assert not verify_installation(
        EnvHome.of(envs, "demo"), None, quick=False, progress=Silent()
    ).differences
    unpacked = tmp_path / "by hand"
    unpacked.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", artifact.archive_path, "-C", unpacked], check=True)
    subprocess.run([sys.executable, unpacked / "bin/conda-unpack"], check=True)
    mine = (place / "bin" / name).read_bytes().replace(bytes(place), b"HERE")
    assert (unpacked / "bin" / name).read_bytes().replace(bytes(unpacked), b"HERE") == mine
    said = subprocess.run([unpacked / "bin" / name], capture_output=True, text=True, check=True)
    assert said.stdout == f"{unpacked} {unpacked}/include\n"


def test_other_scripts_stay_as_they_are(tree: Path, envs: Path) -> None:
    content = b'#!/bin/sh\nprefix_real=$(installed_prefix "$0")\n'
    conda_record(tree, "other", {"bin/other-config": content, "lib/python3-config": content})
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    for path in ("bin/other-config", "lib/python3-config"):
        assert (envs / "demo" / path).read_bytes() == content
