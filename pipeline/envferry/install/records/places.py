"""Whether an installation is where its files believe that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation


def is_at_its_prefix(home: EnvHome, installation: Installation) -> bool:
    """Whether the path that it is installed for leads to this very tree, on this machine, now."""
    try:
        return home.tree(installation.id).samefile(installation.prefix)
    except OSError:
        return False
