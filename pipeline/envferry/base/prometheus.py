"""Metrics in Prometheus's text format, for node_exporter's textfile collector.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import write_bytes
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A gauge with its values."""

    name: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...] = msgspec.field(default_factory=tuple)
    """Labels and value."""


def render_metrics(metrics: Iterable[Metric]) -> str:
    """Return the text; metrics without a value are left out."""
    lines = []
    for metric in metrics:
        if metric.samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} gauge"]
        for labels, value in metric.samples:
            text = ",".join(f'{name}="{escaped(label)}"' for name, label in labels.items())
            number = f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
            lines.append(f"{metric.name}{{{text}}} {number}" if text else f"{metric.name} {number}")
    return "".join(f"{line}\n" for line in lines)


def escaped(text: str) -> str:
    """Return a label's value as the format has it."""
    # The backslash first: the others add backslashes.
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def timestamp(time: str | None) -> int | None:
    """Return a time of a record, `2026-11-28T23:10:00Z`, as seconds since 1970."""
    try:
        # fromisoformat takes `Z` only from Python 3.11 on.
        return int(datetime.fromisoformat((time or "").replace("Z", "+00:00")).timestamp())
    except ValueError:
        return None


def check_textfile(path: Path | None) -> None:
    """Raise UsageError for a name that the collector ignores."""
    if path and path.suffix != ".prom":
        message = f"node_exporter does not read {path}: its name does not end in .prom"
        raise UsageError(message, hint=f"write to {path.with_suffix('.prom')}")


def write_textfile(path: Path, metrics: Iterable[Metric]) -> None:
    """Write a textfile whole or not at all: the collector may read it at any moment."""
    write_bytes(path, render_metrics(metrics).encode())
