"""From a registry's URL to its store."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from envferry.base.files import expand_home
from envferry.base.limits import USUAL_LIMITS, Limits
from envferry.errors import UsageError

if TYPE_CHECKING:
    from envferry.stores.port import Store

# RFC 3986, 3.2, without userinfo: a name, or an IPv6 address in brackets, and a port.
PLAIN_AUTHORITY = re.compile(r"([^@:?#\[\]]*|\[[0-9A-Fa-f:.]+\])(:\d+)?")
HTTP, OCI = ("http", "https"), ("oci", "oci+http", "oci+https")
KINDS = "a directory, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY, or https://HOST/PATH to read only"


def open_store(url: str, limits: Limits = USUAL_LIMITS) -> Store:
    """Open the store at `url`, without asking yet whether it is there."""
    scheme = _scheme_of(url)
    if not scheme:
        return _open_directory(expand_home(Path(url)))
    if scheme == "file":
        return _open_directory(_local_path(url))
    if scheme == "s3":
        return _open_s3(url, limits)
    if scheme in HTTP:
        return _open_http(url, limits)
    from envferry.stores.oci.image_store import OciStore

    return OciStore.open(url, limits)


def holds_images(url: str) -> bool:
    """Whether archives are images in the registry at `url`; nothing is asked, nor checked."""
    return url.partition("://")[0] in OCI


def require_public(url: str) -> None:
    """Raise UsageError for what no other machine can take as the URL of a registry.

    Nothing is asked whether it is there: this machine may not reach it.
    """
    scheme = _scheme_of(url)
    if not url.isprintable() or (scheme and " " in url):
        message = f"{url!r} has a blank or a control character in it"
        raise UsageError(message, hint="write a blank in a URL as %20")
    path = _local_path(url) if scheme == "file" else Path(url)
    if scheme in ("", "file") and not path.is_absolute():
        message = f"{url} means another folder on each host"
        raise UsageError(message, hint=f"write the whole path, or a URL: a registry is {KINDS}")
    if scheme == "s3" and not urlsplit(url).netloc:
        message = f"{url} names no bucket"
        raise UsageError(message, hint="write s3://BUCKET/PREFIX")
    # Opening sends nothing in these two, and checks the form of host and repository. S3 would want
    # the AWS configuration of this machine, which says nothing about the others.
    if scheme in (*HTTP, *OCI):
        open_store(url)


def _scheme_of(url: str) -> str:
    """Return the scheme of a URL, nothing for a folder; raise UsageError where none is known."""
    scheme, separator, _ = url.partition("://")
    if not url:
        message = "the registry's URL is empty"
        raise UsageError(message, hint=f"a registry is {KINDS}")
    if not separator:
        # A path may hold any text: only what is nearly a URL is refused.
        _refuse_almost_urls(url)
        return ""
    if scheme not in ("file", "s3", *HTTP, *OCI):
        message = f"{scheme}:// is not a supported kind of registry"
        raise UsageError(message, hint=f"a registry is {KINDS}")
    if scheme != "file":
        _require_no_login(url)
    return scheme


def _refuse_almost_urls(text: str) -> None:
    """Raise UsageError for `s3:/bucket` and the like, which would become a folder of that name."""
    if found := re.match(r"(s3|https?|file|oci(?:\+https?)?):", text, re.IGNORECASE):
        message = f"`//` is missing after `{found[0]}` in the registry's URL"
        raise UsageError(message, hint=f"write {found[1].lower()}://…; a folder is ./{found[0]}…")


def _local_path(url: str) -> Path:
    """Return the path of a `file://` URL; raise UsageError when it names another machine."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        message = "the registry's file:// URL names a machine, not a folder of this one"
        raise UsageError(message, hint="write file:///PATH, with three slashes")
    return Path(unquote(parts.path))


def _open_directory(root: Path) -> Store:
    # Each kind is imported where it is opened: a host loads the libraries of one store only.
    from envferry.stores.directory import DirectoryStore

    # The marker file of an image layout (OCI image specification, image-layout.md).
    if (root / "oci-layout").is_file():
        return _open_layout(root)
    if not (root / "v1/split.json").is_file():
        return DirectoryStore(root)
    from envferry.base.json import from_json
    from envferry.stores.split import MARKER, SplitMarker, SplitStore

    # The marker is small, so it lies whole in the store that is to be wrapped.
    store = DirectoryStore(root)
    marker = from_json(store.read(MARKER), SplitMarker, f"{MARKER} in {root}")
    return SplitStore(store, marker.part_bytes)


def _open_layout(root: Path) -> Store:
    from envferry.stores.oci.image_layout import LayoutRepositories
    from envferry.stores.oci.image_store import OciStore

    space = LayoutRepositories(root)
    space.require_ours()
    return OciStore.in_layout(space)


def _require_no_login(url: str) -> None:
    """Raise UsageError for a URL with a login or a query in it, and repeat none of it.

    People write secrets as they are: a `/`, `?` or `#` in one does not end it here.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "s3":
        is_plain = not re.search(r"[@:?#]", rest)
        form = "s3://BUCKET/PREFIX"
        hint = "AWS_PROFILE, ~/.aws, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY hold the login"
    else:
        is_plain = bool(PLAIN_AUTHORITY.fullmatch(rest.partition("/")[0]))
        form, hint = f"{scheme}://HOST/PATH", "web servers are read without a login"
        if scheme.startswith("oci"):
            form, hint = f"{scheme}://HOST/REPOSITORY", "`podman login HOST` stores the login"
    if not is_plain:
        message = f"the URL of the registry is not of the form {form}: it holds a login or more"
        raise UsageError(message, hint=f"write {form}; {hint}")


def _open_http(url: str, limits: Limits) -> Store:
    """Open a web server, which may serve a folder in parts: only what is missing asks for them."""
    from envferry.stores.http import HttpStore
    from envferry.stores.split import SplitStore

    # Nothing is written there, so there is no size to cut at.
    return SplitStore(HttpStore.open(url, limits), sys.maxsize)


def _open_s3(url: str, limits: Limits) -> Store:
    try:
        from envferry.stores.s3.store import S3Store
    except ModuleNotFoundError as error:
        # Any other module that is missing is a broken installation, and no extra brings it.
        if (error.name or "").partition(".")[0] not in ("boto3", "botocore"):
            raise
        message = f"{url} needs boto3, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[s3]"`') from error
    return S3Store.open(url, limits)
