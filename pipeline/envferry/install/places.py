"""Whether an installation is where its files believe that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import HostError

if TYPE_CHECKING:
    from envferry.install.env_home import EnvHome
    from envferry.install.installation import Installation


def is_at_its_prefix(home: EnvHome, installation: Installation) -> bool:
    """Whether the path that it is installed for leads to this very tree, on this machine, now."""
    try:
        return home.tree(installation.id).samefile(installation.prefix)
    except OSError:
        return False


def require_mounted(home: EnvHome, installation: Installation) -> None:
    """Raise HostError where an image should be mounted and is not, as after a restart."""
    tree = home.tree(installation.id)
    if installation.mounted and not tree.is_mount():
        message = f"the image of {home.name}@{installation.id} is not mounted at {tree}"
        hint = f"`envferry rollback {home.name} {installation.id}` mounts it, as root"
        raise HostError(message, hint=hint)
