"""The manifests of docs/kubernetes: right by Kubernetes' own schemas, and what they start works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from envferry.names import current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from tests.conftest import require
from tests.support.ansible_hosts import PLAYBOOK
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import ENVFERRY

FOLDER = Path(__file__).parents[2] / "docs/kubernetes"
VALIDATE = PLAYBOOK.with_name("kubernetes-validate")
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Compare a manifest with the schemas, unknown keys refused."""
    require("ansible", VALIDATE.exists())
    words: list[str | Path] = [VALIDATE, "--strict", path]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_valid(path: Path) -> None:
    found = validate(path)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_misspelled_key_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "pod.yaml"
    wrong.write_text((FOLDER / "pod.yaml").read_text().replace("hostPath:", "hostpath:"))
    assert validate(wrong).returncode != 0


def daemon_set() -> dict[str, Any]:
    """Return the one container of the DaemonSet."""
    manifest = yaml.safe_load((FOLDER / "daemonset.yaml").read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def test_what_the_daemon_set_starts_installs_the_tag(tmp_path: Path) -> None:
    contents = {"bin/tool": b"#!/bin/sh\n"}
    artifact = installable_artifact(tmp_path / "dist", contents)
    registry = Registry.open(str(tmp_path / "registry"))
    registry.publish(artifact, progress=Silent())
    registry.move_tag("demo", current_platform(), "stable", artifact.manifest.id)
    container = daemon_set()
    (tmp_path / "envs").mkdir()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "envferry").symlink_to(ENVFERRY)
    # The first pause ends the loop, and the pause by chance is left out.
    (programs / "sleep").write_text("#!/bin/sh\nkill -TERM $PPID\n")
    (programs / "sleep").chmod(0o755)
    (script,) = container["args"]
    assert "--jitter 60" in script
    environ = {
        **os.environ,
        "PATH": f"{programs}:/usr/bin:/bin",
        "REF": "demo@stable",
        "ENVFERRY_REGISTRY": registry.url,
        "ENVFERRY_ENVS_DIR": str(tmp_path / "envs"),
    }
    words = [*container["command"], script.replace("--jitter 60", "")]
    finished = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "envs/demo").resolve().name == artifact.manifest.id
    # Ready from then on, and not before.
    probe = container["readinessProbe"]["exec"]["command"]
    for name, code in (("demo", 0), ("other", 1)):
        words = [part.replace("/opt/conda/envs", str(tmp_path / "envs")) for part in probe]
        environ["REF"] = f"{name}@stable"
        assert subprocess.run(words, env=environ, check=False).returncode == code


def test_pods_mount_where_the_daemon_set_installs() -> None:
    pod = yaml.safe_load((FOLDER / "pod.yaml").read_text())
    places = {mount["mountPath"] for mount in daemon_set()["volumeMounts"]}
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] in places
    assert mount["readOnly"] is True
