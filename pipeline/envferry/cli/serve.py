"""The command that shows a registry in a browser: serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envferry.cli.audit import DatabaseOptions, load_with_vex, prepare
from envferry.cli.shared.command import command, option
from envferry.cli.shared.selection import open_index
from envferry.cli.shared.shared_options import RegistryOptions, TrustedKeyOptions
from envferry.errors import UsageError
from envferry.stores.opening import require_public
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console


class ServeOptions(DatabaseOptions, TrustedKeyOptions, RegistryOptions):
    """Where to listen, and what to show."""

    policy: str = option(
        "--policy",
        metavar="POLICY",
        default="any",
        show_default=True,
        help="A policy file that silences findings on the audit pages (see `envferry audit`).",
    )

    public_url: str = option(
        "--public-url",
        metavar="URL",
        default="",
        help="Where hosts reach the registry, for the commands that the pages offer to copy."
        " Default: --registry.",
    )
    host: str = option(
        "--host", default="127.0.0.1", show_default=True, help="The address to listen on."
    )
    port: int = option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="The port to listen on; 0 takes a free one.",
    )


@command(ServeOptions)
def serve(console: Console, options: ServeOptions) -> None:
    """Show a registry in a browser: read-only pages, each with a JSON twin.

    They change nothing. The server is a registry as well: `--registry http://HOST:PORT`. With a
    database of `envferry audit`, each artifact has a page of known vulnerabilities. Signatures are
    checked with the keys in /etc/envferry/trusted.d and with --trusted-key.
    """
    try:
        from envferry.web.server import is_local, listen, serve_site
        from envferry.web.site import RegistryView
    except ModuleNotFoundError as error:
        # Any other module that is missing is a bug, which a traceback explains better.
        if (error.name or "").partition(".")[0] not in (
            "uvicorn",
            "starlette",
            "jinja2",
            "markdown_it",
        ):
            raise
        message = f"serve needs {error.name}, which is not installed"
        raise UsageError(message, hint='run `pip install "envferry[web]"`') from error
    if options.public_url:
        require_public(options.public_url)
    host = options.host
    # Before the index is read, which may take long: a port that is taken is reported at once.
    listener = listen(host, options.port)
    trust = load_trust(options.trusted_keys, takes_in=False)
    audit = None
    if options.database.exists():
        audit = prepare(console, options.database, trust, load_with_vex(options.policy, ()))
    index = open_index(console, options.registry)
    site = RegistryView(index, trust, audit, options.public_url)
    place = f"[{host}]" if ":" in host else host
    address = f"http://{place}:{listener.getsockname()[1]}/"
    if not is_local(host):
        console.note(f"{host} is not local: everyone who reaches it can read the whole registry")
    console.result({"url": address}, lambda: [f"{address} shows {site.url}; stop with Ctrl-C"])
    serve_site(site, listener, host)
