"""What a solver takes for granted of the hosts: conda's virtual packages, as the spec says it.

What this machine has is never looked at: the lock is for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envferry.models import SystemRequirements

USUAL = {
    "linux": {"__unix": "0", "__linux": "5.10", "__glibc": "2.28", "__cuda": "11.4"},
    "osx": {"__unix": "0", "__osx": "11.0"},
    "win": {"__win": "0", "__cuda": "11.4"},
}
"""As conda-lock has them, by the family of a platform."""
MACHINES = {"64": "x86_64"}


def virtual_packages(system: SystemRequirements, platform: str) -> dict[str, tuple[str, str]]:
    """Return version and build string of each virtual package, by name."""
    family, _, machine = platform.partition("-")
    versions = dict(USUAL.get(family, {}))
    for name, version in (("__glibc", system.glibc), ("__cuda", system.cuda)):
        if version and name in versions:
            versions[name] = version
    archspec = system.archspec or MACHINES.get(machine, machine)
    packages = {name: (version, "0") for name, version in versions.items()}
    if system.cuda_arch and "__cuda" in packages:  # CEP 46: it exists only with `__cuda`
        packages["__cuda_arch"] = (system.cuda_arch, "0")
    return {**packages, "__archspec": ("1", archspec)}
