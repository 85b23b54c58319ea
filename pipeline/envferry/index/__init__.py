"""A local index of a registry, so that ten thousand artifacts list in a moment.

The registry stays what is true: the index is a SQLite file in the cache, refreshed from what is
new there, and thrown away when it is damaged or of another version.
"""

from __future__ import annotations

from envferry.index.match_spec import MatchSpec
from envferry.index.registry_index import RegistryIndex

__all__ = ["MatchSpec", "RegistryIndex"]
