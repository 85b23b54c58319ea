"""Environments on top of a system's image: the base's layers and one of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from envferry.stores.oci.documents import LAYER, encode
from envferry.stores.oci.sending import send_blob
from envferry.stores.port import ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envferry.stores.oci.base_image import BaseImage
    from envferry.stores.oci.key_tags import Names
    from envferry.stores.oci.views import Views
    from envferry.stores.source import ContentSource


class FoundBase(msgspec.Struct, frozen=True):
    """A base that was found, and the store whose environments are put on it."""

    base: BaseImage
    names: Names
    views: Views

    @property
    def shown(self) -> str:
        """What it was called."""
        return self.base.shown

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        return self.base.config

    def put_on(
        self,
        artifact: tuple[str, str, str],
        layer: ContentSource,
        configure: Callable[[str], dict[str, Any]],
        tags: Sequence[str],
        advance: Callable[[int], None] = ignore,
    ) -> tuple[str, ...]:
        """Take the base's layers over, send the new one, and name the image."""
        space, repository = self.views.space, self.names.repository(artifact[0])
        layers = self.base.copy_layers(space, repository, advance)
        sent = send_blob(space, repository, layer, advance, media_type=LAYER)
        # After the layer: its diff id is known only when all of it has been decompressed.
        config = encode(configure(sent.diff_id))
        return self.views.make_runnable(artifact, config, (*layers, sent.descriptor), tags)
