"""From a registry's URL to its store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.stores.port import Store

KINDS = "a directory, s3://BUCKET/PREFIX, or https://HOST/PATH to read only"


def open_store(url: str) -> Store:
    """Open the store at `url`, without asking yet whether it is there."""
    scheme, separator, _ = url.partition("://")
    if not url:
        message = "the registry's URL is empty"
        raise UsageError(message, hint=f"a registry is {KINDS}")
    if not separator:
        return _open_directory(Path(url).expanduser())
    if scheme == "file":
        return _open_directory(Path(unquote(urlsplit(url).path)))
    if scheme == "s3":
        return _open_s3(url)
    if scheme in ("http", "https"):
        return _open_http(url)
    message = f"{scheme}:// is no kind of registry"
    raise UsageError(message, hint=f"a registry is {KINDS}")


def _open_directory(root: Path) -> Store:
    from pipeline.stores.directory import DirectoryStore

    if not (root / "v1/split.json").is_file():
        return DirectoryStore(root)
    from pipeline.files import from_json
    from pipeline.stores.split import MARKER, SplitMarker, SplitStore

    store = DirectoryStore(root)
    marker = from_json(store.read(MARKER), SplitMarker, f"{MARKER} in {root}")
    return SplitStore(store, marker.part_bytes)


def _open_http(url: str) -> Store:
    from pipeline.stores.http import HttpStore

    return HttpStore.open(url)


def _open_s3(url: str) -> Store:
    try:
        from pipeline.stores.s3 import S3Store
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("boto3", "botocore"):
            raise
        message = f"{url} needs boto3, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[s3]"`') from error
    return S3Store.open(url)
