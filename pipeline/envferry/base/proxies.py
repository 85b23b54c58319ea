"""Which proxy leads to a URL: the variables that curl and requests read, understood as they do."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PORTS = {"http": 80, "https": 443}
NO_PROXY = "no"
PROXY_LOGIN = "put the proxy's login into https_proxy: http://USER:…@…"


def read_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return proxies by scheme (`http`, `https`, `all`), and `no`: the hosts to reach without.

    The lower-case name wins, and an empty one takes the upper-case one back. In a CGI program
    HTTP_PROXY is a header that any client sends (https://httpoxy.org).
    """
    found: dict[str, str] = {}
    for name in sorted(environ):  # upper case sorts first
        kind = name.lower().removesuffix("_proxy")
        if kind == name.lower() or (name == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
            continue
        found[kind] = environ[name].strip()
    return {kind: text for kind, text in found.items() if text}


def choose_proxy(proxies: Mapping[str, str], url: str) -> str | None:
    """Return the URL of the proxy to ask for `url`, or None to go straight."""
    parts = urlsplit(url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname:
        return None
    port = parts.port or PORTS.get(parts.scheme)
    if any(_excludes(rule, parts.hostname, port) for rule in _rules(proxies.get(NO_PROXY, ""))):
        return None
    # curl takes a proxy without a scheme for an http one.
    return proxy if "://" in proxy else f"http://{proxy}"


def show_proxy(proxy: str) -> str:
    """Return a proxy's URL for messages: without its login."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxies_words(proxies: Mapping[str, str]) -> str:
    """Say which proxies are in use, for the hint of an error; empty where there are none."""
    named = [
        f"{kind}_proxy is {show_proxy(proxy if '://' in proxy else f'http://{proxy}')}"
        for kind, proxy in sorted(proxies.items())
        if kind in ("http", "https", "all")
    ]
    if named and NO_PROXY in proxies:
        named.append(f"no_proxy is {proxies[NO_PROXY]}")
    return ", ".join(named)


def _rules(text: str) -> Iterator[str]:
    """Yield what NO_PROXY names, between commas or spaces."""
    yield from filter(None, re.split(r"[,\s]+", text.lower()))


def _excludes(rule: str, host: str, port: int | None) -> bool:
    """Whether a rule names a host: `*`, a range, an address, a name with all below it.

    Each but `*` may have a port, and then names that port alone.
    """
    if rule == "*":
        return True
    if "/" in rule:
        return _is_in_range(host, rule)
    name, rule_port = _split_port(rule)
    if rule_port is not None and rule_port != port:
        return False
    # Compared as addresses, because an IPv6 address can be written in many ways.
    if address := _address(host):
        return address == _address(name)
    # `corp`, `.corp` and `*.corp` all name `corp` and every host below it.
    name = name.removeprefix("*").strip(".")
    host = host.rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(rule: str) -> tuple[str, int | None]:
    """Return name and port of a rule; an IPv6 address has a port only behind brackets."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d{1,5}))?", rule)
    if not found:
        return rule, None
    return found[1].strip("[]"), int(found[2]) if found[2] else None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_in_range(host: str, rule: str) -> bool:
    address = _address(host)
    try:
        network = ipaddress.ip_network(rule.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False
    return address is not None and address in network
