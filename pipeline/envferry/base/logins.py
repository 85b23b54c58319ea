"""Which login a request gets: of a spec's URLs, rattler's file, netrc or the URLs of indexes."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from envferry.base.channel_credentials import USUAL_FILE, read_credentials, wildcards
from envferry.base.http_login import HttpLogin, warn_if_readable
from envferry.base.loopback import is_loopback
from envferry.base.secret import Secret
from envferry.base.site_indexes import plain_url, read_site_indexes
from envferry.base.uv_variables import INDEX_VARIABLES
from envferry.redaction import bare_url, has_credentials, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from urllib.parse import SplitResult

log = logging.getLogger(__name__)

TOKEN = re.compile(r"/t/(?P<token>[^/]+)/")
"""In a URL that `without_credentials` shortens."""
IN_SPEC = "the spec's URL"
IN_NETRC = "put the login for its host into ~/.netrc"
FOR_CHANNELS = f"{IN_NETRC}, or a token into ~/{USUAL_FILE} (`pixi auth login HOST --token …`)"


class Authorized(msgspec.Struct, frozen=True, kw_only=True):
    """How to ask for a URL."""

    place: Secret
    """The URL without user and password; it may hold a token."""
    login: HttpLogin | None
    source: str
    """Where the login is from; empty where there is none."""
    is_channel: bool

    @property
    def url(self) -> str:
        """What to ask for; never to be shown."""
        place = self.place.reveal()
        return self.login.place(place) if self.login else place

    @property
    def headers(self) -> dict[str, str]:
        """What to ask with."""
        return self.login.headers() if self.login else {}

    @property
    def token(self) -> str:
        """The token that the URL holds; empty where it holds none."""
        if self.login and self.login.form == "conda_token":
            return self.login.secret.reveal()
        place = self.place.reveal()
        is_told = self.is_channel and has_credentials(place)
        return found["token"] if is_told and (found := TOKEN.search(place)) else ""

    @property
    def hint(self) -> str:
        """What to do when the server wants another login, or one at all."""
        if self.source:
            return f"the server refuses the login in {self.source}: correct it there"
        return FOR_CHANNELS if self.is_channel else IN_NETRC

    @property
    def hint_when_absent(self) -> str:
        """What to do when the server says that there is no such thing, as many do to strangers."""
        case = "to a login that it does not accept" if self.source else "where it gets no login"
        what = "channel" if self.is_channel else "index"
        return f"a private {what} says so, too, {case}: {self.hint}"


class Logins:
    """The logins of one user; threads may share it. Files are read when they are needed, once."""

    def __init__(
        self,
        *,
        indexes: Mapping[str, Secret],
        netrc: Path | None,
        credentials: Iterable[Path] = (),
        channels: Mapping[str, Secret] | None = None,
    ) -> None:
        """Take `user:password` by `HOST:PORT`, files, and URLs of channels by those without logins.

        What is in `credentials` is for channels only.
        """
        self._indexes = indexes
        self._netrc = netrc
        self._files = tuple(credentials)
        self._channels = channels or {}
        self._guard = threading.Lock()
        self._by_netrc: dict[str, HttpLogin] | None = None
        self._by_file: list[dict[str, HttpLogin]] | None = None
        self._withheld: set[str] = set()

    def authorize(self, url: str, *, is_channel: bool = False) -> Authorized:
        """Return how to ask for a URL, of a conda channel or another server.

        Raises SpecError for a credentials file that cannot be read.
        """
        placed = self._in_spec(url) if is_channel else url
        login = self.find(placed, is_channel=is_channel)
        source = login.source if login else ""
        if is_channel and has_credentials(placed):
            # For the hint: a token in the URL has to be corrected there.
            source = IN_SPEC
        place = Secret(bare_url(placed))
        return Authorized(place=place, login=login, source=source, is_channel=is_channel)

    def find(self, url: str, *, is_channel: bool) -> HttpLogin | None:
        """Return the login that goes with a request; None where there is none.

        What a channel's URL says by itself wins; then the entry of rattler's file for the host, the
        host in netrc and an entry for `*.HOST`, as in rattler.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        is_told = not is_channel or has_credentials(url)
        # An IPv6 address stands in brackets, as in a URL.
        named = f"[{host}]" if ":" in host else host
        if not is_told and (found := self._in_files(parts, [named])):
            return found
        return (
            self._of_index(parts)
            or _in_url(parts)
            or self._in_netrc(host)
            or (None if is_told else self._in_files(parts, wildcards(host)))
        )

    def _in_spec(self, url: str) -> str:
        """Return the URL of a package with what its channel's URL in the spec says of logins."""
        if has_credentials(url):  # it has its own, and a channel at the host's root begins all URLs
            return url
        # The longest first: a channel may lie below another one.
        for bare in sorted(self._channels, key=len, reverse=True):
            if url.startswith(bare):
                return self._channels[bare].reveal() + url.removeprefix(bare)
        return url

    def _of_index(self, parts: SplitResult) -> HttpLogin | None:
        secret = self._indexes.get(parts.netloc.lower())
        source = "the URL of a package index"
        return HttpLogin(form="basic", secret=secret, source=source) if secret else None

    def _in_netrc(self, host: str) -> HttpLogin | None:
        with self._guard:
            # Under the lock: the file is read once, and a fault in it is reported once.
            if self._by_netrc is None:
                self._by_netrc = _read_netrc(self._netrc) if self._netrc else {}
            return self._by_netrc.get(host)

    def _in_files(self, parts: SplitResult, names: Iterable[str]) -> HttpLogin | None:
        """Return what rattler's files have; nothing where the request could be read on its way."""
        with self._guard:
            if self._by_file is None:
                self._by_file = [read_credentials(path) for path in self._files]
            found = (table[name] for name in names for table in self._by_file if name in table)
            login = next(found, None)
            if not login or parts.scheme == "https" or is_loopback(parts.hostname or ""):
                return login
            if parts.netloc not in self._withheld:
                # One warning for a host: a channel has thousands of packages.
                self._withheld.add(parts.netloc)
                words = "%s is asked without its login in %s, which is sent over https only"
                log.warning(words, f"http://{bare_url(parts.geturl()).split('/')[2]}", login.source)
            return None


