"""How to get an artifact: on a host, in a container, in a Dockerfile, by Ansible, by Slurm."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envferry.errors import UsageError
from envferry.names import check_env_prefix

if TYPE_CHECKING:
    from envferry.index.queries import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Lines to copy."""

    title: str
    text: str
    note: str = ""


def install_line(ref: str, url: str) -> str:
    """Return the command that installs a REF from the registry at `url`."""
    return f"envferry install {ref} --registry {shlex.quote(url)}"


def snippets(entry: Entry, url: str, prefix: str) -> tuple[Snippet, ...]:
    """Return how to get this very artifact from the registry at `url`.

    A prefix that no environment can have, as a damaged manifest may say, is in none of them.
    """
    ref = f"{entry.name}@{entry.id}"
    install = install_line(ref, url)
    return (
        Snippet(title="Host", text=install),
        *_in_containers(install, prefix),
        Snippet(
            title="Ansible",
            # JSON's strings are YAML's: without quotes, an environment `on` would be true.
            text=f"- envferry.hosts.envferry_env:\n    name: {_quoted(entry.name)}\n"
            f"    ref: {_quoted(ref)}\n    registry: {_quoted(url)}",
        ),
        Snippet(
            title="Slurm",
            text=f"sbatch --comment envferry:{ref} job.sh",
            note="Where the prolog of envferry is set up; it installs from the registry of its"
            " settings.",
        ),
    )


def _in_containers(install: str, prefix: str) -> tuple[Snippet, ...]:
    try:
        check_env_prefix(prefix, "")
    except UsageError:
        return ()
    envs = prefix.rpartition("/")[0]
    volume, python = shlex.quote(f"{envs}:{envs}:ro"), shlex.quote(f"{prefix}/bin/python")
    path = f"{prefix}/bin:$PATH"
    return (
        Snippet(
            title="Container",
            text=f"docker run --rm -it -v {volume} debian:stable-slim {python}",
            note="Once it is installed on the host: one copy for all containers, read-only.",
        ),
        Snippet(
            title="Dockerfile",
            text=f"FROM python:3.12-slim\nRUN pip install --no-cache-dir envferry \\\n"
            f" && {install}\nENV PATH=" + (f'"{path}"' if " " in path else path),
        ),
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
