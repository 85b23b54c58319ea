"""The command `envferry config`: each setting, and what says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.settings_table import SETTINGS
from envferry.cli.shared.command import NoOptions, command
from envferry.cli.shared.terminal import table
from envferry.config import settings_files, settings_with_sources
from envferry.redaction import fit_to_show

if TYPE_CHECKING:
    from envferry.base.settings_table import Value
    from envferry.cli.shared.console import Console


@command(NoOptions)
def config(console: Console, options: NoOptions) -> None:
    """Show each setting, its value and its origin: a file and line, a variable, the default.

    Files: /etc/envferry/config.toml, then ~/.config/envferry/config.toml. Variables win over them,
    options over all (docs/settings.md).
    """
    told = settings_with_sources()
    facts = {
        one.key: {"value": told[one.key].value, "source": told[one.key].source} for one in SETTINGS
    }
    files = [{"file": path, "exists": path.is_file()} for path in settings_files()]
    rows = [
        (one.key, shown(told[one.key].value, one.shown_default), told[one.key].source)
        for one in SETTINGS
    ]
    console.result(
        {"settings": facts, "files": files},
        lambda: table(("SETTING", "VALUE", "FROM"), rows, right=()),
    )


def shown(value: Value, default: str) -> str:
    """Return a value for people, without the logins of URLs."""
    if value is None or value == ():
        return f"({default.replace('`', '')})" if default else ""
    if isinstance(value, tuple):
        return ":".join(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return fit_to_show(text)
