"""How to get an artifact: on a host, in a container, in a Dockerfile, by Ansible, by Slurm."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envferry.index.queries import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Lines to copy."""

    title: str
    text: str
    note: str = ""


def snippets(entry: Entry, url: str, prefix: str) -> tuple[Snippet, ...]:
    """Return how to get this very artifact from the registry at `url`."""
    ref, place = f"{entry.name}@{entry.id}", shlex.quote(url)
    install = f"envferry install {ref} --registry {place}"
    envs = prefix.rpartition("/")[0]
    return (
        Snippet(title="Host", text=install),
        Snippet(
            title="Container",
            text=f"docker run --rm -it -v {envs}:{envs}:ro debian:stable-slim {prefix}/bin/python",
            note="Once it is installed on the host: one copy for all containers, read-only.",
        ),
        Snippet(
            title="Dockerfile",
            text=f"FROM python:3.12-slim\nRUN pip install --no-cache-dir envferry \\\n"
            f" && {install}\nENV PATH={prefix}/bin:$PATH",
        ),
        Snippet(
            title="Ansible",
            text=f"- envferry.hosts.envferry_env:\n    name: {entry.name}\n    ref: {ref}\n"
            f"    registry: {url}",
        ),
        Snippet(
            title="Slurm",
            text=f"sbatch --comment envferry:{ref} job.sh",
            note="Where the prolog of envferry is set up; it installs from the registry of its"
            " settings.",
        ),
    )