def index_logins(environ: Mapping[str, str], home: Path | None) -> dict[str, Secret]:
    """Return the logins of the indexes that uv and pip are told about, by `HOST:PORT`."""
    found: dict[str, Secret] = {}
    words = [word for name in INDEX_VARIABLES for word in environ.get(name, "").split()]
    site = read_site_indexes(environ, home)
    words += [index.url for index in (site.main, *site.extra) if index]
    for word in words:
        login, _, place = urlsplit(plain_url(word)).netloc.rpartition("@")
        if login:
            # uv's variables are read first, and the first login of a host stays.
            found.setdefault(place.lower(), Secret(login))
    return found


def channel_key(url: str) -> str:
    """Return what the packages of a channel begin with in a lock."""
    return f"{without_credentials(url).rstrip('/')}/"


def _in_url(parts: SplitResult) -> HttpLogin | None:
    if not parts.username:
        return None
    user, password = unquote(parts.username), unquote(parts.password or "")
    return HttpLogin.basic(user, password, IN_SPEC)


def _read_netrc(path: Path) -> dict[str, HttpLogin]:
    """Return the logins of a netrc by host; none where it cannot be read, with a warning."""
    import netrc

    try:
        hosts = netrc.netrc(path).hosts
        warn_if_readable(path)
    except netrc.NetrcParseError as error:  # its words may repeat a password
        log.warning("%s cannot be read: it is not valid near line %s", path, error.lineno)
        return {}
    except (OSError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read: %s", path, getattr(error, "strerror", "it is not UTF-8"))
        return {}
    return {
        host.lower(): HttpLogin.basic(user, password or "", str(path))
        for host, (user, _, password) in hosts.items()
        if user
    }
